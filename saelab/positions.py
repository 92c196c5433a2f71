"""Which positions are edited, and which predictions are scored?

- An edit touches a kept token, not at position 0, whose norm is not an outlier.
- A prediction counts when it is made from a kept position after position 0, its target is kept,
  and both belong to the same document.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.models import LanguageModel
from saelab.store import ActivationStore
from saelab.tokens import Tokens

__all__ = [
    "edited_positions",
    "measured_norm_limit",
    "recorded_norm_limit",
    "scored_predictions",
]


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
