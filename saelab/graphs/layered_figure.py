"""A drawing as a WebGL figure to click through: thousands of nodes stay quick.

Every point's `customdata` is the id of its node or group, "" for an edge. What a latent adds to the
answer is said twice, by shape and by hue: an orange triangle upward promotes it, a blue one
downward suppresses it; edges that promote are solid and orange, those that suppress dotted and
blue.
"""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from saelab.graphs.drawing import Drawing, Item, Line
from saelab.graphs.naming import Room, with_room
from saelab.graphs.node import READ_OUTS
from saelab.plots import ACCENT, NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["GROUP_HUES", "layered_figure"]

GROUP_HUES = ("#8a6fb0", "#b59a00", "#c2577f", "#2a9d8f", "#6b7280", "#d03a2b")
"""Rims of the members of the first groups, in their order; further groups begin anew."""
_SHAPES = {
    "error": "diamond-open",
    "token": "square",
    "position": "square-open",
    "bias": "cross-open",
    "attention_bias": "cross-open",
    "logit": "hexagon",
    "target": "hexagon",
}
_QUIET = "#7d868e"
_WIDTHS = ((0.7, 0.28), (1.3, 0.45), (2.4, 0.65), (4.2, 0.85))
"""Width and opacity of edges, by the share of the strongest one's influence that they have."""
_LIMITS = (0.04, 0.15, 0.45)
_BEHIND = 0.22
"""What is left of the opacity of all that has nothing to do with the chosen node."""


