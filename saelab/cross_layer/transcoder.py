"""Cross-layer transcoder: latents that read one layer's MLP and write to it and every later one.

    z^l = (x^l scale_in^l) W_enc^l + b_enc^l         f = the k largest positive z
    recons^m = (sum over l <= m of f^l W_dec^{l->m} + b_dec^m) / scale_out^m

A latent's decoder directions to all its layers lie side by side in one row of W_dec, so that one
read fetches them and one norm covers them. With "layer" every layer keeps its own k latents; with
"joint" the layers compete for k in all, which needs every layer's input at once. Where the layers
come one after the other, as in a model whose MLPs are being replaced, the joint rule becomes
z > threshold, with the threshold that k latents a token exceeded in training, as a running mean.

Sources: Ameisen et al. 2025, "Circuit tracing: revealing computational graphs in language models"
for the architecture; the joint rule is the one of the OpenMOSS library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.activation_functions import TopK
from saelab.directions import unit_rows
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.files import provenance, read_json, read_tensors, write_json, write_tensors
from saelab.kernels import Pairs, encode_pairs, sum_rows
from saelab.kernels.encoding import Selected, Selection
from saelab.normalization import Normalization
from saelab.pair_forward import FoundPairs
from saelab.sparse_codes import SparseCodes

__all__ = ["Chosen", "CrossLayerTranscoder"]


@final
@dataclass(slots=True, eq=False)
class Chosen:
    """What one pass over all layers' pre-activations selected."""

    kept: list[FoundPairs]
    """The pairs of every layer that are active."""
    extra: list[FoundPairs | None]
    """The further pairs that were asked for."""
    border: float | None = None
    """With the joint rule: the value that k pairs a token exceed, over the whole batch."""


FORMAT = "saelab-cross-layer-transcoder"
VERSION = 1


