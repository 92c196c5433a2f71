"""The figures: plotly only, one template, one signed color scale, units on every axis.

Functions take plain numbers and return a figure; nothing here opens a file or a model.

Colors read the same to color-blind eyes: blue is negative, orange is positive, the background is
zero. Single series use the accent; several series are told apart by label as well as by color.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from saelab.errors import DataError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "ACCENT",
    "NEGATIVE",
    "POSITIVE",
    "SIGNED_SCALE",
    "count_histogram",
    "density_figure",
    "neighbor_figure",
    "template",
    "training_curves",
]

ACCENT = "#0e7c72"
NEGATIVE = "#2c6fbb"
POSITIVE = "#d9730d"
SIGNED_SCALE = [
    [0.0, "#1f5aa6"],
    [0.25, "#7fb0de"],
    [0.5, "#f5f4f1"],
    [0.75, "#f0b073"],
    [1.0, "#c95f06"],
]
_SERIES = [POSITIVE, NEGATIVE, "#8a6fb0", "#6b7280"]
_FONT = 'Inter, "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif'
_LIGHT = {
    "accent": ACCENT,
    "ink": "#1d2126",
    "quiet": "#667079",
    "grid": "#e7e6e1",
    "surface": "#ffffff",
}
_DARK = {
    "accent": "#45b3a5",
    "ink": "#e8e6e1",
    "quiet": "#98a1a9",
    "grid": "#2b3036",
    "surface": "#1a1d21",
}


def template(dark: bool = False) -> dict[str, Any]:
    """The template every figure shares, as plotly JSON."""
    shade = _DARK if dark else _LIGHT
    axis = {
        "gridcolor": shade["grid"],
        "linecolor": shade["grid"],
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"font": {"size": 12.5, "color": shade["quiet"]}, "standoff": 12},
        "tickfont": {"size": 12, "color": shade["quiet"]},
    }
    return {
        "layout": {
            "font": {"family": _FONT, "size": 13, "color": shade["ink"]},
            "colorway": [shade["accent"], *_SERIES],
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 60, "r": 40, "t": 26, "b": 48},
            "xaxis": {**axis, "showgrid": False, "showline": True},
            "yaxis": axis,
            "bargap": 0.08,
            "hoverlabel": {
                "font": {"family": _FONT, "size": 12.5, "color": shade["ink"]},
                "bgcolor": shade["surface"],
                "bordercolor": shade["grid"],
            },
            "showlegend": False,
            "colorscale": {"diverging": SIGNED_SCALE},
            "annotationdefaults": {"font": {"size": 12.5, "color": shade["quiet"]}},
            "shapedefaults": {"line": {"color": shade["quiet"], "width": 1}},
        }
    }


def density_figure(edges: Sequence[float], counts: Sequence[int], n_tokens: int) -> "Figure":
    """How often latents fire: latents per bin of log10 density.

    Args:
        edges: Bin edges in log10(share of tokens); one more than the counts.
        counts: Latents per bin.
        n_tokens: Tokens measured, for the axis title.
    """
    import plotly.graph_objects as go

    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    widths = [high - low for low, high in pairwise(edges)]
    names = [f"1 in {10**-middle:,.3g} tokens" for middle in middles]
    figure = go.Figure(
        go.Bar(
            x=middles,
            y=list(counts),
            width=[0.92 * width for width in widths],
            customdata=names,
            hovertemplate="about %{customdata}<br>%{y:,} latents<extra></extra>",
        )
    )
    decades = range(round(edges[0]), 1)
    figure.update_xaxes(
        tickvals=list(decades),
        ticktext=["every token" if d == 0 else f"1 in {10**-d:,}" for d in decades],
        title=f"density, share of {n_tokens:,} tokens (log scale)",
        range=[edges[0], 0.05],
        ticklabeloverflow="allow",
    )
    figure.update_yaxes(title="latents", tickformat=",")
    return _finished(figure)


def count_histogram(
    counts: Sequence[int], *, unit: str, weight: str, mean: float | None = None
) -> "Figure":
    """A histogram of a whole number, such as L0 per token.

    Args:
        counts: How often 0, 1, 2, ... occurred.
        unit: What the number counts, for the horizontal axis.
        weight: What was counted, for the vertical axis.
        mean: Drawn as a line with its label.
    """
    import plotly.graph_objects as go

    step = max(1, -(-len(counts) // 80))
    sums = [sum(counts[start : start + step]) for start in range(0, len(counts), step)]
    first = list(range(0, len(counts), step))
    names = [str(low) if step == 1 else f"{low} to {low + step - 1}" for low in first]
    figure = go.Figure(
        go.Bar(
            x=[low + (step - 1) / 2 for low in first],
            y=sums,
            width=0.92 * step,
            customdata=names,
            hovertemplate="%{customdata} " + unit + "<br>%{y:,} " + weight + "<extra></extra>",
        )
    )
    figure.update_xaxes(title=unit, rangemode="tozero")
    figure.update_yaxes(title=weight, tickformat=",")
    if mean is not None:
        figure.add_vline(x=mean, line_dash="dot")
        figure.add_annotation(
            x=mean, y=1, yref="paper", text=f"mean {mean:.1f}", showarrow=False, yanchor="bottom"
        )
    return _finished(figure)


def neighbor_figure(cosines: Sequence[float], n_bins: int = 40) -> "Figure":
    """How close each latent's nearest decoder direction is: latents per bin of signed cosine."""
    import plotly.graph_objects as go

    counts = [0] * n_bins
    for value in cosines:
        counts[min(n_bins - 1, int((max(-1.0, min(1.0, value)) + 1) / 2 * n_bins))] += 1
    middles = [-1 + (2 * place + 1) / n_bins for place in range(n_bins)]
    figure = go.Figure(
        go.Bar(
            x=middles,
            y=counts,
            width=0.92 * 2 / n_bins,
            marker_color=[NEGATIVE if middle < 0 else POSITIVE for middle in middles],
            hovertemplate="cosine %{x:.2f}<br>%{y:,} latents<extra></extra>",
        )
    )
    figure.update_xaxes(
        title="cosine with the nearest other decoder direction", range=[-1.02, 1.02]
    )
    figure.update_yaxes(title="latents", tickformat=",")
    return _finished(figure)


