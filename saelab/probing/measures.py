"""How good is a probe? Each number defined once, with ties counted as ties.

    AUROC     P(score of a positive > score of a negative) + 1/2 P(equal)
    AP        sum over thresholds of (recall_t - recall_{t-1}) precision_t, equal scores together
    F1        2 TP / (2 TP + FP + FN); 0 where nothing is positive, neither said nor true
    balanced  mean of the two classes' recall

A decision is positive when its score is above the threshold, never when it is equal to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError, DataError, ShapeError

__all__ = [
    "Interval",
    "Scores",
    "auroc",
    "average_precision",
    "bootstrap_interval",
    "f1",
    "score",
]


@final
@dataclass(frozen=True, kw_only=True)
class Scores:
    """A binary probe on one set of examples."""

    auroc: float
    """Chance that a positive is scored above a negative, 0 to 1; 0.5 knows nothing."""
    average_precision: float
    """Area under precision over recall, 0 to 1; the share of positives knows nothing."""
    f1: float
    """Harmonic mean of precision and recall of the decisions, 0 to 1."""
    accuracy: float
    """Share of decisions that are right."""
    balanced_accuracy: float
    """Mean of the two classes' recall, 0 to 1; 0.5 knows nothing."""
    n: int
    """Examples."""
    n_positive: int
    """Of them positive."""


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile bootstrap interval."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    level: float
    """Share of resamples inside."""
    n_resamples: int
    """Resamples it was taken from."""


def score(scores: NDArray[Any], positive: NDArray[Any], threshold: float = 0.0) -> Scores:
    """All the numbers of a probe at once.

    Args:
        scores: One real number an example; larger means more positive.
        positive: Whether each example is.
        threshold: A score above it is the decision "positive".

    Raises:
        DataError: Only one class is there, or a score is not a number.

    >>> found = score(np.array([2.0, 0.5, 0.5, -1.0]), np.array([1, 1, 0, 0]))
    >>> found.auroc, found.accuracy, found.f1
    (0.875, 0.75, 0.8)
    """
    scores, positive = _checked(scores, positive)
    decided = scores > threshold
    hits, misses = int((decided & positive).sum()), int((~decided & positive).sum())
    false, rest = int((decided & ~positive).sum()), int((~decided & ~positive).sum())
    return Scores(
        auroc=_auroc(scores, positive),
        average_precision=average_precision(scores, positive),
        f1=f1(decided, positive),
        accuracy=(hits + rest) / len(scores),
        balanced_accuracy=(hits / (hits + misses) + rest / (rest + false)) / 2,
        n=len(scores),
        n_positive=hits + misses,
    )


def auroc(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """P(positive above negative) + 1/2 P(equal), from mid-ranks; 0 to 1.

    Raises:
        DataError: Only one class is there, or a score is not a number.

    >>> auroc(np.zeros(4), np.array([1, 0, 0, 1]))
    0.5
    """
    return _auroc(*_checked(scores, positive))


def average_precision(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    """Area under precision over recall; examples of equal score enter together.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1])).__round__(3)
    0.833
    """
    scores, positive = _checked(scores, positive)
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], np.cumsum(positive[order])
    last = np.append(np.diff(ranked) != 0, True)  # the last example of each group of equals
    hits, said = hit[last], np.flatnonzero(last) + 1
    gained = np.diff(np.concatenate([[0], hits])) / hit[-1]
    return float(np.sum(gained * hits / said))


def f1(decided: NDArray[Any], positive: NDArray[Any]) -> float:
    """2 TP / (2 TP + FP + FN), 0 where nothing is positive, neither decided nor true.

    >>> f1(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]))
    0.5
    """
    decided, positive = np.asarray(decided, bool), np.asarray(positive, bool)
    wrong, hits = int((decided != positive).sum()), int((decided & positive).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def bootstrap_interval(
    scores: NDArray[Any],
    positive: NDArray[Any],
    measure: Callable[[NDArray[Any], NDArray[Any]], float] | None = None,
    *,
    groups: NDArray[Any] | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a measure over resampled examples, or over resampled groups.

    Whole groups are drawn where examples of one document are no independent draws; otherwise each
    class is drawn from itself. Resamples with one class only are drawn again.

    Args:
        scores: One an example.
        positive: Whether each example is.
        measure: Of (scores, positive); AUROC if not given.
        groups: Which group each example belongs to.
        n_resamples: How many.
        level: Share of resamples inside, 0 to 1.
        seed: Of the draws.

    Raises:
        DataError: Only one class is there, or only one group has both.
    """
    scores, positive = _checked(scores, positive)
    if not 0 < level < 1 or n_resamples < 1:
        raise ConfigError(f"bootstrap_interval(level={level}, n_resamples={n_resamples}).")
    if measure is None:
        measure, (_, scores) = _auroc_of_ranks, np.unique(scores, return_inverse=True)
    draw, found = _drawing(positive, groups, np.random.default_rng(seed)), []
    for _ in range(20 * n_resamples):
        rows = draw()
        if positive[rows].any() and not positive[rows].all():
            found.append(measure(scores[rows], positive[rows]))
        if len(found) == n_resamples:
            break
    else:
        raise DataError(
            f"Only {len(found)} of {20 * n_resamples} resamples have both classes: the groups are "
            "too few for an interval. Give groups=None if examples are independent."
        )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level, n_resamples=n_resamples)


def _drawing(
    positive: NDArray[Any], groups: NDArray[Any] | None, generator: np.random.Generator
) -> Callable[[], NDArray[Any]]:
    if groups is None:
        classes = [np.flatnonzero(positive), np.flatnonzero(~positive)]
        return lambda: np.concatenate([generator.choice(rows, len(rows)) for rows in classes])
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(member, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(member))[:-1])
    return lambda: np.concatenate(
        [members[one] for one in generator.integers(0, len(members), len(members))]
    )


def _auroc(scores: NDArray[Any], positive: NDArray[Any]) -> float:
    _, rank = np.unique(scores, return_inverse=True)
    return _auroc_of_ranks(rank, positive)


def _auroc_of_ranks(rank: NDArray[Any], positive: NDArray[Any]) -> float:
    """AUROC of scores given as whole numbers: wins and half the ties, counted per number."""
    size = int(rank.max()) + 1
    above = np.bincount(rank[positive], minlength=size)
    below = np.bincount(rank[~positive], minlength=size)
    wins = above @ (np.cumsum(below) - below / 2)
    return float(wins / (above.sum() * below.sum()))


def _checked(scores: NDArray[Any], positive: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ShapeError(
            f"scores {scores.shape} and labels {positive.shape} must both be [example]."
        )
    if positive.all() or not positive.any():
        raise DataError(
            f"All {len(positive)} examples are of one class, so a probe cannot be scored. "
            "Give examples of both."
        )
    if not np.isfinite(scores).all():
        raise DataError("A score is infinite or not a number; look for them in the activations.")
    return scores, positive
