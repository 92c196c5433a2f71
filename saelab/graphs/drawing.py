"""Where does each node of a graph go? The prompt across, layers upward: numbers, and no picture.

Positions are as wide as what stands at them, so that nodes of one layer and position lie side by
side; layers without a node are left out. A drawing of groups puts every group where its members
are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, final

from saelab.graphs.cards import hover_card, short_name
from saelab.graphs.effects import pushes
from saelab.graphs.grouping import group_view
from saelab.graphs.node import READ_OUTS, Node
from saelab.graphs.texts import one_line

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["Drawing", "Item", "Line", "answer_of", "group_drawing", "node_drawing"]

PER_LINE = 8
"""Nodes of one layer and position side by side; further ones stand above and below."""
NARROWEST = 1.6
"""Width of a position where little stands, so that its token can be read."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A node, or a group of them."""

    id: str
    """Of the node, or the name of the group."""
    kind: str
    """Of the node, or "group"."""
    x: float
    """Across; one node beside another is 1 away."""
    y: float
    """Upward; one row above another is 1 away."""
    influence: float
    """Share of the read-outs' weight that goes through it; of a read-out, its weight."""
    push: float
    """What it adds to the answer along all paths, signed; 0 for a read-out."""
    name: str
    """A few words, not escaped."""
    card: str
    """What the pointer shows, escaped."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """An edge, or all edges between two groups."""

    source: int
    """Place of the upstream item."""
    target: int
    """Place of the downstream one."""
    weight: float
    """Signed contribution; between groups the signed share of what the target reads."""
    score: float
    """Influence that runs along it."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """Everything that a figure needs."""

    items: tuple[Item, ...]
    """In the order of the graph, or of its groups and then its other nodes."""
    lines: tuple[Line, ...]
    """Most influential first."""
    rows: tuple[str, ...]
    """Names of the rows, from below; row number n is at y = n."""
    columns: tuple[tuple[float, str], ...]
    """Middle of each position, and its token as text, not escaped."""
    right: float
    """Where the last position ends; the first starts at 0."""


def answer_of(graph: "AttributionGraph") -> Node | None:
    """The read-out that counts most; None where there is none."""
    read_outs = [at for at, node in enumerate(graph.nodes) if node.kind in READ_OUTS]
    best = max(read_outs, key=lambda at: (float(graph.weights[at]), -at), default=None)
    return None if best is None else graph.nodes[best]


def node_drawing(graph: "AttributionGraph", push: Mapping[str, float] | None = None) -> Drawing:
    """A graph, node by node.

    Args:
        graph: Pruned, as a rule.
        push: What each node adds to the answer, by id; computed on this graph if not given, which
            is less than on the whole one.
    """
    amounts = (graph.influence() + graph.weights.double()).tolist()
    row_of, top = _row_numbers(graph)
    rows = sorted(set(row_of))
    cells = _cells(graph, [rows.index(row) for row in row_of], amounts)
    columns, right = _columns(graph, cells)
    places = _places(graph, cells, columns)
    answer = answer_of(graph)
    if push is None and answer is not None:
        names = [node.id for node in graph.nodes]
        push = dict(zip(names, pushes(graph, answer).tolist(), strict=True))
    items = tuple(
        Item(
            id=node.id,
            kind=node.kind,
            x=places[at][0],
            y=places[at][1],
            influence=amounts[at],
            push=0.0 if node.kind in READ_OUTS else (push or {}).get(node.id, 0.0),
            name=_name(node, graph),
            card=hover_card(graph, at, amounts[at]),
        )
        for at, node in enumerate(graph.nodes)
    )
    ends = (graph.source, graph.target, graph.weight, graph.edge_scores())
    lines = [
        Line(source=source, target=target, weight=weight, score=score)
        for source, target, weight, score in zip(*(one.tolist() for one in ends), strict=True)
    ]
    named = {-1: "input", top: "output"}
    return Drawing(
        items=items,
        lines=tuple(sorted(lines, key=lambda line: -line.score)),
        rows=tuple(named.get(row, f"layer {row}") for row in rows),
        columns=tuple(
            (x, "biases" if position < 0 else one_line(graph.tokens[position], 10) or "\u00a0")
            for position, x in sorted(columns.items())
        ),
        right=right,
    )


def group_drawing(graph: "AttributionGraph", push: Mapping[str, float] | None = None) -> Drawing:
    """A graph with every group as one item, where its members are on average."""
    whole, view = node_drawing(graph, push), group_view(graph)
    by_id = {item.id: item for item in whole.items}
    items: list[Item] = []
    for place, (name, members) in enumerate(zip(view.names, view.members, strict=True)):
        some = [by_id[one] for one in members]
        if place >= len(graph.groups):
            items += some
            continue
        influence, n = sum(one.influence for one in some), len(some)
        items.append(
            Item(
                id=name,
                kind="group",
                x=sum(one.x for one in some) / n,
                y=sum(one.y for one in some) / n,
                influence=influence,
                push=sum(one.push for one in some),
                name=one_line(name, 22),
                card=_group_card(name, some, influence),
            )
        )
    weight_of = dict(zip((n.id for n in graph.nodes), graph.weights.tolist(), strict=True))
    passing = view.influence.tolist()
    through = [
        amount + sum(weight_of[one] for one in members)
        for amount, members in zip(passing, view.members, strict=True)
    ]
    targets, sources = view.adjacency.nonzero(as_tuple=True)
    shares = view.adjacency[targets, sources].tolist()
    lines = [
        Line(source=source, target=target, weight=share, score=abs(share) * through[target])
        for source, target, share in zip(sources.tolist(), targets.tolist(), shares, strict=True)
    ]
    return Drawing(
        items=tuple(items),
        lines=tuple(sorted(lines, key=lambda line: -line.score)),
        rows=whole.rows,
        columns=whole.columns,
        right=whole.right,
    )


def _group_card(name: str, members: Sequence[Item], influence: float) -> str:
    lines = [f"<b>{escape(one_line(name, 60))}</b>", f"{len(members)} nodes"]
    lines += [f"influence {influence:.3g}"]
    strongest = sorted(members, key=lambda one: -one.influence)
    lines += [escape(one_line(one.name, 40)) for one in strongest[:6]]
    return "<br>".join(lines + (["\u2026"] if len(members) > 6 else []))


def _name(node: Node, graph: "AttributionGraph") -> str:
    shown = short_name(node, graph)
    if node.probability is not None and node.kind in READ_OUTS:
        shown += f" {node.probability:.0%}"
    return shown


def _row_numbers(graph: "AttributionGraph") -> tuple[list[int], int]:
    """Each node's layer, -1 for the embedding; and what stands for the read-outs' row."""
    top = max((node.layer or 0) for node in graph.nodes) + 1
    found = [
        top if node.kind in READ_OUTS else -1 if node.layer is None else node.layer
        for node in graph.nodes
    ]
    return found, top


def _cells(
    graph: "AttributionGraph", rows: Sequence[int], amounts: Sequence[float]
) -> dict[tuple[int, int], list[int]]:
    """Nodes by row and position, most influential first; -1 is for what has no position."""
    cells: dict[tuple[int, int], list[int]] = {}
    for at, node in enumerate(graph.nodes):
        column = -1 if node.position is None else node.position
        cells.setdefault((rows[at], column), []).append(at)
    for members in cells.values():
        members.sort(key=lambda at: (graph.nodes[at].kind != "token", -amounts[at], at))
    return cells


def _columns(
    graph: "AttributionGraph", cells: Mapping[tuple[int, int], Sequence[int]]
) -> tuple[dict[int, float], float]:
    """Middle of each position, as wide as its widest row, and where the last one ends."""
    widest: dict[int, int] = dict.fromkeys(range(len(graph.tokens)), 1)
    for (_, column), members in cells.items():
        widest[column] = max(widest.get(column, 1), min(len(members), PER_LINE))
    middles, left = {}, 0.0
    for column in sorted(widest):
        width = max(NARROWEST, float(widest[column])) + 0.5
        middles[column] = left + width / 2
        left += width
    return middles, left


def _places(
    graph: "AttributionGraph",
    cells: Mapping[tuple[int, int], Sequence[int]],
    columns: Mapping[int, float],
) -> list[tuple[float, float]]:
    places = [(0.0, 0.0)] * len(graph)
    for (y, column), members in cells.items():
        lines = [members[start : start + PER_LINE] for start in range(0, len(members), PER_LINE)]
        for nth, line in enumerate(lines):
            up = 0.0 if len(lines) == 1 else 0.7 * (nth / (len(lines) - 1) - 0.5)
            for order, at in enumerate(line):
                side = (order + 1) // 2 * (1 if order % 2 else -1)
                across = side - (0.0 if len(line) % 2 else 0.5)
                places[at] = (columns[column] + across, y + up)
    return places
