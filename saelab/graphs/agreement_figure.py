"""Does the model do what was predicted? Measured against predicted effects, point by point."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from saelab.graphs.texts import one_line
from saelab.plots import NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["agreement_figure"]


def agreement_figure(
    names: Sequence[str],
    direct: Sequence[float],
    paths: Sequence[float],
    measured: Sequence[float],
    unit: str = "logits",
) -> "Figure":
    """Every change once by its direct edges and once by all paths; on the line both are right.

    Args:
        names: What was changed, not escaped.
        direct: Predicted by the edges that lead straight to the answer.
        paths: Predicted by all paths between latents.
        measured: What the running model did.
        unit: Of all three.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    every = [*direct, *paths, *measured, 0.0]
    low, high = min(every), max(every)
    room = 0.08 * (high - low) or 1.0
    ends = [low - room, high + room]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", hoverinfo="skip", showlegend=False,
        line={"dash": "dot", "width": 1, "color": "#98a1a9"},
    )  # fmt: skip
    for values, name, symbol, hue in (
        (direct, "direct edges", "circle-open", NEGATIVE),
        (paths, "all paths", "diamond", POSITIVE),
    ):
        figure.add_scatter(
            x=list(values),
            y=list(measured),
            mode="markers",
            name=name,
            marker={
                "symbol": symbol,
                "size": 9,
                "color": hue,
                "line": {"width": 1.6, "color": hue},
            },
            hovertext=[escape(one_line(one, 60)) for one in names],
            hovertemplate="%{hovertext}<br>predicted %{x:+.3g}<br>measured %{y:+.3g}"
            f"<extra>{name}</extra>",
        )
    figure.update_xaxes(title=f"predicted change, {unit}", range=ends)
    figure.update_yaxes(title=f"measured change, {unit}", range=ends)
    figure.update_layout(
        template=template(),
        height=320,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.12},
    )
    return figure
