"""Figures about runs: how they compare, and how each was trained. They know no model and no app."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saelab.plots import template
from saelab.run_summaries import RunSummary

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["runs_figure", "training_figure"]

CURVES = (
    ("fvu", "FVU"),
    ("l0", "L0"),
    ("dead_share", "dead share"),
    ("lr", "learning rate"),
)
"""Column of metrics.jsonl and what its panel is called."""


def runs_figure(runs: Sequence[RunSummary], measure: str = "fvu", name: str = "FVU") -> "Figure":
    """Sparsity against fidelity: L0 on one axis, a measure on the other, a point per run.

    Args:
        runs: Those without both numbers are left out.
        measure: Which number of `RunSummary.measured`.
        name: What it is called on the axis.
    """
    import plotly.graph_objects as go

    shown = [
        one for one in runs if one.measured("l0") is not None and one.measured(measure) is not None
    ]
    figure = go.Figure()
    largest = max((one.d_sae for one in shown), default=1)
    for family in sorted({one.family for one in shown}):
        some = [one for one in shown if one.family == family]
        figure.add_scatter(
            x=[one.measured("l0") for one in some],
            y=[one.measured(measure) for one in some],
            mode="markers+text",
            text=[family if place == 0 else "" for place in range(len(some))],
            textposition="top center",
            marker={
                "size": [9 + 15 * (one.d_sae / largest) ** 0.5 for one in some],
                "opacity": 0.78,
            },
            customdata=[[one.name, one.d_sae] for one in some],
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]:,} latents<br>"
            "L0 %{x:.1f}<br>" + name + " %{y:.3f}<extra></extra>",
        )
    figure.update_xaxes(title="L0, latents active per token")
    figure.update_yaxes(title=name, rangemode="tozero")
    figure.update_layout(template=template(), height=360)
    return figure


def training_figure(
    metrics: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> "Figure":
    """Training against tokens seen, a panel a curve, with what happened marked on it.

    Args:
        metrics: Rows of metrics.jsonl, each with `step` and `tokens`.
        events: Rows of events.jsonl, each with `step`, `kind` and `message`.
    """
    from plotly.subplots import make_subplots

    curves = [pair for pair in CURVES if any(row.get(pair[0]) is not None for row in metrics)]
    figure = make_subplots(
        rows=1,
        cols=max(1, len(curves)),
        horizontal_spacing=0.06,
        subplot_titles=[name for _, name in curves],
    )
    per_step = metrics[-1]["tokens"] / max(1, metrics[-1]["step"])
    for place, (key, _) in enumerate(curves, start=1):
        rows = [row for row in metrics if row.get(key) is not None]
        figure.add_scatter(
            x=[row["tokens"] for row in rows],
            y=[row[key] for row in rows],
            mode="lines",
            line={"width": 2, "color": "#2a9d8f"},
            hovertemplate="%{x:,} tokens<br>%{y:.4g}<extra></extra>",
            row=1,
            col=place,
        )
        for event in events:
            figure.add_vline(
                x=event["step"] * per_step,
                line_dash="dot",
                row=1,  # pyright: ignore[reportArgumentType] - its stub knows only "all"
                col=place,  # pyright: ignore[reportArgumentType]
            )
        top = max(row[key] for row in rows)
        figure.update_yaxes(
            rangemode="tozero",
            range=[0, 0.05] if key == "dead_share" and top < 0.05 else None,
            row=1,
            col=place,
        )
        figure.update_xaxes(title="training tokens", nticks=4, row=1, col=place)
    figure.update_annotations(font_size=13)
    figure.update_layout(template=template(), height=270, showlegend=False)
    return figure
