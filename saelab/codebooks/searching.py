"""Which code stands for something that can be said of tokens? Precision and recall, code by code.

    precision = tokens that have it, of those on which the code is on
    recall    = tokens on which the code is on, of those that have it

What is found on some tokens should be scored on others: with many codes, some fit by chance.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.errors import DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["FoundCode", "codes_for", "mutual_information"]


@final
@dataclass(frozen=True, kw_only=True)
class FoundCode:
    """How well one code stands for something."""

    code: int
    """Which."""
    precision: float
    """0 to 1."""
    recall: float
    """0 to 1."""
    n_on: int
    """Tokens on which it is on."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def codes_for(
    codes: SparseCodes, positive: Bool[Tensor, " token"], n: int | None = 10
) -> list[FoundCode]:
    """The codes, or latents, that stand best for what some tokens have, by F1.

    Args:
        codes: Of tokens.
        positive: Which of them have it.
        n: How many are given back; None for all that are on somewhere.

    Raises:
        ShapeError: There is not one label per token.
        DataError: No token has it, or all have.
    """
    if len(positive) != codes.n_tokens:
        raise ShapeError(f"{codes.n_tokens} tokens need as many labels; found {len(positive)}.")
    if bool(positive.all()) or not bool(positive.any()):
        raise DataError("A code stands for something only if some tokens have it and some not.")
    on = torch.bincount(codes.indices.long(), minlength=codes.d_sae)
    inside = codes.indices.long()[positive.to(codes.tokens.device)[codes.tokens]]
    hits = torch.bincount(inside, minlength=codes.d_sae)
    f1 = 2 * hits / (on + int(positive.sum())).clamp_min(1)
    order = f1.argsort(descending=True, stable=True)
    order = order[on[order] > 0][:n]
    return [
        FoundCode(
            code=code,
            precision=int(hits[code]) / int(on[code]),
            recall=int(hits[code]) / int(positive.sum()),
            n_on=int(on[code]),
        )
        for code in order.tolist()
    ]


def mutual_information(a: Int[Tensor, " token"], b: Int[Tensor, " token"]) -> float:
    """Information that one number of each token has about another, nats; at most either's entropy.

    >>> round(mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 3])), 4)
    0.6931
    """
    if a.shape != b.shape or not len(a):
        raise ShapeError(f"Both need one number per token; found {len(a)} and {len(b)}.")
    ranks = [one.unique(return_inverse=True)[1] for one in (a, b)]
    table = torch.zeros(int(ranks[0].max()) + 1, int(ranks[1].max()) + 1, dtype=torch.float64)
    table.index_put_((ranks[0], ranks[1]), torch.ones(len(a)).double(), accumulate=True)
    joint = table / table.sum()
    free = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((joint[joint > 0] * (joint[joint > 0] / free[joint > 0]).log()).sum())
