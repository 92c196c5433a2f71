"""The pictures of two sets of documents: which latents differ, by how much, and which could not."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saelab.atlas_figures import quoted
from saelab.documents import Comparison, Difference
from saelab.plots import NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["differences_figure", "end_name", "shares_figure"]

QUIET = "#98a1a9"


def end_name(latent: int, sign: int, two_ended: bool) -> str:
    """An end as an address and a table write it.

    >>> end_name(7, -1, True), end_name(7, 1, True), end_name(7, 1, False)
    ('7-', '7+', '7')
    """
    return f"{latent}{('-' if sign < 0 else '+') if two_ended else ''}"


def differences_figure(
    found: Sequence[Difference],
    names: Sequence[str],
    sides: tuple[str, str],
    lit: int | None = None,
) -> "Figure":
    """Which latents differ most? A bar each, to the side that has more of it.

    The `customdata` of a bar is its place in `found`.

    Args:
        found: Differences, in the order they are drawn.
        names: What the latents are called.
        sides: What A and B are called; A is to the right.
        lit: Place of the one that was chosen.
    """
    import plotly.graph_objects as go

    rows = list(range(len(found)))
    values = [100 * one.difference for one in found]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=rows,
            orientation="h",
            width=0.7,
            marker={
                "color": [
                    _side(value, dim=lit not in (None, row)) for row, value in enumerate(values)
                ]
            },
            customdata=rows,
            hovertext=[
                f"{quoted(name)}<br>{one.share_a:.1%} of {quoted(sides[0])}<br>"
                f"{one.share_b:.1%} of {quoted(sides[1])}<br>q {one.q:.2g}"
                for one, name in zip(found, names, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    top = max((abs(value) for value in values), default=1.0)
    figure.update_xaxes(
        title="documents, percentage points",
        range=[-1.08 * top, 1.08 * top],
        zeroline=True,
        zerolinecolor=QUIET,
    )
    figure.update_yaxes(
        tickvals=rows,
        ticktext=[quoted(name, 24) for name in names],
        autorange="reversed",
        showgrid=False,
        title="",
    )
    for line, (word, color) in enumerate(((sides[0], POSITIVE), (sides[1], NEGATIVE))):
        figure.add_annotation(
            x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom",
            yshift=22 - 18 * line, showarrow=False, font={"color": color},
            text=f"<b>more in {quoted(word, 48)}</b>",
        )  # fmt: skip
    figure.update_layout(
        template=template(), height=112 + 25 * max(3, len(rows)),
        margin={"l": 10, "r": 14, "t": 46, "b": 46},
    )  # fmt: skip
    return figure


def shares_figure(
    comparison: Comparison, labels: Mapping[int, str], sides: tuple[str, str]
) -> "Figure":
    """In how many documents of either set does each latent fire? A point each, above chance or not.

    The `customdata` of a point is its end.
    """
    import numpy as np
    import plotly.graph_objects as go

    columns = comparison.columns
    tested = np.flatnonzero(~np.isnan(columns["q"]))
    difference = columns["difference"][tested]
    told = (columns["q"][tested] <= comparison.config.q) & (
        np.abs(difference) >= comparison.config.least_difference
    )
    figure = go.Figure()
    for some, color, size, opacity in (
        (~told, QUIET, 4, 0.35),
        (told & (difference > 0), POSITIVE, 6, 0.8),
        (told & (difference < 0), NEGATIVE, 6, 0.8),
    ):
        ends = tested[some]
        figure.add_scattergl(
            x=100 * columns["share_b"][ends],
            y=100 * columns["share_a"][ends],
            mode="markers",
            marker={"size": size, "color": color, "opacity": opacity},
            customdata=ends,
            text=[_called(comparison, int(end), labels) for end in ends],
            hovertemplate="%{text}<br>%{y:.1f}% and %{x:.1f}%<extra></extra>",
        )
    line: dict[str, Any] = {"color": QUIET, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", x0=0, y0=0, x1=100, y1=100, line=line)
    figure.update_xaxes(title=f"documents of {quoted(sides[1], 40)} in which it fires, %")
    figure.update_yaxes(title=f"documents of {quoted(sides[0], 40)}, %")
    figure.update_layout(
        template=template(), height=430, margin={"l": 60, "r": 14, "t": 12, "b": 48}
    )
    return figure


def _called(comparison: Comparison, end: int, labels: Mapping[int, str]) -> str:
    latent, sign = comparison.documents.latent_of(end)
    name = end_name(latent, sign, comparison.documents.two_ended)
    return f"<b>{name}</b> {quoted(labels.get(latent, ''))}"


def _side(value: float, *, dim: bool) -> str:
    """The color of a side, with less weight for what was not chosen."""
    if dim:
        return "rgba(217,115,13,0.4)" if value > 0 else "rgba(44,111,187,0.4)"
    return POSITIVE if value > 0 else NEGATIVE
