"""How small a circuit does how much of what the model does, and would a random one do as much?

    faithfulness(C) = (m(C) - m(none)) / (m(all) - m(none))
    completeness(C) = faithfulness(everything but C)           0 is best

m(C) is what is measured with everything outside C taken away. A ranking of items makes a circuit of
each size: the first n. A curve over sizes says more than one circuit does, and means nothing
without the curves of its nulls (`saelab.patching.nulls`).

Faithfulness is no share: above 1, the circuit does more than the model, because what works against
the answer is gone.

Source: Marks et al. 2025 (arXiv 2403.19647), section 3.2, for both measures.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch

from saelab.errors import ConfigError, DataError
from saelab.patching.ablations import Ablation

__all__ = ["Curve", "Point", "curve", "curve_sizes", "shuffled_within_kinds"]


@final
@dataclass(frozen=True, slots=True)
class Point:
    """One circuit."""

    size: int
    """Items in it."""
    faithfulness: float
    """1 if it does what the model does, 0 if it does nothing."""
    completeness: float | None
    """Faithfulness of all the rest; None if it was not measured."""


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """Circuits of one ranking, by size."""

    name: str
    """What ranked the items."""
    n_items: int
    """How many there are."""
    points: tuple[Point, ...]
    """By rising size."""

    def area(self, of: str = "faithfulness") -> float:
        """Mean faithfulness, or completeness, over the logarithm of size: trapezoids.

        >>> Curve("a", 4, (Point(1, 0.0, None), Point(4, 1.0, None))).area()
        0.5

        Raises:
            DataError: There are fewer than two sizes, or completeness was not measured.
        """
        values = [getattr(point, of) for point in self.points]
        if len(values) < 2 or None in values:
            raise DataError(f"The {of} of {self.name!r} was not measured at two sizes or more.")
        logs = [math.log(point.size) for point in self.points]
        steps = zip(pairwise(logs), pairwise(values), strict=True)
        return sum((b - a) * (y + z) / 2 for (a, b), (y, z) in steps) / (logs[-1] - logs[0])

    def size_at(self, share: float) -> int | None:
        """The smallest size of the sweep that is so faithful; None if none is.

        >>> Curve("a", 9, (Point(1, 0.2, None), Point(4, 0.9, None))).size_at(0.8)
        4
        """
        return next((p.size for p in self.points if p.faithfulness >= share), None)


def curve_sizes(n_items: int, n: int = 10, largest: int | None = None) -> list[int]:
    """About n sizes from 1 to all items, evenly spaced in their logarithm.

    >>> curve_sizes(100, 3)
    [1, 10, 100]
    """
    end = math.log(min(n_items, largest or n_items))
    found = {round(math.exp(end * step / max(n - 1, 1))) for step in range(n)}
    return sorted(found | {min(n_items, largest or n_items)})


def curve(
    ablation: Ablation,
    ranking: Sequence[Hashable],
    sizes: Sequence[int],
    name: str,
    *,
    completeness: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Measure the circuits that a ranking makes.

    Args:
        ablation: Items and what is measured; on other prompts than the ranking was made on.
        ranking: The most important first; items that are left out come last in no order.
        sizes: How many of the first; from 1 to all that are ranked.
        name: Of the curve.
        completeness: Whether to measure the rest too: twice the passes.
        progress: Called with (sizes done, in all).

    Raises:
        ConfigError: A size is out of range, an item occurs twice, or taking everything away leaves
            what is measured as it is.
    """
    if len(set(ranking)) < len(ranking):
        raise ConfigError(f"The ranking {name!r} names an item twice.")
    if not sizes or min(sizes) < 1 or max(sizes) > len(ranking):
        raise ConfigError(
            f"Sizes {list(sizes)} were asked of a ranking of {len(ranking)} items: name sizes from "
            f"1 to {len(ranking)}."
        )
    whole, nothing = ablation.with_only(ablation.items), ablation.with_only([])
    if not abs(whole - nothing) > 1e-6 * max(abs(whole), abs(nothing)):
        raise ConfigError(
            f"What is measured is {whole:.3g} with everything and with nothing, so no circuit can "
            "be faithful to it. Use prompts whose answers differ."
        )
    points = []
    for done, size in enumerate(sorted(sizes)):
        kept = set(ranking[:size])
        faithful = (ablation.with_only(kept) - nothing) / (whole - nothing)
        rest = None
        if completeness:
            others = [item for item in ablation.items if item not in kept]
            rest = (ablation.with_only(others) - nothing) / (whole - nothing)
        points.append(Point(size, faithful, rest))
        if progress is not None:
            progress(done + 1, len(sizes))
    return Curve(name, len(ablation.items), tuple(points))


def shuffled_within_kinds(
    ablation: Ablation, ranking: Sequence[Hashable], seed: int
) -> list[Hashable]:
    """Null: a random ranking whose first n items have as many of each kind as the given one's.

    Items are drawn from all of the ablation, so also from those that the ranking leaves out.

    Args:
        ablation: Says what kind an item is.
        ranking: The one it is held to.
        seed: Another seed gives another one.
    """
    generator = torch.Generator().manual_seed(seed)
    by_kind: dict[str, list[Hashable]] = {}
    for item in ablation.items:
        by_kind.setdefault(ablation.kind(item), []).append(item)
    drawn = {
        kind: iter([items[n] for n in torch.randperm(len(items), generator=generator).tolist()])
        for kind, items in by_kind.items()
    }
    return [next(drawn[ablation.kind(item)]) for item in ranking]
