"""A graph as a picture: the prompt along the bottom, layers upward, the answer on top.

A node's area is its influence and an edge's width its part of it. Orange edges promote and blue
ones suppress; a node's shape is its kind, so that color is never needed to tell kinds apart.
"""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, final

from saelab.graphs.cards import hover_card, short_name
from saelab.graphs.node import READ_OUTS, Node
from saelab.graphs.texts import one_line
from saelab.plots import ACCENT, NEGATIVE, POSITIVE, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from saelab.graphs.graph import AttributionGraph

__all__ = ["graph_figure"]

_SHAPES = {
    "latent": "circle",
    "error": "diamond-open",
    "token": "square",
    "position": "square-open",
    "bias": "triangle-up-open",
    "attention_bias": "triangle-up-open",
    "head": "pentagon",
    "logit": "hexagon",
    "target": "hexagon",
}
_QUIET = "#7d868e"
"""Gray that is seen on both grounds."""
_LETTER = 6 / 1000
"""Width of a letter as a share of a usual figure's, to keep names from overlapping."""
_WIDTHS = (0.6, 1.2, 2.4, 4.8)
"""Edges are drawn in a few widths, one trace each: plotly slows down with a trace an edge."""


@final
@dataclass(frozen=True, kw_only=True)
class _Place:
    x: float
    y: float


def graph_figure(graph: "AttributionGraph", max_edges: int = 400, max_labels: int = 24) -> "Figure":
    """A layered drawing with hover cards, fine on light and dark ground.

    Args:
        graph: Pruned, as a rule.
        max_edges: Edges that hold most influence and are drawn; the rest only count.
        max_labels: Nodes named in the figure, most influential first; pinned ones always are.
    """
    import plotly.graph_objects as go

    places = _layout(graph)
    figure = go.Figure()
    shown = graph.edge_scores().argsort(descending=True, stable=True)[:max_edges].tolist()
    for trace in _edge_traces(graph, places, shown):
        figure.add_scatter(**trace)
    for trace in _node_traces(graph, places):
        figure.add_scatter(**trace)
    for note in _annotations(graph, places, max_labels):
        figure.add_annotation(**note)
    rows = _row_names(graph)
    figure.update_yaxes(
        tickvals=list(rows),
        ticktext=list(rows.values()),
        showgrid=False,
        range=[min(rows) - 0.4, max(rows) + 0.5],
    )
    tokens = [escape(one_line(token, 14)) or "\u00a0" for token in graph.tokens]
    figure.update_xaxes(
        tickvals=list(range(len(tokens))),
        ticktext=tokens,
        tickangle=0 if len(tokens) <= 12 else -45,
        range=[-0.6, max(len(tokens), 1) - 0.4],
        title="prompt",
        showline=False,
    )
    height = 150 + 78 * len(rows)
    figure.update_layout(template=template(), height=min(height, 1100), hovermode="closest")
    return figure


def _row(node: Node, top: int) -> int:
    """-1 is the embedding, `top` the read-outs."""
    if node.kind in READ_OUTS:
        return top
    return -1 if node.layer is None else node.layer


def _row_names(graph: "AttributionGraph") -> dict[int, str]:
    """Every row with its name; layers without a node are left out by `_layout`, too."""
    top = _top(graph)
    names = {}
    for place, row in enumerate(sorted({_row(node, top) for node in graph.nodes})):
        names[place] = {-1: "input", top: "output"}.get(row, f"layer {row}")
    return names


def _top(graph: "AttributionGraph") -> int:
    return max((node.layer or 0) for node in graph.nodes) + 1


def _layout(graph: "AttributionGraph") -> list[_Place]:
    """Side by side at their position, in rows of at most five, the most influential first.

    Read-outs are all of the last position; they share the width, the likeliest last.
    """
    top = _top(graph)
    rows = {row: y for y, row in enumerate(sorted({_row(node, top) for node in graph.nodes}))}
    cells: dict[tuple[int, int], list[int]] = {}
    influence = graph.influence().tolist()
    for at, node in enumerate(graph.nodes):
        if node.kind in READ_OUTS:
            continue
        column = max(len(graph.tokens) - 1, 0) if node.position is None else node.position
        cells.setdefault((rows[_row(node, top)], column), []).append(at)
    places = [_Place(x=0.0, y=0.0)] * len(graph)
    for (y, x), members in cells.items():
        members.sort(key=lambda at: (graph.nodes[at].kind != "token", -influence[at], at))
        lines = [members[start : start + 5] for start in range(0, len(members), 5)]
        for nth, line in enumerate(lines):
            for column, at in enumerate(line):
                up = 0.0 if len(lines) == 1 else 0.62 * (nth / (len(lines) - 1) - 0.5)
                across = _across(column, len(line), graph.nodes[line[0]].kind == "token")
                places[at] = _Place(x=x + across, y=y + up)
    read_outs = [at for at, node in enumerate(graph.nodes) if node.kind in READ_OUTS]
    read_outs.sort(key=lambda at: (-float(graph.weights[at]), at))
    step = min(1.0, max(len(graph.tokens), 1) / max(len(read_outs), 1))
    for nth, at in enumerate(read_outs):
        places[at] = _Place(x=max(len(graph.tokens) - 1, 0) - nth * step, y=float(rows[top]))
    return places