def layered_figure(
    drawing: Drawing,
    *,
    selected: str | None = None,
    pinned: Collection[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    max_lines: int = 400,
    max_names: int = 18,
    height: int = 640,
    width: int = 480,
) -> "Figure":
    """Nodes by position and layer, edges by sign and influence, names where there is room.

    Args:
        drawing: What to draw.
        selected: Id of an item whose edges are drawn before all others.
        pinned: Ids with a bright rim and always a name.
        groups: Ids of members by group, for rims of one hue.
        max_lines: Edges drawn, the most influential; all of the chosen item's count first.
        max_names: Latents that are named, the most influential.
        height: In pixels.
        width: In pixels, about; it decides which names have room.
    """
    import plotly.graph_objects as go

    places = {item.id: place for place, item in enumerate(drawing.items)}
    chosen = places.get(selected or "")
    near = _near(drawing, chosen)
    traces = [
        *_lines(drawing, chosen, max_lines),
        *_nodes(drawing, near),
        *_rims(drawing, chosen, pinned, groups or {}),
    ]
    figure = go.Figure(data=[{"type": "scattergl", **trace} for trace in traces])
    _axes(figure, drawing, width)
    figure.update_layout(
        template=template(),
        annotations=_names(drawing, chosen, pinned, max_names, Room(width=width, height=height)),
        height=height,
        hovermode="closest",
        dragmode="zoom",
        margin={"l": 8, "r": 8, "t": 22, "b": 8},
        uirevision="drawing",  # zoom and place stay when only edges change
    )
    return figure


def _near(drawing: Drawing, chosen: int | None) -> set[int] | None:
    """The chosen item and what an edge joins to it; None if none is chosen."""
    if chosen is None:
        return None
    ends = [(line.source, line.target) for line in drawing.lines]
    return {chosen} | {one for pair in ends if chosen in pair for one in pair}


def _lines(drawing: Drawing, chosen: int | None, max_lines: int) -> list[dict[str, Any]]:
    """Edges by sign and width, and one invisible row of points in their middles to hover on."""
    mine = [line for line in drawing.lines if chosen in (line.source, line.target)]
    others = [line for line in drawing.lines if chosen not in (line.source, line.target)]
    shown = mine[:max_lines] if chosen is not None else []
    rest = others[: max_lines - len(shown)]
    traces = _strokes(drawing, rest, 1.0 if chosen is None else _BEHIND)
    traces += _strokes(drawing, shown, 1.0)
    hovered = shown if chosen is not None else rest
    if hovered:
        ends = [(drawing.items[one.source], drawing.items[one.target]) for one in hovered]
        traces.append(
            {
                "x": [(one.x + other.x) / 2 for one, other in ends],
                "y": [(one.y + other.y) / 2 for one, other in ends],
                "mode": "markers",
                "marker": {"size": 7, "opacity": 0},
                "customdata": [""] * len(ends),
                "hovertext": [
                    f"{escape(one.name)} \u2192 {escape(other.name)}<br>"
                    f"contribution {line.weight:+.3g}<br>influence {line.score:.3g}"
                    for line, (one, other) in zip(hovered, ends, strict=True)
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "name": "edges",
            }
        )
    return traces


def _strokes(drawing: Drawing, lines: Sequence[Line], strength: float) -> list[dict[str, Any]]:
    largest = max((line.score for line in lines), default=0.0) or 1.0
    found: dict[tuple[int, bool], tuple[list[float | None], list[float | None]]] = {}
    for line in reversed(lines):
        size = sum(line.score / largest > limit for limit in _LIMITS)
        xs, ys = found.setdefault((size, line.weight > 0), ([], []))
        one, other = drawing.items[line.source], drawing.items[line.target]
        xs += [one.x, other.x, None]
        ys += [one.y, other.y, None]
    return [
        {
            "x": xs,
            "y": ys,
            "mode": "lines",
            "line": {
                "color": POSITIVE if promotes else NEGATIVE,
                "width": _WIDTHS[size][0],
                "dash": "solid" if promotes else "dot",
            },
            "opacity": _WIDTHS[size][1] * strength,
            "hoverinfo": "skip",
        }
        for (size, promotes), (xs, ys) in sorted(found.items())
    ]


def _look(item: Item) -> tuple[str, str]:
    """Shape and hue."""
    if item.kind in READ_OUTS:
        return _SHAPES[item.kind], ACCENT
    if item.kind in _SHAPES:
        return _SHAPES[item.kind], _QUIET
    shape = "triangle-up" if item.push > 0 else "triangle-down" if item.push < 0 else "circle"
    return shape, POSITIVE if item.push > 0 else NEGATIVE if item.push < 0 else _QUIET


def _size(item: Item, largest: float) -> float:
    """Diameter in pixels; the area above the smallest grows with influence."""
    share = max(item.influence, 0.0) / largest
    return (18.0 if item.kind == "group" else 7.0) + 14.0 * share**0.5


def _nodes(drawing: Drawing, near: set[int] | None) -> list[dict[str, Any]]:
    largest = max((item.influence for item in drawing.items), default=0.0) or 1.0
    by_look: dict[tuple[str, str], list[int]] = {}
    for place, item in enumerate(drawing.items):
        by_look.setdefault(_look(item), []).append(place)
    traces = []
    for (shape, hue), places in by_look.items():
        some = [drawing.items[place] for place in places]
        opacity = [1.0 if near is None or place in near else _BEHIND for place in places]
        traces.append(
            {
                "x": [one.x for one in some],
                "y": [one.y for one in some],
                "mode": "markers",
                "marker": {
                    "symbol": shape,
                    "size": [_size(one, largest) for one in some],
                    "color": hue,
                    "opacity": opacity,
                    "line": {"width": 1.2 if shape.endswith("open") else 0, "color": hue},
                },
                # Streamlit selects what is clicked; nothing else may fade for it.
                "selected": {"marker": {"opacity": 1.0}},
                "unselected": {"marker": {"opacity": 1.0 if near is None else 0.6}},
                "customdata": [one.id for one in some],
                "hovertext": [one.card for one in some],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "name": f"{shape} {some[0].kind}",
            }
        )
    return traces


def _rims(
    drawing: Drawing,
    chosen: int | None,
    pinned: Collection[str],
    groups: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Rings: one hue a group, bright for pins, and around the chosen item."""
    largest = max((item.influence for item in drawing.items), default=0.0) or 1.0
    rings: list[tuple[str, float, list[Item]]] = []
    for nth, members in enumerate(groups.values()):
        inside = set(members)
        some = [item for item in drawing.items if item.id in inside]
        rings.append((GROUP_HUES[nth % len(GROUP_HUES)], 5.0, some))
    rings.append((ACCENT, 9.0, [item for item in drawing.items if item.id in pinned]))
    rings.append((POSITIVE, 12.0, [] if chosen is None else [drawing.items[chosen]]))
    return [
        {
            "x": [one.x for one in some],
            "y": [one.y for one in some],
            "mode": "markers",
            "marker": {
                "symbol": "circle-open",
                "size": [_size(one, largest) + wider for one in some],
                "color": hue,
                "line": {"width": 2, "color": hue},
            },
            "hoverinfo": "skip",
        }
        for hue, wider, some in rings
        if some
    ]


def _names(
    drawing: Drawing, chosen: int | None, pinned: Collection[str], max_names: int, room: Room
) -> list[dict[str, Any]]:
    """Answers, pins, groups and the chosen; then the most influential latents with room."""
    largest = max((item.influence for item in drawing.items), default=0.0) or 1.0
    always = {
        item.id for place, item in enumerate(drawing.items) if item.id in pinned or place == chosen
    }
    sizes = {item.id: _size(item, largest) for item in drawing.items}
    return [
        {
            "x": item.x,
            "y": item.y,
            "text": escape(item.name),
            "showarrow": False,
            "yshift": 7 + sizes[item.id] / 2,
            "font": {"size": 12 if item.kind in READ_OUTS else 10.5},
        }
        for item in with_room(drawing, always, max_names, sizes, room)
    ]


def _axes(figure: "Figure", drawing: Drawing, width: int) -> None:
    room = width / max(drawing.right, 1.0)
    middles = [x for x, _ in drawing.columns]
    gaps = [(b - a) * room for a, b in pairwise(middles)]
    longest = max((len(text) for _, text in drawing.columns), default=1)
    figure.update_xaxes(
        tickvals=middles,
        ticktext=[escape(text) for _, text in drawing.columns],
        tickangle=0 if longest * 7 <= min(gaps, default=1e9) else -40,
        range=[-0.2, drawing.right + 0.2],
        showgrid=False,
        showline=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(drawing.rows))),
        ticktext=list(drawing.rows),
        tickfont={"size": 11},
        range=[-0.6, len(drawing.rows) - 0.2],
        showgrid=False,
    )
