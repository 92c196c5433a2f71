"""How much of the model's behavior does a circuit of each size have? Curves with their nulls."""

from typing import TYPE_CHECKING

from saelab.patching.results import Comparison, Method
from saelab.plots import ACCENT, NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["comparison_figure"]

_COLORS = (ACCENT, POSITIVE, NEGATIVE, "#8a6fb0", "#b04a6d", "#7a8f2b", "#3f4a9e")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")
_NULL_DASHES = ("dot", "dash", "dashdot", "longdash")
_NULL_COLOR = "#8a9199"


def comparison_figure(found: Comparison, of: str = "faithfulness") -> "Figure":
    """Faithfulness, or completeness, against circuit size; nulls in gray with their range.

    Args:
        found: What to draw.
        of: "faithfulness" or "completeness".
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    nulls = [one for one in found.methods if one.is_null]
    for place, one in enumerate(nulls):
        _draw_null(figure, one, of, _NULL_DASHES[place % len(_NULL_DASHES)])
    for place, one in enumerate(method for method in found.methods if not method.is_null):
        _draw(figure, one, of, place)
    for level in (0.0, 1.0):
        figure.add_hline(y=level, line={"width": 1, "color": "#b9bec4", "dash": "dot"})
    figure.update_xaxes(title=f"{found.items} in the circuit (log scale)", type="log")
    figure.update_yaxes(title=f"{of} (1: the whole model)")
    figure.update_layout(
        template=template(),
        showlegend=True,
        height=420,
        legend={"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0},
    )
    return figure


def _draw(figure: "Figure", method: Method, of: str, place: int) -> None:
    color = _COLORS[place % len(_COLORS)]
    figure.add_scatter(
        x=list(method.sizes),
        y=method.mean(of),
        mode="lines+markers",
        name=method.name,
        line={"width": 2, "color": color},
        marker={"size": 8, "color": color, "symbol": _SYMBOLS[place % len(_SYMBOLS)]},
        hovertemplate="%{fullData.name}<br>size %{x}<br>%{y:.3f}<extra></extra>",
    )


def _draw_null(figure: "Figure", method: Method, of: str, dash: str) -> None:
    values = [[getattr(point, of) for point in one.points] for one in method.curves]
    whole = all(value is not None for one in values for value in one)
    sizes = list(method.sizes)
    if whole and len(values) > 1:
        by_size = list(zip(*values, strict=True))
        figure.add_scatter(
            x=[*sizes, *reversed(sizes)],
            y=[*(max(v) for v in by_size), *(min(v) for v in reversed(by_size))],
            mode="lines",
            fill="toself",
            fillcolor="rgba(138, 145, 153, 0.13)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
    figure.add_scatter(
        x=sizes,
        y=method.mean(of),
        mode="lines",
        name=f"{method.name} (null)",
        line={"width": 2, "color": _NULL_COLOR, "dash": dash},
        hovertemplate="%{fullData.name}<br>size %{x}<br>%{y:.3f}<extra></extra>",
    )