def _across(column: int, n_columns: int, centered: bool) -> float:
    """Where in its cell: right and left of the first, which is in the middle if it must be."""
    side = (column + 1) // 2 * (1 if column % 2 else -1)
    return 0.19 * (side - (0.0 if centered or n_columns % 2 else 0.5))


def _edge_traces(
    graph: "AttributionGraph", places: list[_Place], shown: list[int]
) -> list[dict[str, Any]]:
    """Lines by sign and width, strongest on top, and one invisible row of points to hover on."""
    scores = graph.edge_scores().tolist()
    largest = max((scores[edge] for edge in shown), default=0.0) or 1.0
    source, target, weight = graph.source.tolist(), graph.target.tolist(), graph.weight.tolist()
    lines: dict[tuple[int, bool], tuple[list[float | None], list[float | None]]] = {}
    middles: dict[str, list[Any]] = {"x": [], "y": [], "customdata": []}
    for edge in reversed(shown):
        relative = scores[edge] / largest
        width = sum(relative > limit for limit in (0.03, 0.12, 0.4))
        xs, ys = lines.setdefault((width, weight[edge] > 0), ([], []))
        start, end = places[source[edge]], places[target[edge]]
        xs += [start.x, end.x, None]
        ys += [start.y, end.y, None]
        middles["x"].append((start.x + end.x) / 2)
        middles["y"].append((start.y + end.y) / 2)
        ends = [graph.nodes[source[edge]], graph.nodes[target[edge]]]
        named = " \u2192 ".join(escape(short_name(node, graph)) for node in ends)
        card = f"{named}<br>contribution {weight[edge]:+.4g}<br>influence {scores[edge]:.3g}"
        middles["customdata"].append(card)
    traces: list[dict[str, Any]] = [
        {
            "x": xs,
            "y": ys,
            "mode": "lines",
            "line": {"color": POSITIVE if positive else NEGATIVE, "width": _WIDTHS[width]},
            "opacity": (0.22, 0.4, 0.65, 0.85)[width],
            "hoverinfo": "skip",
        }
        for (width, positive), (xs, ys) in sorted(lines.items())
    ]
    if shown:
        hover = {"mode": "markers", "marker": {"size": 9, "opacity": 0}}
        traces.append({**middles, **hover, "hovertemplate": "%{customdata}<extra></extra>"})
    return traces


def _node_traces(graph: "AttributionGraph", places: list[_Place]) -> list[dict[str, Any]]:
    influence, sizes = graph.influence(), _sizes(graph)
    kinds = dict.fromkeys(node.kind for node in graph.nodes)
    traces = []
    for kind in kinds:
        chosen = [at for at, node in enumerate(graph.nodes) if node.kind == kind]
        pinned = [graph.nodes[at].id in graph.pinned for at in chosen]
        traces.append(
            {
                "x": [places[at].x for at in chosen],
                "y": [places[at].y for at in chosen],
                "mode": "markers",
                "marker": {
                    "symbol": _SHAPES[kind],
                    "size": [sizes[at] for at in chosen],
                    "color": ACCENT if kind in ("latent", "head") else _QUIET,
                    "opacity": 1,
                    "line": {
                        "color": [POSITIVE if one else _QUIET for one in pinned],
                        "width": [2.5 if one else 1 for one in pinned],
                    },
                },
                "customdata": [hover_card(graph, at, float(influence[at])) for at in chosen],
                "hovertemplate": "%{customdata}<extra></extra>",
                "name": kind.replace("_", " "),
            }
        )
    return traces


def _sizes(graph: "AttributionGraph") -> list[float]:
    """Diameters in pixels; the area above the smallest grows with influence, or with weight."""
    amount = graph.influence() + graph.weights.double()
    largest = float(amount.max()) or 1.0
    return (7 + 21 * (amount / largest).sqrt()).tolist()


def _annotations(
    graph: "AttributionGraph", places: list[_Place], max_labels: int
) -> list[dict[str, Any]]:
    """Names above read-outs, pinned nodes and the most influential others, where there is room."""
    influence = graph.influence().tolist()
    inner = [at for at, n in enumerate(graph.nodes) if n.kind in ("latent", "head")]
    inner.sort(key=lambda at: -influence[at])
    always = [
        at
        for at, node in enumerate(graph.nodes)
        if node.kind in READ_OUTS or node.id in graph.pinned
    ]
    notes, sizes, taken = [], _sizes(graph), []
    for at in dict.fromkeys([*always, *inner[:max_labels]]):
        node, place = graph.nodes[at], places[at]
        text = short_name(node, graph)
        if node.probability is not None and node.kind in READ_OUTS:
            text += f" {node.probability:.0%}"
        half = len(text) * _LETTER * max(len(graph.tokens), 1) / 2
        crowded = any(y == place.y and abs(x - place.x) < half + other for x, y, other in taken)
        if crowded and at not in always:
            continue
        taken.append((place.x, place.y, half))
        notes.append(
            {
                "x": place.x,
                "y": place.y,
                "text": escape(text),
                "showarrow": False,
                "yshift": 8 + sizes[at] / 2,
                "font": {"size": 10.5},
            }
        )
    return notes
