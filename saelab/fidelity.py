"""How much of the model's behavior survives when the reconstruction replaces the activations?

Four forward passes of the same tokens: clean; with the reconstruction spliced in at the hook
point; with zeros there; with the mean activation there. All three edits touch the same positions,
and every loss averages over the same predictions:

- an edit touches a kept token, not at position 0, whose norm is not an outlier;
- a prediction counts when it is made from a kept position after position 0, its target is kept,
  and both belong to the same document.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.models import LanguageModel
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore
from saelab.tokens import Tokens

__all__ = [
    "Dictionary",
    "LossEffects",
    "ce_recovered",
    "edited_positions",
    "kl_score",
    "loss_effects",
    "measured_norm_limit",
    "next_token_kl",
    "next_token_loss",
    "recorded_norm_limit",
    "scored_predictions",
]

EDITS = ("spliced", "zero", "mean")


@runtime_checkable
class Dictionary(Protocol):
    """What evaluation asks of a dictionary; `SAE` is one."""

    @property
    def hook(self) -> str | None:
        """The hook point it reads and writes."""
        ...

    def encode(self, x: Tensor, /) -> SparseCodes:
        """Latents of activations."""
        ...

    def decode(self, codes: SparseCodes, /) -> Tensor:
        """Reconstruction of latents."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class LossEffects:
    """Losses in nats per predicted token, of the same predictions under each edit."""

    n_predictions: int
    """Predictions averaged."""
    n_edited: int
    """Positions each edit touched."""
    ce_clean: float
    """Cross-entropy of the untouched model."""
    ce_spliced: float
    """With the dictionary's reconstruction in place of the activation."""
    ce_zero: float
    """With zeros in place of the activation."""
    ce_mean: float
    """With the mean activation of the evaluation set in its place."""
    kl_spliced: float
    """KL(clean || spliced), mean per prediction."""
    kl_zero: float
    """KL(clean || zero ablation), mean per prediction."""
    kl_mean: float
    """KL(clean || mean ablation), mean per prediction."""

    @property
    def ce_recovered_zero(self) -> float | None:
        """Share of the loss that zero ablation costs and the reconstruction saves."""
        return ce_recovered(self.ce_clean, self.ce_spliced, self.ce_zero)

    @property
    def ce_recovered_mean(self) -> float | None:
        """Share of the loss that mean ablation costs and the reconstruction saves."""
        return ce_recovered(self.ce_clean, self.ce_spliced, self.ce_mean)

    @property
    def kl_score_zero(self) -> float | None:
        """Share of zero ablation's KL that the reconstruction saves."""
        return kl_score(self.kl_spliced, self.kl_zero)

    @property
    def kl_score_mean(self) -> float | None:
        """Share of mean ablation's KL that the reconstruction saves."""
        return kl_score(self.kl_spliced, self.kl_mean)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LossEffects":
        """What `to_json` wrote."""
        return cls(**value)


def next_token_loss(
    logits: Float[Tensor, "prediction vocab"], targets: Int[Tensor, " prediction"]
) -> Float[Tensor, " prediction"]:
    """Cross-entropy of each prediction, in nats, float64."""
    logits = logits.float()
    picked = logits.gather(1, targets.long().unsqueeze(1)).squeeze(1)
    return logits.logsumexp(1).double() - picked.double()


def next_token_kl(
    clean: Float[Tensor, "prediction vocab"], edited: Float[Tensor, "prediction vocab"]
) -> Float[Tensor, " prediction"]:
    """KL(clean || edited) of each prediction's distribution, in nats, float64."""
    log_p = clean.float().log_softmax(1)
    log_q = edited.float().log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).double()


def ce_recovered(clean: float, spliced: float, ablated: float) -> float | None:
    """Share of the loss an ablation costs that the dictionary's reconstruction saves.

    (CE_ablated - CE_spliced) / (CE_ablated - CE_clean): 1 is a perfect splice, 0 is no better than
    the ablation. Zero and mean ablation give different numbers, so say which. None when the
    ablation costs nothing.

    >>> ce_recovered(clean=3.0, spliced=4.0, ablated=7.0)
    0.75
    """
    return (ablated - spliced) / (ablated - clean) if ablated != clean else None


def kl_score(spliced: float, ablated: float) -> float | None:
    """(KL_ablated - KL_spliced) / KL_ablated: 1 is a perfect splice, 0 the ablation.

    >>> kl_score(spliced=1.0, ablated=4.0)
    0.75
    """
    return (ablated - spliced) / ablated if ablated else None


def edited_positions(
    activations: Float[Tensor, "row pos d"],
    kept: Bool[Tensor, "row pos"],
    norm_limit: float | None,
) -> Bool[Tensor, "row pos"]:
    """Where a reconstruction is measured and spliced: kept, not position 0, not a norm outlier."""
    chosen = kept.to(activations.device, copy=True)
    chosen[:, 0] = False
    if norm_limit is not None:
        chosen &= activations.float().norm(dim=-1) <= norm_limit
    return chosen


