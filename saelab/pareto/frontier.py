"""Which dictionary is better at the same sparsity? Sparsity against fidelity, over finished runs.

A point is a run. Runs that differ in their seed alone share a setting; a curve joins the means of a
family's settings at one width and hook point, from sparse to dense. On top, a run is *on the
frontier* if no other of the same model and hook point has both a lower L0 and a lower FVU.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from saelab.errors import ConfigError
from saelab.files import read_json
from saelab.run_summaries import RunSummary, find_runs

__all__ = ["Pareto", "Point", "pareto"]


@final
@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    run: str
    """Its folder, relative to the one that was asked for."""
    family: str
    """The recipe's family, or the name of the activation function."""
    d_sae: int
    """Latents."""
    hook: str
    """Hook point."""
    setting: str
    """Everything that was asked for but the seed; equal in runs that are averaged."""
    seed: int | None
    """Of the start; None if it is not known."""
    tokens: int
    """Trained on."""
    l0: float
    """Latents active per token."""
    fvu: float
    """Share of variance missed."""
    dead_share: float | None
    """Latents that never fired, 0 to 1."""
    ce_recovered_zero: float | None
    """Of the loss that zeros in its place would cost; None without a model."""
    ce_recovered_mean: float | None
    """Of the loss that the mean in its place would cost; None without a model."""
    held_out: bool
    """Whether it was evaluated; otherwise these are numbers of the last training batch."""

    @property
    def curve(self) -> tuple[str, int, str]:
        """Family, width and hook point."""
        return self.family, self.d_sae, self.hook


@final
@dataclass(frozen=True, slots=True)
class Pareto:
    """Runs to compare."""

    points: list[Point]
    """By family, width and L0."""

    @property
    def frontier(self) -> list[Point]:
        """The points that none of the same hook point beats in both L0 and FVU."""
        return [
            one
            for one in self.points
            if not any(
                other.l0 <= one.l0 and other.fvu <= one.fvu and (other.l0, other.fvu) != _xy(one)
                for other in self.points
                if other.hook == one.hook
            )
        ]

    def curves(self, measure: str) -> dict[tuple[str, int, str], list[tuple[float, float]]]:
        """The mean (L0, measure) of each setting along each curve, by rising L0."""
        found: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
        for curve in dict.fromkeys(point.curve for point in self.points):
            settings: dict[str, list[tuple[float, float]]] = {}
            for point in self.points:
                value = getattr(point, measure)
                if point.curve == curve and value is not None:
                    settings.setdefault(point.setting, []).append((point.l0, value))
            means = [
                (statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group))
                for group in settings.values()
            ]
            found[curve] = sorted(means)
        return {curve: means for curve, means in found.items() if means}

    def to_json(self) -> dict[str, Any]:
        """Every run and its numbers."""
        rows = [{**asdict(point), "frontier": point in self.frontier} for point in self.points]
        return {"format": "saelab-pareto", "version": 1, "runs": rows}


def pareto(folders: Sequence[str | Path]) -> Pareto:
    """Read the runs in some folders.

    Args:
        folders: Sweeps, run folders, or folders of them.

    Raises:
        ConfigError: There is no run with numbers in them.
    """
    points = [
        point
        for folder in folders
        for run in find_runs(folder)
        if (point := _point(run, Path(folder), len(folders) > 1)) is not None
    ]
    if not points:
        raise ConfigError(
            f"No run in {', '.join(map(str, folders))} has both an L0 and an FVU. Name a folder "
            "of runs made by saelab train or saelab sweep."
        )
    return Pareto(sorted(points, key=lambda p: (p.hook, p.family, p.d_sae, p.l0)))


def _point(run: RunSummary, root: Path, several: bool) -> Point | None:
    l0, fvu = run.measured("l0"), run.measured("fvu")
    if l0 is None or fvu is None:
        return None
    made_by = _made_by(run.folder)
    settings = dict(made_by.get("settings") or {})
    seed = settings.pop("seed", None)
    fallback = {"k": run.k} if made_by else {"k": run.k, "tokens": run.budget}
    return Point(
        run=f"{root.name}/{run.name}" if several and run.name != root.name else run.name,
        family=str(made_by.get("family") or run.family),
        d_sae=run.d_sae,
        hook=run.hook,
        setting=json.dumps(settings or fallback, sort_keys=True),
        seed=None if seed is None else int(seed),
        tokens=run.tokens,
        l0=l0,
        fvu=fvu,
        dead_share=run.measured("dead_share"),
        ce_recovered_zero=run.measured("ce_recovered_zero"),
        ce_recovered_mean=run.measured("ce_recovered_mean"),
        held_out=bool(run.evaluation),
    )


def _made_by(folder: Path) -> Mapping[str, Any]:
    path = folder / "recipe.json"
    return read_json(path, "a run's recipe") if path.exists() else {}


def _xy(point: Point) -> tuple[float, float]:
    return point.l0, point.fvu
