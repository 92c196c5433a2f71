"""What is left of a model when transcoders stand in for many of its MLPs at once?

    with replaced(model, transcoders, tokens.kept):        # every pass inside uses them
        logits = model.logits(ids)

Each transcoder reads what its MLP would read in the changed model, so errors of early layers reach
later ones, as they do in any circuit that is traced through the transcoders. Position 0 and tokens
that are not kept stay the model's own, and so do positions where the MLP's output is an outlier:
no dictionary was trained on them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.cross_layer import CrossLayerTranscoder
from saelab.errors import ConfigError, ShapeError
from saelab.fidelity import (
    ce_recovered,
    kl_per_prediction,
    loss_per_prediction,
    nothing_to_score,
    reconstruct,
)
from saelab.models import Edit, LanguageModel
from saelab.positions import edited_positions, measured_norm_limit, scored_predictions
from saelab.sae import SAE
from saelab.tokens import Tokens

__all__ = ["ReplacementEffects", "Transcoders", "replaced", "replacement_effects", "transcoders_of"]

Transcoders = Mapping[str, SAE] | Sequence[SAE] | CrossLayerTranscoder
"""Transcoders of several layers, by any key or in any order; or one for all layers."""
Limits = Mapping[str, float | None]
"""By hook point that is written: the longest norm that is replaced."""


@final
@dataclass(frozen=True, kw_only=True)
class ReplacementEffects:
    """The replaced model against the original and against one without the MLPs."""

    layers: list[str]
    """Hook points written in place of the model."""
    n_predictions: int
    """Predictions averaged."""
    ce_clean: float
    """Cross-entropy of the untouched model, nats per predicted token."""
    ce_replaced: float
    """With the transcoders."""
    ce_zero: float
    """With zeros in their place."""
    kl: float
    """KL(clean || replaced), nats, mean per prediction."""
    kl_zero: float
    """KL(clean || zeros), nats, mean per prediction."""
    top1_agreement: float
    """Share of predictions whose likeliest token is the untouched model's."""
    replaced_share: float
    """Share of kept positions after position 0 that were replaced, mean over layers."""

    @property
    def ce_recovered(self) -> float | None:
        """Share of the loss that zeros in the same places cost and the transcoders save."""
        return ce_recovered(self.ce_clean, self.ce_replaced, self.ce_zero)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "ce_recovered": self.ce_recovered}


def transcoders_of(transcoders: Transcoders) -> list[SAE]:
    """The single-layer transcoders, checked; none if there is one for all layers.

    Raises:
        ConfigError: None is given, one is no transcoder, or two write to one place.
    """
    if isinstance(transcoders, CrossLayerTranscoder):
        return []
    found = list(transcoders.values() if isinstance(transcoders, Mapping) else transcoders)
    if not found:
        raise ConfigError("No transcoder was given. Name at least one layer's.")
    written: set[str] = set()
    for sae in found:
        if sae.hook is None or sae.hook_out is None:
            raise ConfigError(
                f"A dictionary of {sae.hook} is no transcoder: it has no hook_out. Splice an "
                "autoencoder with evaluate instead."
            )
        if sae.hook_out in written:
            raise ConfigError(f"Two transcoders write to {sae.hook_out}. Give one per layer.")
        written.add(sae.hook_out)
    return found


@contextmanager
def replaced(
    model: LanguageModel,
    transcoders: Transcoders,
    kept: Bool[Tensor, "row pos"],
    *,
    limits: Limits | None = None,
) -> Iterator[dict[str, int]]:
    """Within the block, transcoders write in place of the MLPs; the model is always restored.

    Args:
        model: The model they were trained on.
        transcoders: Of any number of layers.
        kept: Which tokens of the passes inside are theirs to change; position 0 never is.
        limits: Longest norm of an MLP output that is replaced, by hook point; none if not given.

    Returns:
        Positions that the last pass replaced, by hook point.

    Raises:
        ConfigError: The dictionaries are not transcoders.
    """
    counts: dict[str, int] = {}
    layers = _layers(transcoders, kept, limits or {}, counts)
    edits: dict[str, Edit] = {}
    for layer in layers:
        edits |= layer.edits()
    with model.editing(edits):
        yield counts


