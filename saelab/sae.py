"""SAE: one dictionary class, composed of an encoder, an activation function and a decoder.

    z = (x * scale_in - b_dec) W_enc + b_enc        pre-activations (b_dec only if pre_bias)
    f = activation(z)                               latents, kept as SparseCodes
    reconstruction = (f W_dec + b_dec + (x * scale_in) W_skip) / scale_out    (W_skip only if skip)

Row i of W_dec is decoder direction i. A dictionary that writes where it reads is an autoencoder;
one that writes to another hook point is a transcoder. Which family it is depends on the activation
function here and on the objective it was trained with, never on another class.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    SelectAgain,
    TopK,
    from_json,
)
from saelab.dictionary_files import fill, read_dictionary, write_dictionary
from saelab.directions import unit_rows
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.kernels import (
    Bfloat16Selection,
    GradientBuffers,
    Pairs,
    encode_pairs,
    sparse_decode,
    sparse_pre_activations,
    sum_rows,
)
from saelab.kernels.encoding import Selection
from saelab.normalization import Normalization
from saelab.pair_forward import FoundPairs, PairForward, Settle
from saelab.sparse_codes import SparseCodes

__all__ = ["SAE", "FoundPairs", "PairForward", "Settle"]

# Dictionaries written before transcoders existed do not say all of these.
_SETTINGS = ("hook", "hook_out", "d_out", "skip", "tied", "pre_bias", "seed", "metadata")


@final
class SAE(nn.Module):
    """A sparse dictionary that reads one hook point and writes the same one, or another.

    Args:
        d_in: Width of the activations it reads.
        d_sae: Number of latents.
        activation: Activation function; `TopK(32)` if not given.
        hook: Hook point it reads, in TransformerLens spelling.
        hook_out: Hook point it writes, which makes it a transcoder; None for `hook`.
        d_out: Width of the activations it writes; None for d_in.
        skip: Whether a linear path W_skip [d_in, d_out] is added to the reconstruction.
        tied: Whether W_enc is W_dec transposed, and is kept so by training.
        normalization: Input and output scale; identity if not given (training fits it).
        pre_bias: Whether b_dec is subtracted from the input; None for yes, except in a transcoder.
        dtype: Type of the weights.
        seed: Of the random directions. W_enc starts as W_dec transposed where their widths agree.
        metadata: Anything JSON can hold about where it came from, saved with it.

    Raises:
        ConfigError: A size is not positive, the activation function does not fit d_sae, or tied
            weights or a pre-bias are asked of a transcoder.

    >>> sae = SAE(4, 8, TopK(2))
    >>> codes = sae.encode(torch.eye(4))
    >>> codes.n_tokens, int(codes.l0().max()) <= 2, sae(torch.eye(4)).shape
    (4, True, torch.Size([4, 4]))
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: ActivationFunction | None = None,
        *,
        hook: str | None = None,
        hook_out: str | None = None,
        d_out: int | None = None,
        skip: bool = False,
        tied: bool = False,
        normalization: Normalization | None = None,
        pre_bias: bool | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        if d_in < 1 or d_sae < 1 or d_out < 1:
            raise ConfigError(
                f"SAE(d_in={d_in}, d_sae={d_sae}, d_out={d_out}): sizes must be positive."
            )
        self.d_in, self.d_out, self.d_sae = d_in, d_out, d_sae
        self.hook, self.hook_out = hook, None if hook_out == hook else hook_out
        self.tied, self.seed = tied, seed
        self.pre_bias = not self.is_transcoder if pre_bias is None else pre_bias
        if self.is_transcoder and (tied or self.pre_bias):
            raise ConfigError(
                f"SAE(tied={tied}, pre_bias={pre_bias}) cannot be a transcoder, whose b_dec and "
                "W_dec belong to what it writes, not to what it reads. Leave both out."
            )
        self.activation = TopK(min(32, d_sae)) if activation is None else activation
        self.activation.setup(d_in, d_sae)
        self.normalization = normalization or Normalization()
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.coarse_selection: Bfloat16Selection | None = None
        """Set by training that selects in bfloat16; inference never does."""
        generator = torch.Generator().manual_seed(seed)
        directions = unit_rows(d_sae, d_out, generator).to(dtype)
        encoder = directions.clone() if d_in == d_out else unit_rows(d_sae, d_in, generator)
        # Both matrices hold one latent per contiguous row, so gathering a latent is one read;
        # W_enc is the transposed view that the field's equations use.
        self.W_enc = nn.Parameter(encoder.to(dtype).T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(d_out, dtype=dtype))
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out, dtype=dtype)) if skip else None
        self.activation.attach(self.W_dec, tied=tied)

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes to another place than it reads."""
        return self.hook_out is not None or self.d_out != self.d_in

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.W_dec.dtype

    def extra_repr(self) -> str:
        """Shown by print."""
        out = f" -> {self.hook_out!r}, d_out={self.d_out}" if self.is_transcoder else ""
        return f"d_in={self.d_in}, d_sae={self.d_sae}, hook={self.hook!r}{out}"

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> SparseCodes:
        """Latents of activations, in the order of the rows; leading axes are flattened.

        The codes do not depend on what else is in the batch, and carry no gradient. Latents are
        in normalized units: divide by `normalization.scale_out` for the length that
        `W_dec[i]` contributes.

        Raises:
            ShapeError: The last axis is not d_in wide.
        """
        with torch.no_grad():
            inputs = self._inputs(self._rows(x))
            self.activation.prepare(inputs, self.W_dec)
            ((pairs, pre_acts),) = encode_pairs(
                inputs, self.W_enc.T, self.b_enc, [self.activation.select]
            )
            latents = self.activation.at_pairs(pre_acts, pairs.indices)
            return SparseCodes.from_pairs(
                pairs.tokens(), pairs.indices, latents, pairs.n_tokens, self.d_sae
            )

    def decode(
        self, codes: SparseCodes | Tensor, x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of latents, in the model's units.

        Args:
            codes: Sparse codes, or a dense `[..., d_sae]` matrix.
            x: The activations they are codes of, which a skip connection also reads.

        Raises:
            ShapeError: The latents are not d_sae wide.
            ConfigError: There is a skip connection, and no `x`.
        """
        if self.W_skip is not None and x is None:
            raise ConfigError(
                "This dictionary has a skip connection, so latents alone do not give its "
                "reconstruction: pass decode(codes, x) the activations too."
            )
        width = codes.d_sae if isinstance(codes, SparseCodes) else codes.shape[-1]
        if width != self.d_sae:
            raise ShapeError(f"decode got latents of width {width}; d_sae is {self.d_sae}.")
        if isinstance(codes, SparseCodes):
            pairs = Pairs(codes.offsets, codes.indices, self.d_sae)
            recons = sum_rows(pairs, codes.values.to(self.dtype), self.W_dec) + self.b_dec
        else:
            recons = codes.to(self.dtype) @ self.W_dec + self.b_dec
        if self.W_skip is not None and x is not None:
            skipped = (self._rows(x) * self.normalization.scale_in) @ self.W_skip
            recons = recons + skipped.reshape(recons.shape)
        return recons / self.normalization.scale_out

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of activations; differentiable in x and in the weights."""
        rows = self._rows(x)
        recons = self.forward_pairs(rows * self.normalization.scale_in).recons
        recons = recons / self.normalization.scale_out
        return recons.reshape(*x.shape[:-1], self.d_out).to(x.dtype)

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """All pre-activations, densely: for a few tokens at a time."""
        inputs = self._inputs(self._rows(x))
        return (inputs @ self.W_enc + self.b_enc).reshape(*x.shape[:-1], self.d_sae)

    def forward_pairs(
        self,
        inputs: Float[Tensor, "token d_in"],
        *,
        training: bool = False,
        buffers: GradientBuffers | None = None,
        extra: dict[str, Selection] | None = None,
    ) -> PairForward:
        """The differentiable pass that training uses, over selected pairs only.

        Args:
            inputs: Activations times scale_in.
            training: Select as the family does in training, which may look at the whole batch
                and include pairs that are silent but receive gradient.
            buffers: Where weight gradients are written; None returns them through autograd.
            extra: Further selections made in the same pass over the pre-activations.
        """
        found = self.select_pairs(inputs, training=training, extra=extra)
        return self.forward_found(inputs, found, buffers)

    def select_pairs(
        self,
        inputs: Float[Tensor, "token d_in"],
        *,
        training: bool = False,
        extra: Mapping[str, Selection] | None = None,
        settle: Settle | None = None,
    ) -> dict[str, FoundPairs]:
        """The first half of `forward_pairs`: which pairs, with their pre-activations.

        Args:
            inputs: Activations times scale_in.
            training: Select as the family does in training.
            extra: Further selections, by name.
            settle: In place of the activation function's, when these tokens are part of a batch.

        Returns:
            The family's pairs under "", then the extra ones.
        """
        extra = extra or {}
        centred = (inputs - self.b_dec if self.pre_bias else inputs).detach()
        activation = self.activation
        first = activation.select_training if training else activation.select
        while True:
            activation.prepare(centred, self.W_dec.detach())
            found = self._found(centred, first, list(extra.values()), training)
            named = dict(zip(("", *extra), found, strict=True))
            if not training:
                return named
            pairs, values = named[""]
            try:
                kept = (settle or activation.settle)(pairs, values)
            except SelectAgain:
                continue
            if kept is not None:
                named[""] = (pairs.filtered(kept), values[kept])
            return named

    def _found(
        self, centred: Tensor, first: Selection, extra: list[Selection], training: bool
    ) -> list[FoundPairs]:
        coarse, rule = self.coarse_selection, self.activation
        if training and coarse is not None and isinstance(rule, TopK | AbsTopK):
            return coarse.encode(centred, self.W_enc.T, self.b_enc, rule.k, extra, rule.signed)
        return encode_pairs(centred, self.W_enc.T, self.b_enc, [first, *extra])

    def forward_found(
        self,
        inputs: Float[Tensor, "token d_in"],
        found: Mapping[str, FoundPairs],
        buffers: GradientBuffers | None = None,
    ) -> PairForward:
        """The second half of `forward_pairs`: the differentiable pass over pairs found before."""
        b_pre = self.b_dec if self.pre_bias else None
        centred = inputs - b_pre.detach() if b_pre is not None else inputs
        named = {
            name: (
                pairs,
                sparse_pre_activations(
                    values, centred, self.W_enc, self.b_enc, b_pre, pairs, buffers
                ),
            )
            for name, (pairs, values) in found.items()
        }
        pairs, pre_acts = named.pop("")
        latents = self.activation.at_pairs(pre_acts, pairs.indices)
        recons = sparse_decode(latents, self.W_dec, self.b_dec, pairs, buffers)
        if self.W_skip is not None:
            recons = recons + inputs @ self.W_skip
        return PairForward(inputs, pairs, pre_acts, latents, recons, named)

    def folded(self) -> "SAE":
        """The same dictionary with its scales inside the weights: every output bit is the same.

        Latents keep their values; normalization becomes the identity.
        """
        return SAE._build(self._folded_weights(), {**self.settings(), "normalization": {}})

    def save(self, folder: str | Path) -> None:
        """Write the dictionary as a folder that SAELens 6 can open too (see dictionary_files).

        Raises:
            DiskFullError: No room; an older dictionary in the folder may be partly replaced, and
                `load` then refuses it.
        """
        settings, saelens = self.settings(), self.activation.saelens()
        write_dictionary(folder, self._folded_weights(), settings, saelens)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "SAE":
        """Read what `save` wrote: latents and reconstructions are the same to the last bit.

        Raises:
            CheckpointError: Something is missing, truncated, altered, or of a newer version.
        """
        weights, settings = read_dictionary(folder)
        try:
            return cls._build(weights, settings).to(device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} does not hold a complete dictionary: {error}."
            ) from None

    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as JSON can hold it."""
        plain = ("d_in", "d_out", "d_sae", "hook", "hook_out", "tied", "pre_bias", "seed")
        return {
            **{name: getattr(self, name) for name in plain},
            "skip": self.W_skip is not None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "activation": self.activation.to_json(),
            "normalization": self.normalization.to_json(),
            "metadata": self.metadata,
        }

    def _folded_weights(self) -> dict[str, Tensor]:
        return {**self.normalization.folded(self._weights()), **self.activation.file_tensors()}

    def _weights(self) -> dict[str, Tensor]:
        found = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        found = found if self.W_skip is None else {**found, "W_skip": self.W_skip}
        return {name: weight.detach() for name, weight in found.items()}

    @classmethod
    def _build(cls, weights: dict[str, Tensor], settings: dict[str, Any]) -> "SAE":
        """A dictionary from folded weights; the settings' normalization is taken out of them."""
        sae = cls(
            settings["d_in"],
            settings["d_sae"],
            from_json(settings["activation"]),
            normalization=Normalization(**settings["normalization"]),
            dtype=getattr(torch, settings["dtype"]),
            **{name: settings[name] for name in _SETTINGS if name in settings},
        )
        own = sae._weights()
        fill(own, sae.normalization.unfolded({name: weights[name] for name in own}))
        rest = {name: weight for name, weight in weights.items() if name not in own}
        sae.activation.load_file_tensors(rest)
        return sae

    def _rows(self, x: Tensor) -> Float[Tensor, "token d_in"]:
        if x.ndim == 0 or x.shape[-1] != self.d_in:
            raise ShapeError(
                f"The dictionary reads activations of width d_in={self.d_in}"
                f"{f' from {self.hook}' if self.hook else ''}; got shape {tuple(x.shape)}."
            )
        return x.reshape(-1, self.d_in).to(self.device, self.dtype)

    def _inputs(self, rows: Tensor) -> Float[Tensor, "token d_in"]:
        inputs = rows * self.normalization.scale_in
        return inputs - self.b_dec if self.pre_bias else inputs
