"""How do cost and effect of steering look? Two figures; controls are gray and dashed in both."""

from typing import TYPE_CHECKING, Any

from saelab.errors import ConfigError
from saelab.plots import template
from saelab.steering.results import Curve, Measured, SteeringReport

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["COSTS", "cost_against_effect", "effect_against_strength"]

COSTS = {
    "kl_held_out": "KL from the unsteered model on held-out text, nats",
    "ce_held_out": "rise of cross-entropy on held-out text, nats",
    "perplexity": "perplexity of the text under the unsteered model",
    "kl": "KL from the unsteered model on its own text, nats",
    "repetition": "share of repeated bigrams",
}
"""What may be drawn as the cost, with its axis title."""
CONTROL = "#8b949c"


def cost_against_effect(report: SteeringReport, cost: str = "kl_held_out") -> "Figure":
    """A line per direction from the unsteered model outwards, a mark per strength.

    Up is more of the concept, right is more cost: a direction is better than a control where its
    line runs above the control's.

    Raises:
        ConfigError: There is no such cost.
    """
    if cost not in COSTS:
        raise ConfigError(f"cost={cost!r} is none of {', '.join(COSTS)}.")

    def x(point: Measured) -> float:
        return report.ce_change(point) if cost == "ce_held_out" else getattr(point, cost)

    figure = _figure(report, x)
    figure.update_xaxes(title=COSTS[cost])
    return figure


def effect_against_strength(report: SteeringReport) -> "Figure":
    """The concept's gain by the length of the push."""
    figure = _figure(report, lambda point: point.strength)
    figure.update_xaxes(title="length of the push, multiples of the mean |h|")
    return figure


def _figure(report: SteeringReport, x: Any) -> "Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    for curve in report.curves:
        points = sorted([report.clean, *curve.points], key=lambda one: one.strength)
        figure.add_scatter(
            x=[x(one) for one in points],
            y=[report.gain(one) for one in points],
            name=curve.name,
            mode="lines+markers",
            customdata=[_hover(report, curve, one) for one in points],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
            **_style(curve),
        )
    unit = str(report.concept["unit"])
    figure.update_yaxes(title=f"gain of {report.concept['name']}, {unit}")
    figure.update_layout(
        template=template(), showlegend=True, legend={"orientation": "h", "y": -0.2}
    )
    return figure


def _style(curve: Curve) -> dict[str, Any]:
    if not curve.control:
        return {"line": {"width": 2.5}, "marker": {"size": 8}}
    return {
        "line": {"width": 1.5, "dash": "dot", "color": CONTROL},
        "marker": {"size": 6, "color": CONTROL, "symbol": "circle-open"},
    }


def _hover(report: SteeringReport, curve: Curve, one: Measured) -> str:
    own = f" ({one.length / curve.norm:.3g} of its own units)" if curve.norm else ""
    return (
        f"strength {one.strength:.3g}{own}<br>gain {report.gain(one):.3g}<br>"
        f"held out: CE {report.ce_change(one):+.3g}, KL {one.kl_held_out:.3g} nats<br>"
        f"perplexity {one.perplexity:.3g}, repeated {one.repetition:.0%}<br>"
        f"score {report.score(one):.2f} of 2"
    )
