"""How much of the model's behavior survives when the reconstruction replaces the activations?

Four forward passes of the same tokens: clean; with the reconstruction spliced in at the hook
point it reconstructs; with zeros there; with the mean activation there. A transcoder reads its own
hook point in the same pass, and what it makes of it is written at the other. All three edits touch
the same positions, and every loss averages over the same predictions (see `positions`).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.models import Edit, LanguageModel
from saelab.positions import (
    edited_positions,
    measured_norm_limit,
    recorded_norm_limit,
    scored_predictions,
)
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.tokens import Tokens

__all__ = [
    "Dictionary",
    "LossEffects",
    "ce_recovered",
    "edited_positions",
    "kl_per_prediction",
    "kl_score",
    "loss_effects",
    "loss_per_prediction",
    "measured_norm_limit",
    "next_token_kl",
    "next_token_loss",
    "nothing_to_score",
    "reconstruct",
    "recorded_norm_limit",
    "scored_predictions",
    "written_at",
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


def reconstruct(
    sae: Dictionary, codes: SparseCodes, x: Float[Tensor, "token d_in"]
) -> Float[Tensor, "token d_out"]:
    """What a dictionary makes of activations whose latents are known."""
    if isinstance(sae, SAE):
        return sae.decode(codes, x)  # a skip connection reads x
    return sae.decode(codes)


def written_at(sae: Dictionary) -> str | None:
    """The hook point that a dictionary reconstructs: a transcoder's target, or what it reads."""
    return getattr(sae, "hook_out", None) or sae.hook


def loss_effects(
    sae: Dictionary,
    model: LanguageModel,
    tokens: Tokens,
    mean: Float[Tensor, " d"],
    *,
    norm_limit: float | None = None,
    norm_limit_out: float | None = None,
    rows_per_batch: int = 4,
    progress: Callable[..., None] | None = None,
) -> LossEffects:
    """Measure the four losses.

    Args:
        sae: The dictionary; it says which hook points are read and edited.
        model: The model it reads.
        tokens: What to predict; every row is used.
        mean: The activation that mean ablation writes, in the model's units.
        norm_limit: Positions whose activation is longer are left alone; None for no limit.
        norm_limit_out: The same of what a transcoder reconstructs.
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
        totals["ce_clean"] += float(loss_per_prediction(clean, ids, scored).sum())
        edits = _edits(sae, part.kept, mean, (norm_limit, norm_limit_out))
        for name, edit in edits.items():
            with model.editing(edit.places(str(sae.hook), str(written_at(sae)))):
                edited = model.logits(ids, mask)
            totals[f"ce_{name}"] += float(loss_per_prediction(edited, ids, scored).sum())
            totals[f"kl_{name}"] += float(kl_per_prediction(clean, edited, scored).sum())
        n_predictions += int(scored.sum())
        n_edited += edits["spliced"].n_edited
        if progress is not None:
            progress(start * tokens.length + part.n_tokens, tokens.n_tokens, "losses")
    if not n_predictions:
        raise nothing_to_score(tokens)
    means = {name: total / n_predictions for name, total in totals.items()}
    return LossEffects(n_predictions=n_predictions, n_edited=n_edited, **means)


def nothing_to_score(tokens: Tokens) -> DataError:
    """What to raise when no prediction of some tokens counts."""
    return DataError(
        f"None of the {tokens.n_tokens:,} tokens can be scored: no two kept tokens of one "
        "document follow each other after position 0. Use longer rows or more text."
    )


def _names() -> list[str]:
    return [f"{kind}_{edit}" for edit in EDITS for kind in ("ce", "kl")]


@final
class _Splice:
    """Puts `write(what is read, what is there)` at the touched positions of one pass."""

    def __init__(
        self,
        write: Callable[[Tensor, Tensor], Tensor],
        kept: Tensor,
        limits: tuple[float | None, float | None],
    ) -> None:
        self.write, self.kept, self.limits = write, kept, limits
        self.n_edited = 0
        self._read: Tensor | None = None

    def places(self, hook: str, hook_out: str) -> dict[str, Edit]:
        """The edits to make: one, or a transcoder's look at its input and its output's edit."""
        return {hook: self._see, hook_out: self._put} if hook_out != hook else {hook: self._put}

    def _see(self, activations: Tensor) -> Tensor:
        self._read = activations
        return activations

    def _put(self, activations: Tensor) -> Tensor:
        touched = edited_positions(activations, self.kept, self.limits[self._read is not None])
        read = activations
        if self._read is not None:
            read, self._read = self._read, None
            touched &= edited_positions(read, self.kept, self.limits[0])
        self.n_edited = int(touched.sum())
        edited = activations.clone()
        edited[touched] = self.write(read[touched], activations[touched]).to(activations)
        return edited


def _edits(
    sae: Dictionary, kept: Tensor, mean: Tensor, limits: tuple[float | None, float | None]
) -> dict[str, _Splice]:
    def spliced(x: Tensor, _: Tensor) -> Tensor:
        return reconstruct(sae, sae.encode(x.float()), x.float())

    written: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "spliced": spliced,
        "zero": lambda _, y: torch.zeros_like(y),
        "mean": lambda _, y: mean.to(y).expand_as(y),
    }
    return {name: _Splice(written[name], kept, limits) for name in EDITS}


def loss_per_prediction(
    logits: Float[Tensor, "row pos vocab"],
    ids: Int[Tensor, "row pos"],
    scored: Bool[Tensor, "row pos_minus_one"],
) -> Float[Tensor, " prediction"]:
    """Cross-entropy of the predictions that count, in nats, float64."""
    # One row at a time: float32 copies of a whole batch of logits would double the peak.
    rows = zip(logits, ids.to(logits.device), scored.to(logits.device), strict=True)
    return torch.cat([next_token_loss(row[:-1][on], target[1:][on]) for row, target, on in rows])


def kl_per_prediction(
    clean: Float[Tensor, "row pos vocab"],
    edited: Float[Tensor, "row pos vocab"],
    scored: Bool[Tensor, "row pos_minus_one"],
) -> Float[Tensor, " prediction"]:
    """KL(clean || edited) of the predictions that count, in nats, float64."""
    rows = zip(clean, edited, scored.to(clean.device), strict=True)
    return torch.cat([next_token_kl(p[:-1][on], q[:-1][on]) for p, q, on in rows])
