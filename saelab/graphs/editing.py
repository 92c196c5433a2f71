"""A part of a graph, or the same graph with other labels: always a new graph."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxtyping import Bool
from torch import Tensor

from saelab.errors import DataError
from saelab.graphs.influence import in_sums
from saelab.graphs.node import Node

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["labeled", "part_of"]


def part_of(
    graph: "AttributionGraph", nodes: Bool[Tensor, " node"], edges: Bool[Tensor, " edge"]
) -> "AttributionGraph":
    """Some nodes and some of the edges among them; what other edges gave is in `dropped`."""
    lost = in_sums(graph.target[~edges], graph.weight[~edges], len(graph))
    if graph.dropped is not None:
        lost = lost + graph.dropped.double()
    new_place = nodes.long().cumsum(0) - 1
    kept = tuple(node for node, stays in zip(graph.nodes, nodes.tolist(), strict=True) if stays)
    names = {node.id for node in kept}
    groups = {name: tuple(one for one in ids if one in names) for name, ids in graph.groups.items()}
    return replace(
        graph,
        nodes=kept,
        source=new_place[graph.source[edges]],
        target=new_place[graph.target[edges]],
        weight=graph.weight[edges],
        totals=graph.totals[nodes],
        weights=graph.weights[nodes],
        groups={name: ids for name, ids in groups.items() if ids},
        pinned=tuple(one for one in graph.pinned if one in names),
        dropped=lost[nodes],
        pruning=None,
    )


def labeled(
    graph: "AttributionGraph", labels: Mapping[str, str] | Callable[[Node], str | None]
) -> "AttributionGraph":
    """The same graph with labels from a mapping by id, or from asking for each node."""
    if isinstance(labels, Mapping):
        missing = sorted(set(labels) - {node.id for node in graph.nodes})
        if missing:
            raise DataError(f"No node {missing[0]!r} to label among the {len(graph)} here.")
        found = [labels.get(node.id) for node in graph.nodes]
    else:
        found = [labels(node) for node in graph.nodes]
    nodes = tuple(
        node if label is None else replace(node, label=label)
        for node, label in zip(graph.nodes, found, strict=True)
    )
    return replace(graph, nodes=nodes)
