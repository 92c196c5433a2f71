"""Figures of geometry: every one shows the null beside what was found."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from saelab.errors import DataError
from saelab.geometry.error_anatomy import DarkMatter
from saelab.geometry.error_origins import ErrorScaling
from saelab.geometry.galaxy import Galaxy
from saelab.geometry.lobes import LobeTest
from saelab.geometry.matching import Matching
from saelab.geometry.nulls import AgainstNull
from saelab.plots import ACCENT, NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "against_null_figure",
    "dark_matter_figure",
    "error_scaling_figure",
    "lobe_map",
    "matching_figure",
    "spectrum_figure",
]

QUIET = "#8c959d"
LOBE_COLORS = (ACCENT, POSITIVE, NEGATIVE, "#8a6fb0", "#b5485d", "#6b8e23", "#6b7280", "#b08d57")
MAX_POINTS = 4000


def against_null_figure(results: Mapping[str, AgainstNull], unit: str) -> "Figure":
    """Each number as a point, the draws of its null as a faint cloud in the same row.

    Args:
        results: Numbers of one unit, by name.
        unit: What they are, for the axis.
    """
    import plotly.graph_objects as go

    if not results:
        raise DataError("There is no number to draw.")
    figure = go.Figure()
    names = list(results)
    figure.add_scatter(
        x=[draw for one in results.values() for draw in one.draws],
        y=[name for name, one in results.items() for _ in one.draws],
        mode="markers",
        marker={"size": 9, "color": QUIET, "opacity": 0.35},
        text=[one.null for one in results.values() for _ in one.draws],
        hovertemplate="null: %{text}<br>%{x:.4f}<extra></extra>",
        name="null",
    )
    figure.add_scatter(
        x=[one.value for one in results.values()],
        y=names,
        mode="markers",
        marker={"size": 12, "color": ACCENT, "symbol": "diamond"},
        text=[str(one) for one in results.values()],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
        name="found",
    )
    figure.update_xaxes(title=unit)
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], title="")
    figure.update_layout(template=template(), showlegend=True, height=110 + 46 * len(names))
    return figure


def spectrum_figure(found: Galaxy) -> "Figure":
    """Eigenvalue against rank on logarithmic axes, with random directions and the fitted line."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, values, color in (
        ("random directions", found.null_spectrum, QUIET),
        ("decoder directions", found.spectrum, ACCENT),
    ):
        kept = [(rank, value) for rank, value in enumerate(values, start=1) if value > 1e-12]
        figure.add_scatter(
            x=[rank for rank, _ in kept],
            y=[value for _, value in kept],
            mode="lines",
            name=name,
            line={"width": 2, "color": color},
            hovertemplate=f"{name}<br>rank %{{x}}<br>variance %{{y:.3g}}<extra></extra>",
        )
    low, high = found.law.ranks
    logs = [math.log10(value) for value in found.spectrum[low - 1 : high]]
    ranks = [math.log10(rank) for rank in range(low, high + 1)]
    offset = (sum(logs) - found.law.slope * sum(ranks)) / len(ranks)
    figure.add_scatter(
        x=[low, high],
        y=[10 ** (offset + found.law.slope * math.log10(rank)) for rank in (low, high)],
        mode="lines",
        name=f"slope {found.law.slope:.3f} over ranks {low} to {high}",
        line={"dash": "dot", "color": POSITIVE, "width": 3},
        hoverinfo="skip",
    )
    figure.update_xaxes(type="log", title="rank of the eigenvalue (log scale)")
    figure.update_yaxes(type="log", title="eigenvalue of the covariance (log scale)")
    figure.update_layout(template=template(), showlegend=True)
    return figure


