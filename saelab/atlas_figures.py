"""Figures about an atlas: one latent's activations, where it fires, and latents over a text.

Blue is below zero, orange above, as everywhere; a figure's data are plain records of the atlas.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from saelab.atlas import Histogram, LatentCard, TailCard
from saelab.plots import NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["activation_figure", "logit_figure", "position_figure", "prompt_figure", "quoted"]


def activation_figure(card: LatentCard) -> "Figure":
    """How strong a latent is where it fires: both sides of zero on one axis, strata marked."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for tail in card.tails:
        if not tail.count:
            continue
        edges = tail.histogram.edges
        figure.add_bar(
            x=[tail.sign * (low + high) / 2 for low, high in pairwise(edges)],
            y=list(tail.histogram.counts),
            width=[0.94 * (high - low) for low, high in pairwise(edges)],
            marker_color=POSITIVE if tail.sign > 0 else NEGATIVE,
            hovertemplate="activation about %{x:.3g}<br>%{y:,} tokens<extra></extra>",
        )
        for interval in tail.intervals[1:]:
            figure.add_vline(x=tail.sign * interval.low, line_dash="dot", opacity=0.5)
    figure.update_xaxes(title="activation (dotted: equal intervals)")
    figure.update_yaxes(title="tokens (log scale)", type="log", dtick=1)
    figure.update_layout(template=template(), height=230, showlegend=False, bargap=0)
    return figure


def position_figure(tails: Sequence[TailCard]) -> "Figure":
    """Where in a row of tokens it fires."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for tail in tails:
        n = max(1, len(tail.positions))
        figure.add_scatter(
            x=[100 * (place + 0.5) / n for place in range(n)],
            y=[100 * share for share in tail.positions],
            mode="lines",
            line={"width": 2, "shape": "hvh", "color": POSITIVE if tail.sign > 0 else NEGATIVE},
            hovertemplate="%{x:.0f}% into the row<br>fires on %{y:.3g}% of tokens<extra></extra>",
        )
    figure.update_xaxes(title="position in the row, %", range=[0, 100])
    figure.update_yaxes(title="fires on, % of tokens", rangemode="tozero")
    figure.update_layout(template=template(), height=200, showlegend=False)
    return figure


def logit_figure(histogram: Histogram) -> "Figure":
    """Logit effects of one positive unit over the whole vocabulary."""
    import plotly.graph_objects as go

    edges = histogram.edges
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    figure = go.Figure(
        go.Bar(
            x=middles,
            y=list(histogram.counts),
            width=[0.94 * (high - low) for low, high in pairwise(edges)],
            marker_color=[POSITIVE if x > 0 else NEGATIVE for x in middles],
            hovertemplate="about %{x:+.3g} logits<br>%{y:,} tokens<extra></extra>",
        )
    )
    figure.update_xaxes(title="logit effect of one unit, relative to the vocabulary's mean")
    figure.update_yaxes(title="tokens (log scale)", type="log", dtick=1)
    figure.update_layout(template=template(), height=200, showlegend=False, bargap=0)
    return figure


def prompt_figure(
    tokens: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float]]],
    missed: Sequence[float] = (),
) -> "Figure":
    """A strip of the strongest latents over a text: one row a latent, one column a token.

    Args:
        tokens: The text; only their places are used as coordinates.
        rows: Name of each latent and its activation on every token, strongest first.
        missed: Error share of each token, drawn under the strip.
    """
    import plotly.graph_objects as go

    tops = [max((abs(v) for v in values), default=1.0) or 1.0 for _, values in rows]
    figure = go.Figure(
        go.Heatmap(
            z=[[v / top for v in values] for (_, values), top in zip(rows, tops, strict=True)],
            customdata=[[f"{v:.3g}" for v in values] for _, values in rows],
            x=list(range(len(tokens))),
            y=[quoted(name) for name, _ in rows],
            zmid=0,
            zmin=-1,
            zmax=1,
            colorscale=[[0, NEGATIVE], [0.5, "rgba(128,128,128,0.06)"], [1, POSITIVE]],
            showscale=False,
            xgap=1,
            ygap=2,
            hovertemplate="%{y}<br>token %{x}: activation %{customdata}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, title="")
    figure.update_xaxes(
        tickvals=list(range(len(tokens))),
        ticktext=[_tick(token) for token in tokens],
        tickangle=-50,
        showline=False,
    )
    height = 120 + 24 * len(rows)
    if len(missed):
        _missed_bars(figure, missed, 64 / height)
    figure.update_layout(template=template(), height=height + 64 * bool(len(missed)))
    return figure


def _missed_bars(figure: "Figure", missed: Sequence[float], share: float) -> None:
    """Bars of the error share under a strip, on the same columns."""
    figure.add_bar(
        x=list(range(len(missed))),
        y=[100 * one for one in missed],
        yaxis="y2",
        width=0.86,
        marker_color="#8b949c",
        hovertemplate="token %{x}: the dictionary misses %{y:.1f}%<extra></extra>",
    )
    top = 100 * max(missed)
    figure.update_layout(
        yaxis={"domain": [share, 1.0]},
        yaxis2={
            "domain": [0.0, 0.74 * share],
            "range": [0, 1.1 * top or 1.0],
            "tickvals": [top],
            "ticktext": [f"missed, up to {top:.0f}%"],
            "showgrid": False,
        },
        xaxis={"anchor": "y2"},
    )


def quoted(text: str, longest: int = 48) -> str:
    """Text for a figure: plotly reads a little HTML there, so its signs are replaced.

    >>> quoted("<b>war</b> & peace", 12)
    '&lt;b&gt;war&lt;/b&gt; …'
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def _tick(token: str) -> str:
    """A token as an axis label."""
    return quoted(token.strip() or "·", 14)
