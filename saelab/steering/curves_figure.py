"""Which way of learning a push learns faster? Losses by update, a band over the seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from saelab.errors import ConfigError
from saelab.plots import template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["learning_figure", "smoothed"]

COLORS = ("#3b6fd4", "#c2571a", "#2f8f5b", "#8a4fb5")
NO_PREFERENCE = 0.6931


def learning_figure(curves: Mapping[str, Sequence[Sequence[float]]], window: int = 8) -> "Figure":
    """A line per way of learning: the mean over seeds, with the lowest and highest around it.

    Args:
        curves: Name -> the losses of every seed, nats, one per update.
        window: Updates over which each loss is averaged; updates of few pairs are noisy.

    Raises:
        ConfigError: There is no curve, or seeds of one name have different lengths.
    """
    import plotly.graph_objects as go

    if not curves or any(len({len(one) for one in some}) != 1 for some in curves.values()):
        raise ConfigError("Learning curves need a loss per update, as many of every seed.")
    figure = go.Figure()
    for place, (name, some) in enumerate(curves.items()):
        seeds = [smoothed(one, window) for one in some]
        columns = list(zip(*seeds, strict=True))
        steps = list(range(1, len(columns) + 1))
        color = COLORS[place % len(COLORS)]
        low, high = [min(one) for one in columns], [max(one) for one in columns]
        figure.add_scatter(
            x=[*steps, *reversed(steps)], y=[*high, *reversed(low)], fill="toself", mode="none",
            fillcolor=color, opacity=0.18, hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        figure.add_scatter(
            x=steps, y=[sum(one) / len(one) for one in columns], mode="lines", name=name,
            line={"color": color, "width": 2.4}, legendgroup=name,
            hovertemplate="update %{x}: %{y:.3f} nats<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.add_hline(
        y=NO_PREFERENCE, line={"dash": "dot", "color": "#8b949c", "width": 1},
        annotation_text="no preference", annotation_position="top right",
    )  # fmt: skip
    figure.update_xaxes(title=f"update (each a mean over {window})", rangemode="tozero")
    figure.update_yaxes(title="loss on what teaches, nats")
    figure.update_layout(
        template=template(), height=380, legend={"orientation": "h", "y": -0.22}, showlegend=True
    )
    return figure


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` values, over fewer at the beginning.

    >>> smoothed([4.0, 2.0, 0.0], 2)
    [4.0, 3.0, 1.0]
    """
    found = []
    for end in range(1, len(values) + 1):
        some = values[max(0, end - window) : end]
        found.append(sum(some) / len(some))
    return found