CURVES = (
    ("loss", "loss", "linear"),
    ("fvu", "FVU (share of variance missed)", "linear"),
    ("l0", "L0 (latents per token)", "linear"),
    ("dead_share", "dead share of latents", "linear"),
    ("lr", "learning rate", "linear"),
)


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> "Figure":
    """Training against tokens seen: one panel each for loss, FVU, L0, dead share and rate.

    Args:
        metrics: Rows of `metrics.jsonl`; each has `tokens` and any of loss, fvu, l0, dead_share,
            lr. A curve no row has is left out.

    Raises:
        DataError: No row has anything to draw.
    """
    from plotly.subplots import make_subplots

    curves = [
        (key, name, kind)
        for key, name, kind in CURVES
        if any(row.get(key) is not None for row in metrics)
    ]
    if not curves:
        raise DataError(
            f"None of the {len(metrics)} metrics rows has {', '.join(key for key, _, _ in CURVES)}."
            " Pass the rows of a run's metrics.jsonl."
        )
    figure = make_subplots(rows=len(curves), cols=1, shared_xaxes=True, vertical_spacing=0.035)
    for place, (key, name, kind) in enumerate(curves, start=1):
        rows = [row for row in metrics if row.get(key) is not None]
        figure.add_scatter(
            x=[row["tokens"] for row in rows],
            y=[row[key] for row in rows],
            mode="lines",
            line={"width": 2},
            hovertemplate="%{x:,} tokens<br>%{y:.4g}<extra>" + key + "</extra>",
            row=place,
            col=1,
        )
        figure.update_yaxes(title=name, type=kind, rangemode="tozero", row=place, col=1)
    figure.update_xaxes(title="training tokens", row=len(curves), col=1)
    figure.update_layout(height=170 * len(curves) + 60)
    return _finished(figure)


def _finished(figure: "Figure") -> "Figure":
    figure.update_layout(template=template(), showlegend=False)
    return figure