def lobe_map(test: LobeTest, directions: torch.Tensor) -> "Figure":
    """Two principal components of the directions, a point a latent, colored by lobe.

    Args:
        test: Which latents, and their lobes.
        directions: Decoder rows of the whole dictionary.
    """
    import plotly.graph_objects as go

    unit = torch.nn.functional.normalize(directions[test.latents].detach().float(), dim=1)
    centered = unit - unit.mean(0)
    _, _, axes = torch.svd_lowrank(centered, q=min(6, *centered.shape), niter=4)
    places = centered @ axes[:, :2]
    step = max(1, -(-len(places) // MAX_POINTS))
    figure = go.Figure()
    for lobe in range(int(test.lobes.max()) + 1):
        rows = (test.lobes == lobe).nonzero().squeeze(1)[::step]
        figure.add_scattergl(
            x=places[rows, 0].tolist(),
            y=places[rows, 1].tolist(),
            mode="markers",
            name=f"lobe {lobe} ({int((test.lobes == lobe).sum()):,})",
            marker={"size": 4, "opacity": 0.6, "color": LOBE_COLORS[lobe % len(LOBE_COLORS)]},
            customdata=test.latents[rows].tolist(),
            hovertemplate="latent %{customdata}<extra>lobe " + str(lobe) + "</extra>",
        )
    figure.update_xaxes(title="first principal component of the unit directions")
    figure.update_yaxes(title="second")
    figure.update_layout(template=template(), showlegend=True)
    return figure


def matching_figure(found: Matching, n_bins: int = 40) -> "Figure":
    """How alike one-to-one partners are: latents per bin, with the null's mean as a line."""
    import plotly.graph_objects as go

    values = found.similarity[found.partner >= 0].clamp(-1, 1)
    edges = torch.linspace(-1, 1, n_bins + 1)
    counts = torch.histc(values.float(), n_bins, -1, 1).tolist()
    figure = go.Figure(
        go.Bar(
            x=((edges[1:] + edges[:-1]) / 2).tolist(),
            y=counts,
            width=0.92 * 2 / n_bins,
            hovertemplate="%{x:.2f}<br>%{y:,} latents<extra></extra>",
        )
    )
    figure.add_vline(x=found.mcc.mean, line_dash="dot", line_color=QUIET)
    figure.add_annotation(
        x=found.mcc.mean,
        y=1,
        yref="paper",
        yanchor="bottom",
        showarrow=False,
        text=f"null mean {found.mcc.mean:.2f}",
    )
    figure.update_xaxes(title="similarity of a latent and its partner", range=[-1.02, 1.02])
    figure.update_yaxes(title="latents", tickformat=",")
    figure.update_layout(template=template(), showlegend=False)
    return figure


def dark_matter_figure(found: Mapping[str, DarkMatter]) -> "Figure":
    """FVU in its linear and nonlinear part, a bar a dictionary; pursuit beside it if measured."""
    import plotly.graph_objects as go

    names: list[str] = []
    parts: list[tuple[float, float]] = []
    for name, one in found.items():
        names.append(name)
        parts.append((one.fvu - one.fvu_nonlinear, one.fvu_nonlinear))
        if one.pursuit is not None:
            names.append(f"{name}, codes by pursuit")
            whole, nonlinear = one.pursuit["fvu"], one.pursuit["fvu_nonlinear"]
            parts.append((whole - nonlinear, nonlinear))
    if not names:
        raise DataError("There is no error to draw.")
    figure = go.Figure()
    for place, (part, color) in enumerate((("linear", ACCENT), ("nonlinear", POSITIVE))):
        figure.add_bar(
            x=names,
            y=[pair[place] for pair in parts],
            name=part,
            marker_color=color,
            hovertemplate="%{x}<br>" + part + " %{y:.4f}<extra></extra>",
        )
    figure.update_layout(barmode="relative", template=template(), showlegend=True)
    figure.update_xaxes(title="dictionary")
    figure.update_yaxes(title="FVU (share of variance missed)", rangemode="tozero")
    return figure


def error_scaling_figure(found: ErrorScaling) -> "Figure":
    """|e|^2 of each token under the widest dictionary against the narrowest."""
    import plotly.graph_objects as go

    step = max(1, -(-found.errors.shape[1] // MAX_POINTS))
    first, last = (_positive(found.errors[row, ::step].tolist()) for row in (0, -1))
    low, high = min(*first, *last), max(*first, *last)
    figure = go.Figure()
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scattergl(
        x=first,
        y=last,
        mode="markers",
        marker={"size": 4, "opacity": 0.4},
        hovertemplate="%{x:.3g} to %{y:.3g}<extra></extra>",
    )
    for axis, width in (
        (figure.update_xaxes, found.widths[0]),
        (figure.update_yaxes, found.widths[-1]),
    ):
        axis(type="log", title=f"squared error with {width:,} latents (log scale)")
    figure.update_layout(template=template(), showlegend=False)
    return figure


def _positive(values: Sequence[float]) -> list[float]:
    return [max(value, 1e-12) for value in values]
