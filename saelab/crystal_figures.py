"""The pictures of crystals: pairs of words as arrows, latents as parallelograms, and chance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saelab.atlas_figures import quoted
from saelab.geometry.parallelograms import Parallelogram, Parallelograms
from saelab.geometry_survey import Relation, WordCrystals
from saelab.plots import ACCENT, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["best_partner_figure", "parallelogram_figure", "relation_figure", "relations_figure"]

QUIET = "#98a1a9"


def relations_figure(words: WordCrystals, chosen: str | None = None) -> "Figure":
    """Which relations are directions, in the model and in what the dictionary makes of it?

    The `customdata` of a point is the relation's place in `words.relations`.
    """
    import plotly.graph_objects as go

    rows = list(range(len(words.relations)))
    figure = go.Figure()
    spread = [(row, draw) for row in rows for draw in words.relations[row].cosine.draws[:40]]
    figure.add_scatter(
        x=[draw for _, draw in spread], y=[row for row, _ in spread], mode="markers",
        marker={"size": 7, "color": QUIET, "opacity": 0.25}, name="chance",
        hovertemplate="pairs of all relations: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    for name, kind, symbol, color in (
        ("dictionary", "cosine_recons", "diamond-open", ACCENT),
        ("model", "cosine", "diamond", ACCENT),
    ):
        found = [getattr(one, kind) for one in words.relations]
        figure.add_scatter(
            x=[one.value for one in found], y=rows, mode="markers", customdata=rows, name=name,
            marker={"size": 12, "symbol": symbol, "color": color, "line": {"width": 2}},
            text=[str(one) for one in found],
            hovertemplate=name + "<br>%{text}<extra></extra>",
        )  # fmt: skip
    ticks = [
        f"<b>{quoted(one.name)}</b>" if one.name == chosen else quoted(one.name)
        for one in words.relations
    ]
    figure.update_xaxes(title="mean cosine of two pairs")
    figure.update_yaxes(tickvals=rows, ticktext=ticks, autorange="reversed", title="")
    figure.update_layout(
        template=template(), height=78 + 33 * len(rows),
        margin={"l": 10, "r": 16, "t": 8, "b": 46},
    )  # fmt: skip
    return figure


def relation_figure(relation: Relation, lit: tuple[int, int] | None = None) -> "Figure":
    """The pairs of one relation as arrows, and two of them as a parallelogram.

    Args:
        relation: Which.
        lit: Places of the two pairs that make the parallelogram; if None the two that close best,
            of those that lie apart.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    one, other = lit or _closest(relation)
    a, c = relation.places[one], relation.places[other]
    figure.add_scatter(
        x=[a[0], a[2], c[2], c[0], a[0]], y=[a[1], a[3], c[3], c[1], a[1]], mode="lines",
        fill="toself", fillcolor="rgba(217,115,13,0.13)", hoverinfo="skip",
        line={"color": POSITIVE, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    for place, (x0, y0, x1, y1) in enumerate(relation.places):
        color = POSITIVE if place in (one, other) else ACCENT
        figure.add_annotation(
            x=x1, y=y1, ax=x0, ay=y0, xref="x", yref="y", axref="x", ayref="y", showarrow=True,
            arrowhead=2, arrowsize=1.1, arrowwidth=1.6, arrowcolor=color, text="", opacity=0.75,
        )  # fmt: skip
    sides = (
        ([(p[0], p[1]) for p in relation.places], QUIET, "middle left"),
        ([(p[2], p[3]) for p in relation.places], ACCENT, "middle right"),
    )
    heights = [y for at, _, _ in sides for _, y in at]
    gap = 0.045 * (max(heights) - min(heights))
    for side, (at, color, where) in enumerate(sides):
        words = [f"\u2002{quoted(pair[side], 16)}\u2002" for pair in relation.pairs]
        figure.add_scatter(
            x=[x for x, _ in at], y=[y for _, y in at], mode="markers", text=words,
            marker={"size": 6, "color": color}, hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[x for x, _ in at], y=_apart([y for _, y in at], gap), mode="text", text=words,
            textposition=where, hoverinfo="skip", cliponaxis=False,
        )  # fmt: skip
    figure.update_xaxes(title="along the mean difference of the other half of the pairs")
    figure.update_yaxes(title="across it, along what the pairs differ in most")
    figure.update_layout(
        template=template(), height=430, margin={"l": 50, "r": 20, "t": 12, "b": 46}
    )
    _room(figure, [x for at, _, _ in sides for x, _ in at], 0.22)
    return figure


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights for words, in the same order, at least a gap from each other.

    >>> [round(y, 2) for y in _apart([0.5, 0.0, 0.01], 0.2)]
    [0.5, -0.1, 0.11]
    """
    found = list(heights)
    order = sorted(range(len(found)), key=lambda place: heights[place])
    groups: list[list[int]] = []
    for place in order:
        groups.append([place])
        while len(groups) > 1 and _low(groups[-1], heights, gap) < _high(groups[-2], heights, gap):
            last = groups.pop()
            groups[-1] += last
    for group in groups:
        low = _low(group, heights, gap)
        for step, place in enumerate(group):
            found[place] = low + gap / 2 + gap * step
    return found


def _low(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    """Where a stack of words begins that is centered on its places."""
    return sum(heights[place] for place in group) / len(group) - gap * len(group) / 2


def _high(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _low(group, heights, gap) + gap * len(group)


def _closest(relation: Relation) -> tuple[int, int]:
    """The two pairs whose arrows are most alike, of those that lie apart by a quarter or more."""
    heights = [(y0 + y1) / 2 for _, y0, _, y1 in relation.places]
    apart = 0.25 * (max(heights) - min(heights))
    best, found = float("inf"), (0, 1)
    for i, (a, b, c, d) in enumerate(relation.places):
        for j, (e, f, g, h) in enumerate(relation.places[:i]):
            gap = ((c - a) - (g - e)) ** 2 + ((d - b) - (h - f)) ** 2
            if abs(heights[i] - heights[j]) >= apart and gap < best:
                best, found = gap, (j, i)
    return found


def parallelogram_figure(one: Parallelogram, names: Sequence[str]) -> "Figure":
    """Four latents in the plane that fits them best, called as a, b, c and d of `names`."""
    import plotly.graph_objects as go

    places = one.places
    a, b, c, d = places
    figure = go.Figure()
    figure.add_scatter(
        x=[p[0] for p in (a, b, d, c, a)], y=[p[1] for p in (a, b, d, c, a)], mode="lines",
        fill="toself", fillcolor="rgba(217,115,13,0.13)", hoverinfo="skip",
        line={"color": POSITIVE, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    for start, end in ((a, b), (c, d)):
        figure.add_annotation(
            x=end[0], y=end[1], ax=start[0], ay=start[1], xref="x", yref="y", axref="x",
            ayref="y", showarrow=True, arrowhead=2, arrowsize=1.2, arrowwidth=2,
            arrowcolor=ACCENT, text="",
        )  # fmt: skip
    middle = sum(p[1] for p in places) / 4
    figure.add_scatter(
        x=[p[0] for p in places], y=[p[1] for p in places], mode="markers+text",
        marker={"size": 9, "color": ACCENT}, customdata=list(one.corners),
        text=[quoted(name, 18) for name in names],
        cliponaxis=False,
        textposition=[
            f"{'top' if p[1] >= middle else 'bottom'} {side}"
            for p, side in zip(places, ("left", "right", "left", "right"), strict=True)
        ],
        hovertemplate="latent %{customdata}<br>%{text}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title=f"the plane that holds {one.plane:.0%} of the four's spread")
    figure.update_yaxes(scaleanchor="x", title="")
    figure.update_layout(
        template=template(), height=330, margin={"l": 30, "r": 20, "t": 24, "b": 46}
    )
    _room(figure, [p[0] for p in places], 0.8)
    ys = [p[1] for p in places]
    edge = 0.35 * (max(ys) - min(ys)) + 1e-6
    figure.update_yaxes(range=[min(ys) - edge, max(ys) + edge])
    return figure


def best_partner_figure(found: Parallelograms) -> "Figure":
    """Are differences of latents more parallel than in a cloud with nothing but its covariance?"""
    import plotly.graph_objects as go

    width = 1 / len(found.counts)
    middles = [(place + 0.5) * width for place in range(len(found.counts))]
    figure = go.Figure(
        go.Bar(
            x=middles, y=list(found.counts), width=0.94 * width, marker_color=ACCENT,
            opacity=0.75, name="dictionary",
            hovertemplate="|cosine| about %{x:.2f}<br>%{y:,} differences<extra></extra>",
        )
    )  # fmt: skip
    figure.add_scatter(
        x=middles, y=list(found.null_counts), mode="lines", line={"shape": "hvh", "width": 2,
        "color": POSITIVE}, name="Gaussian cloud of the same covariance",
        hovertemplate="Gaussian cloud<br>%{y:,.0f} differences<extra></extra>",
    )  # fmt: skip
    top = max((m for m, a, b in zip(middles, found.counts, found.null_counts, strict=True)
               if a or b), default=1.0)  # fmt: skip
    figure.update_xaxes(
        title="largest |cosine| of a difference with another", range=[0, min(1.0, top + 0.06)]
    )
    figure.update_yaxes(title="differences of neighbors", tickformat=",")
    figure.update_layout(
        template=template(), height=270, showlegend=True, bargap=0,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"l": 60, "r": 16, "t": 34, "b": 46},
    )  # fmt: skip
    return figure


def _room(figure: "Figure", values: Sequence[float], share: float) -> None:
    """Leave room beside the outermost points for their names."""
    edge = share * (max(values) - min(values)) + 1e-6
    figure.update_xaxes(range=[min(values) - edge, max(values) + edge])
