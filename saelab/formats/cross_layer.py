"""What is in circuit-tracer's files of a cross-layer transcoder, and what goes into them?

    f_l = activation(x_l W_enc[l] + b_enc[l])
    y_m = sum over l <= m of f_l W_dec[l][:, m - l] + b_dec[m] + x_m W_skip[m] [if there]

What is read becomes plain tensors: thresholds of every latent have no counterpart in a
`CrossLayerTranscoder`, whose layers share one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from saelab.cross_layer import CrossLayerTranscoder
from saelab.errors import FormatError
from saelab.files import write_bytes
from saelab.formats.base import Asked
from saelab.formats.circuit_tracer import read_settings, yaml_bytes
from saelab.formats.foreign import safetensors_of, take
from saelab.formats.places import ending_of, layer_of

__all__ = ["CrossLayerWeights", "read_cross_layer", "write_cross_layer"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CrossLayerWeights:
    """The weights of a cross-layer transcoder, one entry for every layer."""

    W_enc: Sequence[Tensor]
    """[d_in, d_sae] of each layer."""
    b_enc: Sequence[Tensor]
    """[d_sae] of each layer."""
    W_dec: Sequence[Tensor]
    """[d_sae, target, d_out] of each layer; target 0 is the layer itself."""
    b_dec: Sequence[Tensor]
    """[d_out] of each layer."""
    threshold: Sequence[Tensor] | None
    """[d_sae] of each layer: JumpReLU; None for ReLU."""
    W_skip: Sequence[Tensor] | None
    """[d_in, d_out] of each layer, where there is a linear path."""
    hooks: Sequence[str]
    """Where each layer reads."""
    hooks_out: Sequence[str]
    """Where each layer writes."""
    model: str | None
    """The model's name."""

    def encode(
        self, x: Sequence[Float[Tensor, "token d_in"]]
    ) -> list[Float[Tensor, "token d_sae"]]:
        """Latents of every layer, densely."""
        found = []
        for layer, inputs in enumerate(x):
            z = inputs @ self.W_enc[layer] + self.b_enc[layer]
            f = z.relu()
            found.append(f if self.threshold is None else f * (z > self.threshold[layer]))
        return found

    def forward(
        self, x: Sequence[Float[Tensor, "token d_in"]]
    ) -> list[Float[Tensor, "token d_out"]]:
        """What every layer's MLP is predicted to write."""
        latents = self.encode(x)
        found = []
        for target, bias in enumerate(self.b_dec):
            y = sum(
                (latents[source] @ self.W_dec[source][:, target - source])
                for source in range(target + 1)
            )
            skip = 0 if self.W_skip is None else x[target] @ self.W_skip[target]
            found.append(y + bias + skip)
        return found


def read_cross_layer(folder: str | Path, ignore: Sequence[str] = ()) -> CrossLayerWeights:
    """Read config.yaml, W_enc_{i}.safetensors and W_dec_{i}.safetensors.

    Args:
        folder: Where they are.
        ignore: Unknown keys of config.yaml that change no number.

    Raises:
        FormatError: A file is missing or damaged, or contradicts another.
    """
    folder = Path(folder)
    config = read_settings(folder, Asked(ignore=ignore), "cross_layer_transcoder")
    if config.get("activation", "relu") != "relu":
        raise FormatError(
            f"{folder / 'config.yaml'}: activation={config['activation']!r} of a cross-layer "
            "transcoder selects over all layers at once, which is not read yet."
        )
    names = (re.fullmatch(r"W_enc_(\d+)\.safetensors", path.name) for path in folder.iterdir())
    layers = sorted(int(name[1]) for name in names if name)
    if not layers or layers != list(range(len(layers))):
        raise FormatError(f"{folder} holds W_enc files of layers {layers}; 0 to n - 1 are needed.")
    found = [_layer(folder, layer, len(layers)) for layer in layers]
    optional = {name: [part.get(name) for part in found] for name in ("threshold", "W_skip")}
    for name, tensors in optional.items():
        if None in [None if t is None else 0 for t in tensors] and any(
            t is not None for t in tensors
        ):
            raise FormatError(f"{folder}: {name} is in some layers and not in others.")
    return CrossLayerWeights(
        W_enc=[part["W_enc"].T for part in found],
        b_enc=[part["b_enc"] for part in found],
        W_dec=[part["W_dec"] for part in found],
        b_dec=[part["b_dec"] for part in found],
        **{n: None if t[0] is None else t for n, t in optional.items()},  # type: ignore[arg-type]
        hooks=[f"blocks.{layer}.{config['feature_input_hook']}" for layer in layers],
        hooks_out=[f"blocks.{layer}.{config['feature_output_hook']}" for layer in layers],
        model=config["model_name"] if isinstance(config.get("model_name"), str) else None,
    )


