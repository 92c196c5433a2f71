"""What a figure says of a node: a short name, and the card that appears under the pointer."""

from html import escape
from typing import TYPE_CHECKING

from saelab.graphs.node import READ_OUTS, Node
from saelab.graphs.texts import one_line

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["hover_card", "short_name"]


def short_name(node: Node, graph: "AttributionGraph") -> str:
    """The label, a token's text, or the number of a latent; not escaped."""
    if node.label:
        return one_line(node.label, 22)
    if node.kind == "token" and node.position is not None:
        return one_line(graph.tokens[node.position], 22)
    if node.kind == "latent" and node.index is not None:
        return f"{node.layer}/{node.index}"
    if node.kind == "head":
        return f"head {node.layer}.{node.index}"
    return node.kind.replace("_", " ")


def hover_card(graph: "AttributionGraph", at: int, influence: float) -> str:
    """What a reader sees on hovering: escaped, since plotly reads some markup.

    Args:
        graph: Where the node is.
        at: Its place there.
        influence: Of the node, as the figure shows it.
    """
    node = graph.nodes[at]
    group = next((name for name, ids in graph.groups.items() if node.id in ids), None)
    lines = [f"<b>{escape(one_line(short_name(node, graph), 60))}</b>", escape(node.name)]
    if node.hook:
        lines.append(f"reads {escape(one_line(node.hook, 60))}")
    if node.value is not None:
        lines.append(f"{'logit' if node.kind == 'logit' else 'activation'} {node.value:.4g}")
    if node.probability is not None:
        lines.append(f"probability {node.probability:.1%}")
    if node.kind not in READ_OUTS:
        lines.append(f"influence {influence:.3g}")
    if group is not None:
        lines.append(f"in {escape(one_line(group, 60))}")
    for word, edges in (("from", graph.into(node)), ("to", graph.out_of(node))):
        for edge in edges[:3]:
            other = edge.source if word == "from" else edge.target
            lines.append(f"{edge.weight:+.3g} {word} {escape(short_name(other, graph))}")
    return "<br>".join(lines)
