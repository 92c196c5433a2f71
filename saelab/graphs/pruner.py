"""One graph at many thresholds: what does not depend on them is computed once.

    pruner = Pruner(graph)
    pruner.at(0.8), pruner.at(0.4, 0.9)

`AttributionGraph.prune` is the same for one pair of thresholds.
"""

import contextlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, final

from jaxtyping import Bool
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.graphs.editing import part_of
from saelab.graphs.influence import cumulative_share
from saelab.graphs.node import READ_OUTS
from saelab.graphs.pruning import Pruning, keep
from saelab.graphs.scores import Scores, scores

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["Pruner"]


@final
class Pruner:
    """A whole graph with its influence, edge scores and scores.

    Args:
        graph: Not pruned before.

    Raises:
        ConfigError: It was.
    """

    def __init__(self, graph: "AttributionGraph") -> None:
        if graph.pruning is not None:
            raise ConfigError(
                "This graph was pruned before, and thresholds are shares of a whole graph. Prune "
                "the graph it was made from."
            )
        self.graph = graph
        self.influence: Tensor = graph.influence()
        """Of each node."""
        through = self.influence + graph.weights.double()
        self.edge_scores: Tensor = graph.shares() * through[graph.target]
        """Of each edge."""
        self.cumulative: Tensor = cumulative_share(self.influence)
        """Of each node."""
        self.scores: Scores | None = None
        """Of the graph; None where it has none."""
        with contextlib.suppress(DataError):
            self.scores = scores(graph)

    def at(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> "AttributionGraph":
        """The graph pruned; see `AttributionGraph.prune`.

        Raises:
            ConfigError: A threshold is out of range.
        """
        for name, value in (("node", node_threshold), ("edge", edge_threshold)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name}_threshold is {value}; it lies above 0 and up to 1.")
        graph = self.graph
        nodes, edges = keep(
            graph.source,
            graph.target,
            graph.weight,
            graph.weights,
            self.influence,
            graph.of_kind("token", *READ_OUTS),
            graph.of_kind("latent", "head"),
            node_threshold,
            edge_threshold,
        )
        memory = self._memory(nodes, edges, node_threshold, edge_threshold)
        return replace(part_of(graph, nodes, edges), pruning=memory)

    def _memory(
        self,
        nodes: Bool[Tensor, " node"],
        edges: Bool[Tensor, " edge"],
        node_threshold: float,
        edge_threshold: float,
    ) -> Pruning:
        """What the part should remember of the whole."""
        whole, found = self.graph, self.scores
        gone = Counter(
            n.kind for n, stays in zip(whole.nodes, nodes.tolist(), strict=True) if not stays
        )
        return Pruning(
            node_threshold=float(node_threshold),
            edge_threshold=float(edge_threshold),
            nodes=len(whole),
            edges=whole.n_edges,
            node_share=_share(self.influence, nodes),
            edge_share=_share(self.edge_scores, edges),
            replacement=found and found.replacement,
            completeness=found and found.completeness,
            replacement_floor=found and found.replacement_floor,
            completeness_floor=found and found.completeness_floor,
            dropped=tuple(sorted(gone.items())),
            influence=tuple(self.influence[nodes].tolist()),
            cumulative=tuple(self.cumulative[nodes].tolist()),
        )


def _share(scores: Tensor, kept: Tensor) -> float:
    whole = float(scores.sum())
    return float(scores[kept].sum()) / whole if whole > 0 else 1.0
