"""Which nodes and edges carry most of the influence? Pruning, on edge lists."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.graphs.influence import in_shares, propagate, reaching

__all__ = ["Pruning", "edge_scores", "keep"]


@final
@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What a pruned graph remembers of the whole one."""

    node_threshold: float
    """Share of node influence asked for."""
    edge_threshold: float
    """Share of edge scores asked for, among the nodes kept."""
    nodes: int
    """How many nodes the whole graph has."""
    edges: int
    """How many edges it has."""
    node_share: float
    """Share of the whole graph's influence that is at the nodes kept, 0 to 1."""
    edge_share: float
    """Share of the whole graph's edge scores that is on the edges kept, 0 to 1."""
    replacement: float | None
    """Replacement score of the whole graph; None where it is not defined."""
    completeness: float | None
    """Its completeness score."""
    replacement_floor: float | None
    """Its replacement score with every latent taken as error."""
    completeness_floor: float | None
    """Its completeness score with every latent taken as error."""
    dropped: tuple[tuple[str, int], ...]
    """How many nodes of each kind were dropped."""
    influence: tuple[float, ...]
    """In the whole graph, of each node kept."""
    cumulative: tuple[float, ...]
    """In the whole graph, of each node kept: share held by it and all more influential ones."""

    def of(self, places: Sequence[int]) -> "Pruning":
        """The same, with what is said of each node for some of the nodes only."""
        return replace(
            self,
            influence=tuple(self.influence[place] for place in places),
            cumulative=tuple(self.cumulative[place] for place in places),
        )


def keep(
    source: Int[Tensor, " edge"],
    target: Int[Tensor, " edge"],
    weight: Float[Tensor, " edge"],
    weights: Float[Tensor, " node"],
    influence: Float[Tensor, " node"],
    always: Bool[Tensor, " node"],
    inner: Bool[Tensor, " node"],
    node_threshold: float,
    edge_threshold: float,
) -> tuple[Bool[Tensor, " node"], Bool[Tensor, " edge"]]:
    """Nodes and edges that pruning keeps.

    First the fewest nodes that hold `node_threshold` of the influence; then, among them and with
    in-edges normalized anew, the fewest edges that hold `edge_threshold` of the edge scores
    A[t, s] (influence_t + w_t); then, again and again, nodes left without an edge they need go.

    Args:
        source: Upstream node of each edge.
        target: Downstream node of each edge.
        weight: Signed contribution of each edge.
        weights: Of the read-outs, 0 elsewhere.
        influence: Of each node, in the whole graph.
        always: Nodes that stay whatever happens: tokens and read-outs.
        inner: Nodes that need in-edges as well as out-edges: latents and heads.
        node_threshold: 0 to 1; 1 keeps every node.
        edge_threshold: 0 to 1; 1 keeps every edge among the nodes kept.

    Returns:
        One mask for nodes and one for edges.
    """
    if node_threshold >= 1 and edge_threshold >= 1:
        return torch.ones_like(always), torch.ones_like(source, dtype=torch.bool)
    nodes = reaching(influence, node_threshold) | always
    edges = nodes[source] & nodes[target]
    scores = edge_scores(source[edges], target[edges], weight[edges], weights)
    edges[edges.clone()] = reaching(scores, edge_threshold)
    while True:
        has_out = torch.zeros_like(always).index_fill_(0, source[edges], True)
        has_in = torch.zeros_like(always).index_fill_(0, target[edges], True)
        left = nodes & (always | (has_out & (has_in | ~inner)))
        if bool((left == nodes).all()):
            return nodes, edges
        nodes = left
        edges &= nodes[source] & nodes[target]


def edge_scores(
    source: Int[Tensor, " edge"],
    target: Int[Tensor, " edge"],
    weight: Float[Tensor, " edge"],
    weights: Float[Tensor, " node"],
) -> Float[Tensor, " edge"]:
    """A[t, s] (influence_t + w_t): how much influence runs along each edge."""
    share = in_shares(target, weight, len(weights))
    return share * (propagate(source, target, share, weights.double()) + weights.double())[target]
