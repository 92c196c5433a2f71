"""What does a push do and cost, the longer it is? Three panels over the length of the push."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from saelab.plots import ACCENT, template
from saelab.steering.figures import CONTROL
from saelab.steering.results import Measured, SteeringReport

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["strength_figure"]

COLORS = (ACCENT, "#c2571a", "#3b6fd4", "#8a4fb5")
"""Of the directions that are no controls, in their order."""


def strength_figure(report: SteeringReport) -> "Figure":
    """The concept's gain, KL on held-out text and perplexity against the length of the push.

    Directions are drawn full, the random direction and the random latents dashed and gray.
    """
    from plotly.subplots import make_subplots

    panels: list[tuple[str, Callable[[Measured], float]]] = [
        (f"gain of the words, {report.concept['unit']}", report.gain),
        ("KL on other text, nats", lambda one: one.kl_held_out),
        ("perplexity of what is written", lambda one: one.perplexity),
    ]
    figure = make_subplots(
        rows=1, cols=3, horizontal_spacing=0.09, subplot_titles=[name for name, _ in panels]
    )
    directions = [curve.name for curve in report.curves if not curve.control]
    for column, (name, value) in enumerate(panels, start=1):
        for curve in report.curves:
            points = sorted([report.clean, *curve.points], key=lambda one: one.strength)
            figure.add_scatter(
                x=[one.strength for one in points],
                y=[value(one) for one in points],
                mode="lines+markers",
                name=curve.name,
                legendgroup=curve.name,
                showlegend=column == 1,
                line={"width": 1.6, "dash": "dot", "color": CONTROL}
                if curve.control
                else {
                    "width": 2.6,
                    "color": COLORS[directions.index(curve.name) % len(COLORS)],
                },
                marker={
                    "size": 6,
                    "symbol": "diamond-open" if "latent" in curve.name else "circle-open",
                }
                if curve.control
                else {"size": 7},
                hovertemplate="%{x:g} times the mean |h|<br>" + name + " %{y:.3g}"
                "<extra>%{fullData.name}</extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="length of the push, multiples of the mean |h|", rangemode="tozero")
    figure.update_layout(
        template=template(), height=330, showlegend=True,
        legend={"orientation": "h", "y": -0.28, "yanchor": "top"},
    )  # fmt: skip
    return figure
