"""Runs compared, as a page: the frontier first, then every measure, then every run."""

from collections.abc import Sequence
from pathlib import Path

from saelab.files import write_bytes, write_json
from saelab.pareto.figures import Curve, frontier_figure
from saelab.pareto.frontier import Pareto, Point
from saelab.report import Card, Grid, Panel, figures_page

__all__ = ["pareto_page", "save_pareto"]

MEASURES = (
    ("fvu", "FVU, share of variance missed", "Which misses least at the same sparsity?"),
    (
        "ce_recovered_mean",
        "CE recovered, against the mean",
        "Which keeps the model's predictions at the same sparsity?",
    ),
    (
        "ce_recovered_zero",
        "CE recovered, against zeros",
        "And against the weaker baseline?",
    ),
    ("dead_share", "dead share of latents", "How many latents are never used?"),
)


def pareto_page(found: Pareto) -> str:
    """A self-contained page."""
    points = found.points
    hooks = list(dict.fromkeys(point.hook or "an unnamed hook point" for point in points))
    return figures_page(
        eyebrow="Dictionaries compared",
        title="Which dictionary is better at the same sparsity?",
        lead=f"{len(points)} runs of {len({p.family for p in points})} families at "
        f"{', '.join(hooks)}. A point is a run; a line joins the means over seeds of one family "
        "at one width.",
        warnings=_doubts(points),
        cards=_cards(found),
        panels=[_panel(found, *measure) for measure in MEASURES if found.curves(measure[0])],
        tables=[],
        grids=[_grid(found)],
        notes=[
            "Lower FVU and lower L0 are better; a run is on the frontier if no other at its hook "
            "point is at least as good in both and better in one.",
            "Held-out numbers come from each run's evaluation.json; those of a run that was not "
            "evaluated are of its last training batch.",
        ],
    )


def save_pareto(found: Pareto, folder: str | Path) -> Path:
    """Write pareto.html and pareto.json; returns the page."""
    folder = Path(folder)
    write_json(folder / "pareto.json", found.to_json())
    write_bytes(folder / "pareto.html", pareto_page(found).encode())
    return folder / "pareto.html"


def _doubts(points: Sequence[Point]) -> list[str]:
    doubts = []
    trained = sum(not point.held_out for point in points)
    if trained:
        doubts.append(
            f"{trained} of {len(points)} runs have not been evaluated: their numbers are of one "
            "training batch. Run saelab evaluate on each."
        )
    if len({point.tokens for point in points}) > 1:
        low, high = min(p.tokens for p in points), max(p.tokens for p in points)
        doubts.append(f"Runs were trained on different budgets, {low:,} to {high:,} tokens.")
    return doubts


def _cards(found: Pareto) -> list[Card]:
    best = min(found.points, key=lambda point: point.fvu)
    cards = [
        Card(
            name="Runs",
            value=f"{len(found.points)}",
            note=f"{len(found.frontier)} on the frontier of L0 and FVU",
        ),
        Card(
            name="Lowest FVU",
            value=f"{best.fvu:.4f}",
            note=f"{best.family}, {best.d_sae:,} latents, L0 {best.l0:.1f}",
        ),
    ]
    measured = [p for p in found.points if p.ce_recovered_mean is not None]
    if measured:
        kept = max(measured, key=lambda p: p.ce_recovered_mean or 0.0)
        cards.append(
            Card(
                name="Most CE recovered, mean",
                value=f"{kept.ce_recovered_mean:.1%}",
                note=f"{kept.family}, {kept.d_sae:,} latents, L0 {kept.l0:.1f}",
            )
        )
    return cards


def _panel(found: Pareto, measure: str, name: str, title: str) -> Panel:
    shown = [point for point in found.points if getattr(point, measure) is not None]
    curves = []
    for curve, means in found.curves(measure).items():
        family, d_sae, _ = curve
        mine = [point for point in shown if point.curve == curve]
        curves.append(
            Curve(
                family=family,
                size=d_sae,
                means=means,
                points=[(p.l0, getattr(p, measure), p.run) for p in mine],
            )
        )
    seeds = len(shown) - sum(len(one.means) for one in curves)
    return Panel(
        title=title,
        caption=f"{len(shown)} runs by mean L0. Color and symbol are the family, dashes the "
        "width" + ("; lines pass through the means over seeds." if seeds else "."),
        figure=frontier_figure(curves, name, share=measure != "fvu"),
    )


def _grid(found: Pareto) -> Grid:
    frontier = found.frontier
    several_hooks = len({point.hook for point in found.points}) > 1
    columns = ["run", "family", *(["hook point"] if several_hooks else []), "latents", "seed"]
    columns += ["L0", "FVU", "CE rec., mean", "CE rec., zero", "dead", "tokens", "frontier"]
    rows = [
        [
            point.run,
            point.family,
            *([point.hook] if several_hooks else []),
            f"{point.d_sae:,}",
            "" if point.seed is None else str(point.seed),
            f"{point.l0:.1f}",
            f"{point.fvu:.4f}",
            _percent(point.ce_recovered_mean),
            _percent(point.ce_recovered_zero),
            _percent(point.dead_share),
            f"{point.tokens:,}",
            "yes" if point in frontier else "",
        ]
        for point in found.points
    ]
    return Grid(title="Every run", columns=columns, rows=rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
