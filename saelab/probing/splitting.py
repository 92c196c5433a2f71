"""Which examples train a probe and which test it, so that nothing is on both sides?

Examples of one group (a document, an entity, the same text twice) stay together, in the split and
in every fold of the cross-validation. Classes are kept at their shares as well as groups allow.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saelab.errors import ConfigError, DataError

__all__ = ["Division", "balanced", "divide", "folds", "group_numbers"]


class Division(NamedTuple):
    """Row numbers of the two sides."""

    train: NDArray[Any]
    """Rows a probe may look at."""
    test: NDArray[Any]
    """Rows it is scored on, once."""


def group_numbers(keys: Sequence[Hashable]) -> NDArray[Any]:
    """0, 1, 2, ... for each different key, in order of appearance.

    >>> group_numbers(["a", "b", "a"]).tolist()
    [0, 1, 0]
    """
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def divide(
    labels: NDArray[Any],
    groups: NDArray[Any] | None = None,
    *,
    test_share: float = 0.3,
    seed: int = 0,
) -> Division:
    """Divide examples; no group is on both sides, and both sides have every class.

    Args:
        labels: Class of each example.
        groups: Group of each; None if every example is its own.
        test_share: Of the examples, 0 to 1; met within a group's size.
        seed: Of the draw.

    Raises:
        DataError: The groups do not allow both classes on both sides.
    """
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share is {test_share}; it must be between 0 and 1.")
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    _, classes = np.unique(labels, return_inverse=True)
    _, member = np.unique(
        np.arange(len(labels)) if groups is None else np.asarray(groups), return_inverse=True
    )
    sizes = np.zeros((member.max() + 1, classes.max() + 1))
    np.add.at(sizes, (member, classes), 1)
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-sizes[order].sum(1), kind="stable")]  # large groups first
    wanted, room = test_share * sizes.sum(0), test_share * sizes.sum(0)
    chosen = np.zeros(len(sizes), bool)
    for group in order:
        fits = (sizes[group] <= room + 0.5).all()
        if fits and (wanted[sizes[group] > 0] > 0).any():
            chosen[group], room = True, room - sizes[group]
    is_test = chosen[member]
    division = Division(np.flatnonzero(~is_test), np.flatnonzero(is_test))
    for side, rows in zip(("train", "test"), division, strict=True):
        if len(np.unique(classes[rows])) < classes.max() + 1:
            raise DataError(
                f"The {side} side would lack a class: {len(labels)} examples are in only "
                f"{len(sizes)} groups. Give more documents, or finer groups."
            )
    return division


def folds(
    labels: NDArray[Any], groups: NDArray[Any] | None, n_folds: int, seed: int = 0
) -> list[Division]:
    """Folds of a cross-validation on training rows; fewer where classes or groups are few.

    Returns:
        Divisions whose test sides are disjoint and each have both classes; empty if there are
        not two such folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(labels)
    fewest = int(np.bincount(np.unique(labels, return_inverse=True)[1]).min())
    n_groups = len(labels) if groups is None else len(np.unique(groups))
    for count in range(min(n_folds, fewest, n_groups), 1, -1):
        if groups is None:
            splits = StratifiedKFold(count, shuffle=True, random_state=seed)
        else:
            splits = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        found = [Division(*pair) for pair in splits.split(labels, labels, groups)]
        whole = len(np.unique(labels))
        if all(len(np.unique(labels[side])) == whole for pair in found for side in pair):
            return found
    return []


def balanced(labels: NDArray[Any], n: int | None = None, seed: int = 0) -> NDArray[Any]:
    """Rows with as many of each class, at most `n` in all, in random order.

    >>> sorted(np.array([1, 1, 1, 0])[balanced(np.array([1, 1, 1, 0]))].tolist())
    [0, 1]
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    each = int(counts.min()) if n is None else min(int(counts.min()), n // len(classes))
    rows = [generator.permutation(np.flatnonzero(labels == one))[:each] for one in classes]
    return generator.permutation(np.concatenate(rows))