def replacement_effects(
    model: LanguageModel,
    transcoders: Transcoders,
    tokens: Tokens,
    *,
    limits: Limits | None = None,
    outlier_factor: float | None = 4.0,
    rows_per_batch: int = 4,
    progress: Callable[..., None] | None = None,
) -> ReplacementEffects:
    """Measure what the transcoders together keep of the model's predictions.

    Args:
        model: The model they were trained on.
        transcoders: All the layers to replace at once.
        tokens: What to predict, held out from training; every row is used.
        limits: As in `replaced`; measured on these tokens if not given.
        outlier_factor: Limits are this many times the median norm; None for no limits.
        rows_per_batch: Rows at once.
        progress: Called with (tokens done, tokens in all, what).

    Raises:
        DataError: No prediction counts.
    """
    written = _written(transcoders)
    if limits is None:
        limits = {
            hook: measured_norm_limit(model, tokens, hook, outlier_factor, rows_per_batch)
            for hook in written
        }
    totals = dict.fromkeys(("ce_clean", "ce_replaced", "ce_zero", "kl", "kl_zero", "top1"), 0.0)
    n_predictions = n_replaced = n_open = 0
    for start in range(0, tokens.n_rows, rows_per_batch):
        part = tokens[start : start + rows_per_batch]
        scored = scored_predictions(part.kept, part.document)
        ids = part.ids.to(model.device, torch.int64)
        mask = part.mask if part.padded else None
        clean = model.logits(ids, mask)
        totals["ce_clean"] += float(loss_per_prediction(clean, ids, scored).sum())
        with replaced(model, transcoders, part.kept, limits=limits) as counts:
            edited = model.logits(ids, mask)
        totals["ce_replaced"] += float(loss_per_prediction(edited, ids, scored).sum())
        totals["kl"] += float(kl_per_prediction(clean, edited, scored).sum())
        agree = (clean.argmax(-1) == edited.argmax(-1))[:, :-1]
        totals["top1"] += int(agree[scored.to(agree.device)].sum())
        zeros = {hook: _zero(part.kept, limits.get(hook)) for hook in written}
        with model.editing(zeros):
            edited = model.logits(ids, mask)
        totals["ce_zero"] += float(loss_per_prediction(edited, ids, scored).sum())
        totals["kl_zero"] += float(kl_per_prediction(clean, edited, scored).sum())
        n_predictions += int(scored.sum())
        n_replaced += sum(counts.values())
        n_open += int(part.kept[:, 1:].sum()) * len(written)
        if progress is not None:
            progress(start * tokens.length + part.n_tokens, tokens.n_tokens, "replacement")
    if not n_predictions:
        raise nothing_to_score(tokens)
    means = {name: total / n_predictions for name, total in totals.items()}
    return ReplacementEffects(
        layers=written,
        n_predictions=n_predictions,
        top1_agreement=means.pop("top1"),
        replaced_share=n_replaced / max(n_open, 1),
        **means,
    )


def _written(transcoders: Transcoders) -> list[str]:
    if isinstance(transcoders, CrossLayerTranscoder):
        return list(transcoders.hooks_out)
    return [str(sae.hook_out) for sae in transcoders_of(transcoders)]


def _zero(kept: Tensor, limit: float | None) -> Edit:
    def zero(activations: Tensor) -> Tensor:
        touched = edited_positions(activations, kept, limit)
        return activations.masked_fill(touched[..., None], 0.0)

    return zero


class _Layer:
    """One MLP's stand-in for the passes inside a block."""

    def __init__(
        self, hook: str, hook_out: str, kept: Tensor, limit: float | None, counts: dict[str, int]
    ) -> None:
        self.hook, self.hook_out = hook, hook_out
        self.kept, self.limit, self.counts = kept, limit, counts
        self._read: Tensor | None = None

    def edits(self) -> dict[str, Edit]:
        return {self.hook: self._see, self.hook_out: self._put}

    def written(self, x: Tensor) -> Tensor:
        """What stands in for the MLP at all open positions."""
        raise NotImplementedError

    def _see(self, activations: Tensor) -> Tensor:
        self._read = activations
        return activations

    def _put(self, activations: Tensor) -> Tensor:
        if self._read is None or self._read.shape[:2] != self.kept.shape:
            shape = None if self._read is None else tuple(self._read.shape[:2])
            raise ShapeError(
                f"The pass read {self.hook} with rows and positions {shape}; the tokens to replace "
                f"are {tuple(self.kept.shape)}. Run the tokens that `kept` describes."
            )
        open_to_edits = edited_positions(self._read, self.kept, None)
        touched = edited_positions(activations, self.kept, self.limit)
        # The norm limit is the output's, so what is written is chosen among the open positions.
        made = self.written(self._read[open_to_edits].float())
        edited = activations.clone()
        edited[touched] = made[touched[open_to_edits]].to(activations)
        self.counts[self.hook_out] = int(touched.sum())
        self._read = None
        return edited


@final
class _Single(_Layer):
    """A transcoder of one layer."""

    def __init__(self, sae: SAE, kept: Tensor, limits: Limits, counts: dict[str, int]) -> None:
        hook_out = str(sae.hook_out)
        super().__init__(str(sae.hook), hook_out, kept, limits.get(hook_out), counts)
        self.sae = sae

    def written(self, x: Tensor) -> Tensor:
        return reconstruct(self.sae, self.sae.encode(x), x).detach()


@final
class _Shared(_Layer):
    """One layer of a cross-layer transcoder, which also writes what earlier layers left for it."""

    def __init__(
        self,
        clt: CrossLayerTranscoder,
        layer: int,
        kept: Tensor,
        limits: Limits,
        counts: dict[str, int],
        left: dict[int, Tensor],
    ) -> None:
        hook, hook_out = clt.hooks[layer], clt.hooks_out[layer]
        super().__init__(hook, hook_out, kept, limits.get(hook_out), counts)
        self.clt, self.layer, self.left = clt, layer, left

    def written(self, x: Tensor) -> Tensor:
        if self.layer == 0:
            self.left.clear()
        pieces = self.clt.writes(self.layer, self.clt.encode_layer(self.layer, x))
        for target, piece in enumerate(pieces, start=self.layer):
            self.left[target] = self.left[target] + piece if target in self.left else piece
        total = self.left.pop(self.layer) + self.clt.b_dec[self.layer].detach()
        return total / self.clt.normalizations[self.layer].scale_out


def _layers(
    transcoders: Transcoders, kept: Tensor, limits: Limits, counts: dict[str, int]
) -> list[_Layer]:
    if isinstance(transcoders, CrossLayerTranscoder):
        left: dict[int, Tensor] = {}
        return [
            _Shared(transcoders, layer, kept, limits, counts, left)
            for layer in range(transcoders.n_layers)
        ]
    return [_Single(sae, kept, limits, counts) for sae in transcoders_of(transcoders)]
