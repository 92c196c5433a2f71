"""How do dictionaries compare at the same sparsity? A figure of L0 against a measure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from saelab.plots import ACCENT, NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Curve", "frontier_figure"]


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """One family at one width, in a figure of sparsity against fidelity."""

    family: str
    """Decides the color and the symbol."""
    size: int
    """Latents; decides the dash of the line and the size of the symbol."""
    means: Sequence[tuple[float, float]]
    """L0 and measure, averaged over seeds; joined by a line."""
    points: Sequence[tuple[float, float, str]]
    """L0, measure and name of every run."""


COLORS = (ACCENT, POSITIVE, NEGATIVE, "#8a6fb0", "#6b7280", "#b04a6d", "#7a8f2b", "#3f4a9e")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
DASHES = ("dot", "solid", "dash", "dashdot", "longdash")


def frontier_figure(curves: Sequence[Curve], name: str, *, share: bool = True) -> "Figure":
    """Sparsity against fidelity: a point per run, a line through the means over seeds.

    Args:
        curves: Drawn in this order.
        name: What is measured, with its unit, for the vertical axis.
        share: Whether it is a share, shown in percent.
    """
    import plotly.graph_objects as go

    families = list(dict.fromkeys(curve.family for curve in curves))
    sizes = sorted({curve.size for curve in curves})
    dashes = {size: DASHES[at % len(DASHES)] for at, size in enumerate(sizes)}
    if len(sizes) == 1:
        dashes[sizes[0]] = "solid"
    figure = go.Figure()
    for curve in curves:
        place = families.index(curve.family)
        color = COLORS[place % len(COLORS)]
        figure.add_scatter(
            x=[l0 for l0, _ in curve.means],
            y=[value for _, value in curve.means],
            mode="lines",
            line={"width": 2, "color": color, "dash": dashes[curve.size]},
            opacity=0.75,
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=[l0 for l0, _, _ in curve.points],
            y=[value for _, value, _ in curve.points],
            mode="markers",
            marker={
                "size": 5 + 3 * (curve.size / sizes[-1]),
                "color": color,
                "symbol": SYMBOLS[place % len(SYMBOLS)],
                "opacity": 0.75,
            },
            customdata=[run for _, _, run in curve.points],
            hovertemplate="%{customdata}<br>L0 %{x:.1f}<br>%{y"
            + (":.2%" if share else ":.4f")
            + "}<extra></extra>",
            showlegend=False,
        )
    _explain(figure, families, dashes if len(sizes) > 1 else {})
    _axes(figure, [l0 for curve in curves for l0, _, _ in curve.points], name, share)
    return figure


def _explain(figure: "Figure", families: Sequence[str], dashes: Mapping[int, str]) -> None:
    """One entry of the legend for each family, and one for each width."""
    for place, family in enumerate(families):
        mark = {
            "size": 9,
            "color": COLORS[place % len(COLORS)],
            "symbol": SYMBOLS[place % len(SYMBOLS)],
        }
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=family)
    for size, dash in dashes.items():
        line = {"width": 2, "dash": dash, "color": "#8a9199"}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=f"{size:,} latents")


def _axes(figure: "Figure", l0s: Sequence[float], name: str, share: bool) -> None:
    low, high = min(l0s, default=1.0), max(l0s, default=1.0)
    figure.update_xaxes(title="L0, latents active per token")
    if low > 0:
        powers = range(math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 2)
        figure.update_xaxes(
            title="L0, latents active per token (log scale)",
            type="log",
            tickvals=[2.0**power for power in powers],
            ticktext=[f"{2.0**power:g}" for power in powers],
            range=[math.log10(low / 1.15), math.log10(high * 1.15)],
        )
    figure.update_yaxes(title=name, tickformat=".4~p" if share else None)
    figure.update_layout(
        template=template(),
        showlegend=True,
        height=390,
        legend={"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0},
    )