def measured_norm_limit(
    model: LanguageModel,
    tokens: Tokens,
    hook: str,
    factor: float | None,
    rows_per_batch: int = 4,
) -> float | None:
    """`factor` times the median norm over the first batch's kept positions; None for no limit.

    Raises:
        DataError: No position of the tokens is kept.
    """
    if factor is None:
        return None
    for start in range(0, tokens.n_rows, rows_per_batch):
        part = tokens[start : start + rows_per_batch]
        if part.n_kept:
            ids = part.ids.to(model.device, torch.int64)
            found = model.activations(ids, [hook], part.mask if part.padded else None)[hook]
            norms = found[part.kept.to(found.device)].float().norm(dim=-1)
            return float(norms.median()) * factor
    raise DataError(
        f"None of the {tokens.n_tokens:,} token positions is kept (all are padding or special "
        "tokens), so there is nothing to measure. Use other text."
    )


def recorded_norm_limit(store: ActivationStore) -> float | None:
    """The limit a store on disk was harvested with, at its hook point; None where none is known."""
    if store.manifest is None:
        return None
    return next(one.norm_limit for one in store.manifest.hooks if one.name == store.hook)


def scored_predictions(
    kept: Bool[Tensor, "row pos"], document: Int[Tensor, "row pos"]
) -> Bool[Tensor, "row pos_minus_one"]:
    """Which positions' prediction of the next token counts (see the module's first lines)."""
    counts = kept[:, :-1] & kept[:, 1:] & (document[:, :-1] == document[:, 1:])
    counts[:, :1] = False
    return counts


def loss_effects(
    sae: Dictionary,
    model: LanguageModel,
    tokens: Tokens,
    mean: Float[Tensor, " d"],
    *,
    norm_limit: float | None = None,
    rows_per_batch: int = 4,
    progress: Callable[..., None] | None = None,
) -> LossEffects:
    """Measure the four losses.

    Args:
        sae: The dictionary; `sae.hook` says where the edits go.
        model: The model it reads.
        tokens: What to predict; every row is used.
        mean: The activation that mean ablation writes, in the model's units.
        norm_limit: Positions whose activation is longer are left alone; None for no limit.
        rows_per_batch: Rows at once; two sets of logits of this many rows are held.
        progress: Called with (tokens done, tokens in all, what).

    Raises:
        DataError: No prediction counts.
    """
    totals: dict[str, float] = dict.fromkeys(("ce_clean", *_names()), 0.0)
    n_predictions = n_edited = 0
    for start in range(0, tokens.n_rows, rows_per_batch):
        part = tokens[start : start + rows_per_batch]
        scored = scored_predictions(part.kept, part.document)
        ids = part.ids.to(model.device, torch.int64)
        mask = part.mask if part.padded else None
        clean = model.logits(ids, mask)
        totals["ce_clean"] += float(_losses(clean, ids, scored).sum())
        edits = _edits(sae, part.kept, mean, norm_limit)
        for name, edit in edits.items():
            with model.editing({str(sae.hook): edit}):
                edited = model.logits(ids, mask)
            totals[f"ce_{name}"] += float(_losses(edited, ids, scored).sum())
            totals[f"kl_{name}"] += _kl_sum(clean, edited, scored)
        n_predictions += int(scored.sum())
        n_edited += edits["spliced"].n_edited
        if progress is not None:
            progress(start * tokens.length + part.n_tokens, tokens.n_tokens, "losses")
    if not n_predictions:
        raise DataError(
            f"None of the {tokens.n_tokens:,} tokens can be scored: no two kept tokens of one "
            "document follow each other after position 0. Use longer rows or more text."
        )
    means = {name: total / n_predictions for name, total in totals.items()}
    return LossEffects(n_predictions=n_predictions, n_edited=n_edited, **means)


def _names() -> list[str]:
    return [f"{kind}_{edit}" for edit in EDITS for kind in ("ce", "kl")]


@final
class _Edit:
    """Replaces the touched positions of an activation by `write` of them."""

    def __init__(
        self, write: Callable[[Tensor], Tensor], kept: Tensor, norm_limit: float | None
    ) -> None:
        self.write, self.kept, self.norm_limit = write, kept, norm_limit
        self.n_edited = 0

    def __call__(self, activations: Tensor) -> Tensor:
        touched = edited_positions(activations, self.kept, self.norm_limit)
        self.n_edited = int(touched.sum())
        edited = activations.clone()
        edited[touched] = self.write(activations[touched]).to(activations)
        return edited


def _edits(
    sae: Dictionary, kept: Tensor, mean: Tensor, norm_limit: float | None
) -> dict[str, _Edit]:
    written: dict[str, Callable[[Tensor], Tensor]] = {
        "spliced": lambda x: sae.decode(sae.encode(x.float())),
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x).expand_as(x),
    }
    return {name: _Edit(written[name], kept, norm_limit) for name in EDITS}


def _losses(logits: Tensor, ids: Tensor, scored: Tensor) -> Tensor:
    """One row at a time: float32 copies of a whole batch of logits would double the peak."""
    rows = zip(logits, ids.to(logits.device), scored.to(logits.device), strict=True)
    return torch.cat([next_token_loss(row[:-1][on], target[1:][on]) for row, target, on in rows])


def _kl_sum(clean: Tensor, edited: Tensor, scored: Tensor) -> float:
    rows = zip(clean, edited, scored.to(clean.device), strict=True)
    return float(sum(next_token_kl(p[:-1][on], q[:-1][on]).sum() for p, q, on in rows))
