"""What does a cross-layer transcoder learn from one batch?

The squared error of all layers' outputs has one gradient, which is sent back through what every
layer's latents wrote, without a graph over the sums: a layer's part of it is a slice of columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions.base import picks
from saelab.cross_layer.transcoder import Chosen, CrossLayerTranscoder
from saelab.kernels import GradientBuffers, sparse_decode, sparse_pre_activations, top_k
from saelab.kernels.encoding import Selected, Selection
from saelab.objectives.auxk import default_k_aux
from saelab.pair_forward import FoundPairs

__all__ = ["AUXK", "CrossLayerGradients"]

AUXK = 1 / 32
"""Weight of the AuxK term."""


@final
class CrossLayerGradients:
    """Exact gradients over the kept pairs, in buffers that last the whole run.

    Args:
        clt: Whose parameters.
    """

    def __init__(self, clt: CrossLayerTranscoder) -> None:
        self.clt = clt
        self.buffers = GradientBuffers(list(clt.parameters()))
        self.variance = 0.0
        """E|target - mean|^2 of all layers, in normalized units."""

    def __call__(
        self, rows: Mapping[str, Tensor], dead: Bool[Tensor, "layer d_sae"]
    ) -> tuple[Chosen, dict[str, Any]]:
        """Fill the gradient buffers.

        Args:
            rows: What every layer reads and writes, in the model's units.
            dead: Which latents AuxK shall revive.

        Returns:
            What was selected, and the loss, its terms, fvu of every layer and l0.
        """
        clt = self.clt
        inputs = [clt.rows(layer, rows[hook]) for layer, hook in enumerate(clt.hooks)]
        targets = torch.cat(
            [
                rows[hook].to(clt.device, clt.dtype) * own.scale_out
                for hook, own in zip(clt.hooks_out, clt.normalizations, strict=True)
            ],
            dim=1,
        )
        self.buffers.begin()
        chosen = clt.select_pairs(inputs, [self._dead_ones(one) for one in dead])
        kept = chosen.kept
        parts = self._decoded(inputs, kept)
        recons = _summed(parts, clt.d_out, torch.cat(list(clt.b_dec)).detach())
        missing = targets - recons
        loss = missing.square().sum() / (len(targets) * self.variance)
        self._push(parts, missing * (-2 / (len(targets) * self.variance)), with_biases=True)
        row = {"reconstruction": loss.item(), "auxk": self._auxk(inputs, chosen.extra, missing)}
        self.buffers.finish()
        spread = (targets - targets.mean(0)).square().sum(0).unflatten(0, (clt.n_layers, -1))
        errors = missing.square().sum(0).unflatten(0, (clt.n_layers, -1))
        layers = (errors.sum(1) / spread.sum(1)).tolist()
        return chosen, {
            "loss": sum(row.values()),
            **row,
            "fvu": (errors.sum() / spread.sum()).item(),
            **{f"fvu_layer_{layer}": value for layer, value in enumerate(layers)},
            "l0": sum(pairs.n_pairs for pairs, _ in kept) / len(targets),
        }

    def _dead_ones(self, dead: Bool[Tensor, " d_sae"]) -> Selection | None:
        """The strongest dead latents of each token, in one layer."""
        indices = dead.nonzero().squeeze(1)
        if len(indices) == 0:
            return None
        k = min(default_k_aux(self.clt.d_in), len(indices))

        def select(pre_acts: Tensor) -> Selected:
            candidates = pre_acts[:, indices]
            row, place, values = picks(candidates, *top_k(candidates, k))
            return row, indices[place], values

        return select

    def _decoded(
        self, inputs: Sequence[Tensor], found: Sequence[FoundPairs | None]
    ) -> list[Tensor | None]:
        """What each layer's pairs write to its own and the later layers; differentiable."""
        clt, parts = self.clt, []
        for layer, one in enumerate(found):
            if one is None:
                parts.append(None)
                continue
            pairs, values = one
            W_enc, b_enc, W_dec = clt.W_enc[layer], clt.b_enc[layer], clt.W_dec[layer]
            latents = sparse_pre_activations(
                values, inputs[layer], W_enc, b_enc, None, pairs, self.buffers
            ).relu()
            parts.append(sparse_decode(latents, W_dec, None, pairs, self.buffers))
        return parts

    def _push(
        self, parts: Sequence[Tensor | None], gradient: Tensor, *, with_biases: bool = False
    ) -> None:
        """Send the gradient of all layers' reconstructions back through what was decoded."""
        width, present = self.clt.d_out, [i for i, part in enumerate(parts) if part is not None]
        torch.autograd.backward(
            [part for part in parts if part is not None],
            [gradient[:, layer * width :] for layer in present],
        )
        if with_biases:
            for bias, total in zip(self.clt.b_dec, gradient.sum(0).split(width), strict=True):
                self.buffers.add(bias, total)

    def _auxk(
        self, inputs: Sequence[Tensor], found: Sequence[FoundPairs | None], missing: Tensor
    ) -> float:
        """The AuxK term's value; its gradient is pushed back."""
        parts = self._decoded(inputs, found)
        baseline = (missing - missing.mean(0)).square().sum()
        if baseline == 0 or not any(part is not None for part in parts):
            return 0.0
        recovered = _summed(parts, self.clt.d_out, torch.zeros_like(missing[0]))
        wrong = recovered - missing
        self._push(parts, wrong * (2 * AUXK / baseline))
        return AUXK * (wrong.square().sum() / baseline).item()


def _summed(
    parts: Sequence[Tensor | None], width: int, start: Float[Tensor, " all_layers"]
) -> Float[Tensor, "token all_layers"]:
    """All layers' reconstructions side by side, without gradient."""
    n_tokens = next(len(part) for part in parts if part is not None)
    total = start.expand(n_tokens, -1).clone()
    for layer, part in enumerate(parts):
        if part is not None:
            total[:, layer * width :] += part.detach()
    return total
