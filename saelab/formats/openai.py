"""OpenAI's sparse_autoencoder: one pickled state dict.

    latents = activation(encoder(x - pre_bias) + latent_bias)
    recons = decoder(latents) + pre_bias

Only its ReLU is read and written. Its TopK standardizes every token by the token's own mean and
deviation first, which no fixed weights can do.
"""

from collections.abc import Sequence
from pathlib import Path

from saelab.activation_functions import ReLU
from saelab.errors import FormatError
from saelab.formats.base import Asked, Format
from saelab.formats.dictionary_learning import FILES
from saelab.formats.dictionary_learning_files import pickled
from saelab.formats.foreign import pickle_of, take
from saelab.formats.parts import Parts, rule_of, with_pre_bias

__all__ = ["OPENAI", "looks_like"]

_AXES = {
    "pre_bias": "d_in",
    "encoder.weight": "d_sae d_in",
    "latent_bias": "d_sae",
    "decoder.weight": "d_in d_sae",
}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
FILE = "autoencoder.pt"


def _read(path: Path, asked: Asked) -> Parts:
    origin = path if path.is_file() else path / FILE
    state = pickle_of(origin)
    activation, settings = state.pop("activation", "ReLU"), state.pop("activation_state_dict", {})
    if activation == "TopK" or (settings and activation == "ReLU"):
        raise FormatError(
            f"{origin}: activation={activation!r} with {sorted(map(str, settings))}. OpenAI's TopK "
            "divides every token by its own standard deviation before encoding, which fixed "
            "weights cannot express; only ReLU is read."
        )
    if activation != "ReLU":
        raise FormatError(f"{origin}: activation={activation!r} is not read; ReLU is.")
    for name in _STATISTICS:
        state.pop(name, None)
    tensors, _ = take(state, origin, _AXES)
    return Parts(
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["latent_bias"],
        W_dec=tensors["decoder.weight"].T,
        b_dec=tensors["pre_bias"],
        activation=ReLU(),
        pre_bias=True,
        hook=asked.hook,
    )


def _write(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    (parts,) = dictionaries
    across = parts.hook_out is not None or parts.W_dec.shape[1] != parts.W_enc.shape[0]
    if across or parts.W_skip is not None or rule_of(parts.activation)[0] != "relu":
        raise FormatError(
            "OpenAI's format has autoencoders with ReLU, and a TopK that standardizes every "
            f"token; this dictionary ({parts.activation}{', a transcoder' if across else ''}) "
            "cannot be expressed exactly."
        )
    own = with_pre_bias(parts)
    state = {
        "pre_bias": own.b_dec,
        "latent_bias": own.b_enc,
        "encoder.weight": own.W_enc.T,
        "decoder.weight": own.W_dec.T,
        "stats_last_nonzero": own.b_enc.new_zeros(own.b_enc.shape).long(),
        "latents_activation_frequency": own.b_enc.new_ones(own.b_enc.shape),
        "latents_mean_square": own.b_enc.new_zeros(own.b_enc.shape),
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    return {FILE: pickled(state)}


def looks_like(path: Path) -> bool:
    """A .pt file that dictionary_learning would not write, or a folder with autoencoder.pt."""
    if path.is_dir():
        return (path / FILE).exists()
    return path.suffix in (".pt", ".pth") and not FILES.fullmatch(path.name)


OPENAI = Format(
    name="openai",
    peer="OpenAI's sparse_autoencoder",
    files="a .pt file with pre_bias and latent_bias",
    recognizes=looks_like,
    read=_read,
    write=_write,
)
