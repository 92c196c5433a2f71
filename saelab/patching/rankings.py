"""How well does a ranking find what is known to be in the circuit?

The area under the ROC curve is the pessimistic one: between two thresholds the curve is a staircase
below the line, so items with equal scores count as if the wrong ones came first. A ranking of all
equal scores has area 0, not 1/2: read an area next to that of its null.

Source: the staircase is that of Conmy et al. 2023 (arXiv 2304.14997).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import DataError, ShapeError

__all__ = ["average_precision", "precision_recall", "rank_correlation", "roc", "roc_area"]


def roc(scores: Float[Tensor, " item"], truth: Bool[Tensor, " truth"]) -> list[tuple[float, float]]:
    """False and true positive rate at every threshold, from (0, 0) to (1, 1).

    Args:
        scores: The larger, the more surely in the circuit; give sizes of signed scores.
        truth: What is.

    Raises:
        DataError: Everything is in the circuit, or nothing.
        ShapeError: Scores and truth differ in length.

    >>> roc(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True]))
    [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (1.0, 1.0)]
    """
    taken, true = _taken(scores, truth)
    n_true = int(truth.sum())
    false = (taken - true).double() / (len(truth) - n_true)
    return [(0.0, 0.0), *zip(false.tolist(), (true.double() / n_true).tolist(), strict=True)]


def roc_area(scores: Float[Tensor, " item"], truth: Bool[Tensor, " truth"]) -> float:
    """Area under the staircase below the ROC curve, 0 to 1.

    >>> roc_area(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True]))
    1.0
    >>> roc_area(torch.tensor([1.0, 1.0]), torch.tensor([True, False]))
    0.0
    """
    return sum((b[0] - a[0]) * a[1] for a, b in pairwise(roc(scores, truth)))


def average_precision(scores: Float[Tensor, " item"], truth: Bool[Tensor, " truth"]) -> float:
    """Area under precision against recall, as steps; that of chance is the share that is true.

        sum over thresholds of (recall gained) x (precision there)

    >>> average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, False, True]))
    0.8333333333333333
    """
    taken, true = _taken(scores, truth)
    recall = true.double() / int(truth.sum())
    gained = recall.diff(prepend=recall.new_zeros(1))
    return float((gained * true.double() / taken.double()).sum())


def precision_recall(
    found: Bool[Tensor, "*item"], truth: Bool[Tensor, "*item"]
) -> tuple[float, float]:
    """Share of what was found that is true, and share of what is true that was found.

    Precision is 1 where nothing was found.

    >>> precision_recall(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    (0.5, 1.0)
    """
    both = int((found & truth).sum())
    n_found, n_true = int(found.sum()), int(truth.sum())
    return (both / n_found if n_found else 1.0), (both / n_true if n_true else 1.0)


def rank_correlation(
    first: Float[Tensor, " item"] | Sequence[float],
    second: Float[Tensor, " item"] | Sequence[float],
) -> float:
    """Spearman's rank correlation, -1 to 1; equal values share their mean rank.

    Raises:
        DataError: There are fewer than two items, or all of one side are equal.

    >>> rank_correlation([1.0, 2.0, 30.0], [5.0, 6.0, 7.0])
    1.0
    """
    a, b = (_ranks(torch.as_tensor(x, dtype=torch.float64)) for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    if not float(size) > 0:
        raise DataError("A rank correlation needs two items or more that are not all equal.")
    return round(float((a * b).sum() / size), 12)


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]


def _taken(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """How many items, and how many true ones, lie at or above each score, from the largest."""
    if scores.shape != truth.shape:
        raise ShapeError(f"{len(scores)} scores and {len(truth)} truths: give one of each an item.")
    if bool(truth.all()) or not bool(truth.any()):
        raise DataError(
            "Everything, or nothing, is in the circuit: a ranking cannot be right or wrong."
        )
    order = scores.argsort(descending=True)
    ordered = scores[order]
    # Equal scores are taken together: only the last of them is a threshold.
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    return last + 1, truth[order].cumsum(0)[last]
