"""Which k columns does a sparse probe read? Rankings, and thresholding that looks again.

    mean difference        |mean of positives - mean of negatives| / standard deviation
    adaptive thresholding  fit all, keep the columns of largest |weight|, fit those, keep fewer, ...

A mean difference judges every column alone; only a joint fit finds a column that says nothing by
itself and cleans another of its noise (a suppressor). Best subsets: `optimal.py`.

Source: Gurnee et al. 2023, Finding Neurons in a Haystack, whose columns are scaled and not
centered, which is the same ranking.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError
from saelab.probing.linear import checked, coefficients

__all__ = ["LEVELS", "adaptive_thresholding", "mean_difference", "top"]

LEVELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256)
"""How many columns are kept in turn, from the largest down."""


def mean_difference(values: Any, positive: NDArray[Any]) -> NDArray[Any]:
    """|mean of positives - mean of negatives| of each column, in standard deviations.

    The same whichever way a column points and in whatever unit. A column that does not vary has 0.

    >>> mean_difference(np.array([[1.0, 9], [0, 9]]), np.array([1, 0])).tolist()
    [2.0, 0.0]
    """
    design, positive = checked(values, positive)
    found = np.abs(design.class_difference(positive)) / design.std()
    return np.where(design.varies(), found, 0.0)


def top(ranks: NDArray[Any], k: int) -> NDArray[Any]:
    """The k columns of largest rank, ascending; of equals the first ones."""
    if k < 1:
        raise ConfigError(f"k is {k}; a sparse probe reads at least one column.")
    return np.sort(np.argsort(-np.asarray(ranks), kind="stable")[:k])


def adaptive_thresholding(
    values: Any, positive: NDArray[Any], *, largest: int = 64, smallest: int = 1
) -> dict[int, NDArray[Any]]:
    """Nested supports: from the `largest` columns of most mean difference down to fewer.

    At each level a logistic regression with C = k / 20 and an elastic net (l1 share exp(-k / 20),
    held between 0.1 and 0.9) is fitted to the columns that are left, and the next smaller level's
    k of largest |standardized weight| are kept.

    Args:
        values: Training rows.
        positive: Whether each is.
        largest: Where it starts; the paper's is 256.
        smallest: Where it ends.

    Returns:
        Number of columns -> which, ascending; for the levels between the two ends, ends included.
    """
    design, positive = checked(values, positive)
    kept = top(mean_difference(design, positive), min(largest, design.width))
    if not 1 <= smallest <= len(kept):
        raise ConfigError(f"smallest={smallest} of {len(kept)} columns: choose 1 to {len(kept)}.")
    found = {len(kept): kept}
    levels = {level for level in LEVELS if smallest <= level < len(kept)} | {smallest}
    for k in sorted(levels - {len(kept)}, reverse=True):
        part = design.columns(kept)
        now, share = len(kept), min(max(math.exp(-len(kept) / 20), 0.1), 0.9)
        weights, _ = coefficients(part, positive, now / 20, share)
        kept = kept[top(np.abs(weights) * part.std(axis=0), k)]
        found[k] = kept
    return found
