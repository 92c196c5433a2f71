"""How do methods and their nulls compare on one behavior? The record that tables and pages show."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from saelab.errors import ConfigError
from saelab.files import write_json
from saelab.patching.curves import Curve
from saelab.patching.experiment import Cost

__all__ = ["Comparison", "Method"]


@final
@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to rank items, or one null of it."""

    name: str
    """As shown."""
    curves: Sequence[Curve]
    """One, or one for each draw of a null; over the same sizes."""
    is_null: bool = False
    """Whether it is there to be beaten."""
    cost: Cost | None = None
    """Of finding the ranking, without measuring the curve."""
    correlation: float | None = None
    """Spearman's, with the sizes of exact effects; -1 to 1."""

    def __post_init__(self) -> None:
        sizes = {tuple(point.size for point in one.points) for one in self.curves}
        if len(sizes) != 1:
            raise ConfigError(
                f"{self.name!r} has {len(self.curves)} curves over {len(sizes)} lists of sizes; "
                "give one or more over the same sizes."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the circuits."""
        return tuple(point.size for point in self.curves[0].points)

    def mean(self, of: str = "faithfulness") -> list[float | None]:
        """By size the mean over draws; None where it was not measured."""
        by_size = zip(*([getattr(p, of) for p in one.points] for one in self.curves), strict=True)
        return [None if None in values else statistics.fmean(values) for values in by_size]

    def areas(self) -> list[float]:
        """Area under each faithfulness curve."""
        return [one.area() for one in self.curves]


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods and nulls on the same items of the same model, on prompts held out from discovery."""

    behavior: str
    """What the prompts are about."""
    items: str
    """What circuits are made of: components, edges or latents."""
    n_items: int
    """How many there are."""
    model: str
    """Its name."""
    whole: float
    """Mean of what is measured, of the untouched model."""
    nothing: float
    """The same with every item taken away."""
    unit: str
    """Of what is measured."""
    stand_in: str
    """What is there in place of what was taken away."""
    n_discovery: int
    """Pairs of prompts that items were ranked on."""
    n_test: int
    """Pairs of prompts that circuits were measured on; disjoint from those."""
    methods: Sequence[Method]
    """The nulls last."""
    notes: Sequence[str] = field(default=())
    """What a reader must know."""

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns, and a row of text for each method."""
        columns = [
            "ranked by",
            "rank correlation",
            "area",
            "size at 80 %",
            "size at 90 %",
            "rest, at that size",
            "forward",
            "backward",
            "seconds",
        ]
        return columns, [_row(method) for method in self.methods]

    def markdown(self) -> list[str]:
        """The table as lines of Markdown."""
        columns, rows = self.table()
        lines = [columns, ["---"] * len(columns), *rows]
        return ["| " + " | ".join(line) + " |" for line in lines]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {"format": "saelab-circuit-comparison", "version": 1, **asdict(self)}

    def save(self, path: str | Path) -> Path:
        """Write it as JSON; returns the file."""
        write_json(path, self.to_json())
        return Path(path)


def _row(method: Method) -> list[str]:
    areas = method.areas()
    area = f"{statistics.fmean(areas):.2f}"
    if len(areas) > 1:
        area += f" ({min(areas):.2f} to {max(areas):.2f})"
    cost = method.cost
    means = method.mean()
    at_90 = _size_at(method, means, 0.9)
    place = None if at_90 is None else method.sizes.index(at_90)
    rest = None if place is None else method.mean("completeness")[place]
    return [
        method.name,
        "" if method.correlation is None else f"{method.correlation:+.2f}",
        area,
        _number(_size_at(method, means, 0.8)),
        _number(at_90),
        "" if rest is None else f"{rest:+.2f}",
        "" if cost is None else f"{cost.forward:,}",
        "" if cost is None else f"{cost.backward:,}",
        "" if cost is None else f"{cost.seconds:.1f}",
    ]


def _size_at(method: Method, means: Sequence[float | None], share: float) -> int | None:
    """The first size from which on all larger circuits are so faithful, in the mean over draws."""
    found = None
    for size, value in zip(reversed(method.sizes), reversed(means), strict=True):
        if value is None or value < share:
            break
        found = size
    return found


def _number(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
