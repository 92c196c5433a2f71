"""By which ways does the prompt reach the answer? The strongest paths of a graph, exactly.

A path runs from a node that nothing leads into to a read-out. Its share is w_t A A ... A, the
product of the weight and the shares along it; all paths together hold the sum of the weights. Its
sign is the product of its edges' signs.
"""

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from saelab.graphs.node import Node

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["Path", "strongest_paths"]


@final
@dataclass(frozen=True, kw_only=True)
class Path:
    """One way through a graph."""

    nodes: tuple[Node, ...]
    """From source to read-out."""
    weights: tuple[float, ...]
    """Signed contribution along each edge."""
    share: float
    """Of the read-outs' weight, above 0 to 1 if weights are probabilities."""
    sign: int
    """1 if the source promotes the read-out along this path, -1 if it suppresses it."""


def strongest_paths(graph: "AttributionGraph", limit: int = 10) -> tuple[Path, ...]:
    """The `limit` paths that hold most, largest first.

    Partial paths are grown from the read-outs, best first. Shares never grow along a path, and
    those of the in-edges of a node sum to 1, so the first to arrive are the largest.

    Args:
        graph: Any.
        limit: How many at most; 0 or more.
    """
    best = _best_below(graph)
    incoming: list[list[tuple[int, float, float]]] = [[] for _ in graph.nodes]
    columns = (graph.source, graph.target, graph.weight, graph.shares())
    for source, target, weight, share in zip(*(one.tolist() for one in columns), strict=True):
        incoming[target].append((source, weight, share))
    queue: list[tuple[float, tuple[int, ...], tuple[float, ...], float]] = [
        (-weight * best[place], (place,), (), weight)
        for place, weight in enumerate(graph.weights.tolist())
        if weight > 0
    ]
    heapq.heapify(queue)
    found: list[Path] = []
    while queue and len(found) < limit:
        _, places, weights, share = heapq.heappop(queue)
        edges = incoming[places[0]]
        if not edges and len(places) > 1:
            sign = math.prod(1 if weight > 0 else -1 for weight in weights)
            nodes = tuple(graph.nodes[place] for place in places)
            found.append(Path(nodes=nodes, weights=weights, share=share, sign=sign))
        for source, weight, part in edges:
            grown = share * part
            one = (-grown * best[source], (source, *places), (weight, *weights), grown)
            heapq.heappush(queue, one)
    return tuple(found)


def _best_below(graph: "AttributionGraph") -> list[float]:
    """The largest product of shares from each node down to a source: 1 for sources."""
    import torch

    from saelab.graphs.influence import levels

    level = levels(graph.source, graph.target, len(graph))
    best = torch.zeros(len(graph), dtype=torch.float64)
    best[level == 0] = 1.0
    depth = level[graph.target]
    shares = graph.shares()
    for step in range(1, int(level.max()) + 1):
        chosen = depth == step
        reached = best[graph.source[chosen]] * shares[chosen]
        best.scatter_reduce_(0, graph.target[chosen], reached, "amax")
    return best.tolist()