@final
class CrossLayerTranscoder(nn.Module):
    """One dictionary for all MLPs of a model.

    Args:
        hooks: What each layer reads, first layer first.
        hooks_out: What each layer's MLP writes.
        d_in: Width of what is read.
        d_sae: Latents of each layer.
        k: Latents kept per token: in each layer, or in all together.
        selection: "layer" or "joint".
        d_out: Width of what is written; None for d_in.
        normalizations: Scales of each layer; identity if not given (training fits them).
        dtype: Type of the weights.
        seed: Of the random directions.
        metadata: Anything JSON can hold about where it came from.

    Raises:
        ConfigError: A size is not positive, or the hook points do not pair up.

    >>> clt = CrossLayerTranscoder(["a", "b"], ["A", "B"], d_in=4, d_sae=8, k=2)
    >>> [list(w.shape) for w in clt.W_dec]
    [[8, 8], [8, 4]]
    """

    def __init__(
        self,
        hooks: Sequence[str],
        hooks_out: Sequence[str],
        d_in: int,
        d_sae: int,
        k: int,
        *,
        selection: Literal["layer", "joint"] = "layer",
        d_out: int | None = None,
        normalizations: Sequence[Normalization] | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.hooks, self.hooks_out = tuple(hooks), tuple(hooks_out)
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        self.d_out = d_in if d_out is None else d_out
        self.selection, self.seed = selection, seed
        self.metadata: dict[str, Any] = dict(metadata or {})
        self._check()
        self.normalizations = list(normalizations or [Normalization()] * self.n_layers)
        generator = torch.Generator().manual_seed(seed)
        encoders, decoders = [], []
        for layer in range(self.n_layers):
            width = (self.n_layers - layer) * self.d_out
            decoders.append(nn.Parameter(unit_rows(d_sae, width, generator).to(dtype)))
            directions = unit_rows(d_sae, d_in, generator).to(dtype)
            encoders.append(nn.Parameter(directions.T))
        self.W_enc = nn.ParameterList(encoders)
        self.b_enc = nn.ParameterList(
            nn.Parameter(torch.zeros(d_sae, dtype=dtype)) for _ in encoders
        )
        self.W_dec = nn.ParameterList(decoders)
        self.b_dec = nn.ParameterList(
            nn.Parameter(torch.zeros(self.d_out, dtype=dtype)) for _ in encoders
        )
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))

    def _check(self) -> None:
        sizes = (self.d_in, self.d_out, self.d_sae, self.k)
        most = self.d_sae * (self.n_layers if self.selection == "joint" else 1)
        if min(sizes) < 1 or self.k > most or self.selection not in ("layer", "joint"):
            raise ConfigError(
                f"CrossLayerTranscoder(d_in={self.d_in}, d_out={self.d_out}, d_sae={self.d_sae}, "
                f"k={self.k}, selection={self.selection!r}): sizes must be positive, k at most "
                f'{most}, selection "layer" or "joint".'
            )
        if not self.hooks or len(self.hooks) != len(self.hooks_out):
            raise ConfigError(
                f"A cross-layer transcoder writes one hook point for each that it reads; found "
                f"{len(self.hooks)} read and {len(self.hooks_out)} written."
            )

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.hooks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.b_dec[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.b_dec[0].dtype

    def encode(self, inputs: Sequence[Float[Tensor, "token d_in"]]) -> list[SparseCodes]:
        """Latents of every layer, from what every layer reads.

        Raises:
            ShapeError: A layer is missing, or of another width.
        """
        if len(inputs) != self.n_layers:
            raise ShapeError(f"encode got {len(inputs)} layers' inputs; it has {self.n_layers}.")
        with torch.no_grad():
            rows = [self.rows(layer, x) for layer, x in enumerate(inputs)]
            found = self.select_pairs(rows).kept
        return [self._codes(pairs, values) for pairs, values in found]

    def encode_layer(self, layer: int, x: Float[Tensor, "token d_in"]) -> SparseCodes:
        """Latents of one layer by itself; the joint rule becomes its threshold."""
        with torch.no_grad():
            threshold = float(self.threshold)

            def above(pre_acts: Tensor) -> Selected:
                row, latent = (pre_acts > threshold).nonzero(as_tuple=True)
                return row, latent, pre_acts[row, latent]

            choose = above if self.selection == "joint" else TopK(self.k).select
            ((pairs, values),) = self._encode_pairs(layer, self.rows(layer, x), [choose])
        return self._codes(pairs, values)

    def decode(self, codes: Sequence[SparseCodes]) -> list[Float[Tensor, "token d_out"]]:
        """The reconstruction of every layer's output, in the model's units."""
        totals: list[Tensor] = [b.detach().expand(codes[0].n_tokens, -1) for b in self.b_dec]
        for layer, part in enumerate(codes):
            for target, piece in enumerate(self.writes(layer, part), start=layer):
                totals[target] = totals[target] + piece
        return [x / n.scale_out for x, n in zip(totals, self.normalizations, strict=True)]

    def writes(self, layer: int, codes: SparseCodes) -> list[Float[Tensor, "token d_out"]]:
        """What a layer's latents add to its own output and to each later one, normalized."""
        with torch.no_grad():
            pairs = Pairs(codes.offsets, codes.indices, self.d_sae)
            written = sum_rows(pairs, codes.values.to(self.dtype), self.W_dec[layer])
        return list(written.split(self.d_out, dim=1))

    def decoder(self, source: int, target: int) -> Float[Tensor, "d_sae d_out"]:
        """Directions that the latents of one layer write at the same or a later one, normalized."""
        if not 0 <= source <= target < self.n_layers:
            raise ConfigError(f"Layer {source} does not write to layer {target}.")
        start = (target - source) * self.d_out
        return self.W_dec[source].detach()[:, start : start + self.d_out]

    def rows(self, layer: int, x: Tensor) -> Float[Tensor, "token d_in"]:
        """Activations of a layer as its encoder reads them: checked and scaled."""
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ShapeError(
                f"Layer {layer} reads activations [token, {self.d_in}] from {self.hooks[layer]}; "
                f"got shape {tuple(x.shape)}."
            )
        return x.to(self.device, self.dtype) * self.normalizations[layer].scale_in

    def select_pairs(
        self,
        inputs: Sequence[Float[Tensor, "token d_in"]],
        extra: Sequence[Selection | None] = (),
    ) -> Chosen:
        """Which (token, latent) pairs every layer keeps, with their pre-activations.

        Args:
            inputs: What every layer reads, times its scale.
            extra: A further selection of each layer, made in the same pass; None for none.
        """
        select = TopK(min(self.k, self.d_sae)).select
        kept: list[FoundPairs] = []
        more: list[FoundPairs | None] = []
        asked = list(extra) or [None] * self.n_layers
        for layer, (x, also) in enumerate(zip(inputs, asked, strict=True)):
            wanted = [select] if also is None else [select, also]
            found = self._encode_pairs(layer, x.detach(), wanted)
            kept.append(found[0])
            more.append(found[1] if also is not None else None)
        if self.selection == "layer":
            return Chosen(kept, more)
        return Chosen(_strongest(kept, self.k), more, _border(kept, self.k))

    def _encode_pairs(
        self, layer: int, inputs: Tensor, selections: list[Selection]
    ) -> list[tuple[Pairs, Tensor]]:
        return encode_pairs(inputs, self.W_enc[layer].T, self.b_enc[layer], selections)

    def _codes(self, pairs: Pairs, values: Tensor) -> SparseCodes:
        return SparseCodes.from_pairs(
            pairs.tokens(), pairs.indices, values, pairs.n_tokens, self.d_sae
        )

    def settings(self) -> dict[str, Any]:
        """Everything but the weights, as JSON can hold it."""
        plain = ("d_in", "d_out", "d_sae", "k", "selection", "seed", "metadata")
        return {
            "hooks": list(self.hooks),
            "hooks_out": list(self.hooks_out),
            **{name: getattr(self, name) for name in plain},
            "dtype": str(self.dtype).removeprefix("torch."),
            "threshold": float(self.threshold),
            "normalizations": [one.to_json() for one in self.normalizations],
        }

    def save(self, folder: str | Path) -> None:
        """Write one weights file a layer, scales folded in, then the manifest.

        layer_L.safetensors holds W_enc [d_in, d_sae], b_enc, W_dec [d_sae, layers from L on,
        d_out] and b_dec.

        Raises:
            DiskFullError: No room; `load` then refuses what is there.
        """
        folder, files = Path(folder), {}
        for layer in range(self.n_layers):
            name = f"layer_{layer}.safetensors"
            files[name] = write_tensors(folder / name, self.folded(layer))
        manifest = {"format": FORMAT, "version": VERSION, **self.settings(), "files": files}
        write_json(folder / "saelab.json", {**manifest, "provenance": provenance()})

    @classmethod
    def is_in(cls, folder: str | Path) -> bool:
        """Whether a folder holds one, as far as its saelab.json can be read."""
        manifest = Path(folder) / "saelab.json"
        return manifest.exists() and read_json(manifest, str(manifest)).get("format") == FORMAT

    @classmethod
    def load(cls, folder: str | Path) -> "CrossLayerTranscoder":
        """Read what `save` wrote, to the last bit.

        Raises:
            CheckpointError: Something is missing, truncated, altered, or of a newer version.
        """
        folder = Path(folder)
        found = read_json(folder / "saelab.json", "a cross-layer transcoder's saelab.json")
        if found.get("format") != FORMAT or found.get("version", 0) > VERSION:
            raise CheckpointError(
                f"{folder / 'saelab.json'} says format {found.get('format')!r} version "
                f"{found.get('version')!r}; this saelab reads {FORMAT!r} up to {VERSION}."
            )
        names = ("d_in", "d_out", "d_sae", "k", "selection", "seed", "metadata")
        try:
            clt = cls(
                found["hooks"],
                found["hooks_out"],
                **{name: found[name] for name in names},
                normalizations=[Normalization(**one) for one in found["normalizations"]],
                dtype=getattr(torch, found["dtype"]),
            )
            clt.threshold.fill_(found["threshold"])
            for layer in range(clt.n_layers):
                name = f"layer_{layer}.safetensors"
                clt._take(layer, read_tensors(folder / name, found["files"][name]))
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{folder} is not complete: {error}.") from None
        return clt

    def folded(self, layer: int) -> dict[str, Tensor]:
        """A layer's W_enc, b_enc, W_dec [d_sae, target, d_out] and b_dec in the model's units.

        Targets are the layer itself and the later ones.
        """
        own = self.normalizations[layer]
        pieces = [
            self.decoder(layer, target) / self.normalizations[target].scale_out
            for target in range(layer, self.n_layers)
        ]
        return {
            "W_enc": self.W_enc[layer].detach() * own.scale_in,
            "b_enc": self.b_enc[layer].detach(),
            "W_dec": torch.stack(pieces, dim=1),
            "b_dec": self.b_dec[layer].detach() / own.scale_out,
        }

    @torch.no_grad()
    def _take(self, layer: int, weights: dict[str, Tensor]) -> None:
        """Undo `folded`."""
        own, later = self.normalizations[layer], self.normalizations[layer:]
        scales = weights["W_dec"].new_tensor([one.scale_out for one in later])
        self.W_enc[layer].copy_(weights["W_enc"] / own.scale_in)
        self.b_enc[layer].copy_(weights["b_enc"])
        self.W_dec[layer].copy_((weights["W_dec"] * scales[:, None]).flatten(1))
        self.b_dec[layer].copy_(weights["b_dec"] * own.scale_out)


def _border(found: list[FoundPairs], k: int) -> float:
    """The value that k candidates a token exceed on average; 0 if there are fewer."""
    values = torch.cat([values for _, values in found])
    budget = k * found[0][0].n_tokens
    return float(values.topk(budget).values.min()) if len(values) > budget else 0.0


def _strongest(found: list[FoundPairs], k: int) -> list[FoundPairs]:
    """Of each token's candidates in all layers, the k largest."""
    places, width = [], 0
    for pairs, _ in found:
        counts = pairs.offsets.diff()
        rank = torch.arange(pairs.n_pairs, device=counts.device) - pairs.offsets[pairs.tokens()]
        places.append((pairs.tokens(), width + rank))
        width += int(counts.max()) if len(counts) else 0
    n_tokens = found[0][0].n_tokens
    table = found[0][1].new_full((n_tokens, max(width, k)), -torch.inf)
    for (_, values), place in zip(found, places, strict=True):
        table[place] = values
    chosen = torch.zeros_like(table, dtype=torch.bool)
    chosen.scatter_(1, table.topk(k, dim=1, sorted=False).indices, True)
    return [
        (pairs.filtered(chosen[place]), values[chosen[place]])
        for (pairs, values), place in zip(found, places, strict=True)
    ]