def write_cross_layer(
    clt: CrossLayerTranscoder, folder: str | Path, model: str | None = None
) -> list[Path]:
    """Write config.yaml, W_enc_{i}.safetensors and W_dec_{i}.safetensors.

    The joint rule is written as what it is where layers come one after the other: the threshold
    that k latents a token exceeded in training (`CrossLayerTranscoder.encode_layer`). A latent is
    active there exactly where it is here.

    Args:
        clt: Trained with selection="joint".
        folder: Where the files go; files of the same names are replaced.
        model: The model's name in config.yaml; the one recorded in training if not given.

    Returns:
        The files written.

    Raises:
        FormatError: The format cannot express it exactly; nothing is written.
    """
    folder, endings = Path(folder), {}
    for key, hooks in (("input", clt.hooks), ("output", clt.hooks_out)):
        endings[f"feature_{key}_hook"] = {ending_of(hook) for hook in hooks}
    wrong = []
    if clt.selection != "joint":
        wrong.append("each of its layers keeps k latents, and it has ReLU and thresholds only")
    if any(len(names) > 1 for names in endings.values()):
        wrong.append("every layer must read and write the same place")
    layers = list(range(clt.n_layers))
    if any([layer_of(hook) for hook in hooks] != layers for hooks in (clt.hooks, clt.hooks_out)):
        wrong.append("there must be one for every layer from 0 on")
    if clt.d_in != clt.d_out:
        wrong.append("it reads and writes vectors of one width")
    if wrong:
        raise FormatError(f"circuit-tracer cannot express this exactly: {'; '.join(wrong)}.")
    config = {
        "model_name": model or (clt.metadata.get("model") or {}).get("name") or "unknown",
        "model_kind": "cross_layer_transcoder",
        **{key: names.pop() for key, names in endings.items()},
    }
    files = {"config.yaml": yaml_bytes(config)}
    for layer in layers:
        weights = clt.folded(layer)
        decoder = {"W_dec": weights.pop("W_dec")}
        weights["W_enc"] = weights["W_enc"].T
        weights["threshold"] = _just_below(clt.threshold, weights["b_enc"])
        for kind, part in (("enc", weights), ("dec", decoder)):
            named = {f"{name}_{layer}": x.cpu().contiguous() for name, x in part.items()}
            files[f"W_{kind}_{layer}.safetensors"] = save(named)
    for name, content in files.items():
        write_bytes(folder / name, content)
    return [folder / name for name in files]


def _just_below(threshold: Tensor, like: Tensor) -> Tensor:
    """The largest number of the weights' type that is not above it, for every latent.

    Rounding to nearest could silence a latent just above the threshold, or wake one just below.
    """
    rounded = threshold.to(like)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > threshold.to(like.device), below, rounded).expand_as(like)


def _layer(folder: Path, layer: int, n_layers: int) -> dict[str, Tensor]:
    encoder, decoder = (folder / f"W_{kind}_{layer}.safetensors" for kind in ("enc", "dec"))
    required = {"W_enc": "d_sae d_in", "b_enc": "d_sae", "b_dec": "d_out"}
    optional = {"threshold": "d_sae", "W_skip": "d_in d_out"}
    found, sizes = take(
        safetensors_of(encoder), encoder, _named(required, layer), _named(optional, layer)
    )
    axes = {f"W_dec_{layer}": "d_sae target d_out"}
    sizes = {**sizes, "target": n_layers - layer}
    written, _ = take(safetensors_of(decoder), decoder, axes, sizes=sizes)
    return {name.rpartition("_")[0]: tensor for name, tensor in (found | written).items()}


def _named(axes: dict[str, str], layer: int) -> dict[str, str]:
    return {f"{name}_{layer}": shape for name, shape in axes.items()}
