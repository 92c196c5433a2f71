"""How much of the read-outs goes through each node? Influence, on edge lists.

With A[t, s] = |Adj[t, s]| / sum_s |Adj[t, s]| (each target's in-edges share 1) and w the weights of
the read-outs,

    influence = w (A + A^2 + ...) = w ((I - A)^-1 - I)

The sum ends because the graph has no cycle. Influence is conserved: what arrives at the nodes that
nothing leads into sums to the weight that left the read-outs.

A target whose in-edges are tiny is normalized like any other: a floor such as 1e-10 under the sum
would break conservation, and would make influence depend on the scale of a latent.

Source: Ameisen et al. 2025, "Circuit tracing"; circuit-tracer.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["cumulative_share", "in_shares", "in_sums", "levels", "propagate", "reaching"]


def in_shares(
    target: Int[Tensor, " edge"], weight: Float[Tensor, " edge"], n_nodes: int
) -> Float[Tensor, " edge"]:
    """A: each edge's share of the absolute in-edges of its target, in float64, 0 to 1."""
    size = weight.double().abs()
    largest = size.new_zeros(n_nodes).scatter_reduce_(0, target, size, "amax")
    scaled = size / largest[target].clamp_min(torch.finfo(torch.float64).tiny)
    return scaled / in_sums(target, scaled, n_nodes)[target].clamp_min(1.0)


def in_sums(
    target: Int[Tensor, " edge"], value: Float[Tensor, " edge"], n_nodes: int
) -> Float[Tensor, " node"]:
    """Sum over each node's in-edges, in float64."""
    return value.new_zeros(n_nodes, dtype=torch.float64).index_add_(0, target, value.double())


def propagate(
    source: Int[Tensor, " edge"],
    target: Int[Tensor, " edge"],
    share: Float[Tensor, " edge"],
    start: Float[Tensor, " node"],
) -> Float[Tensor, " node"]:
    """start (A + A^2 + ...), walking edges backwards from targets to sources."""
    total = torch.zeros_like(start)
    current = start
    for _ in range(len(start)):
        current = torch.zeros_like(start).index_add_(0, source, current[target] * share)
        if not bool(current.any()):
            break
        total += current
    return total


def levels(
    source: Int[Tensor, " edge"], target: Int[Tensor, " edge"], n_nodes: int
) -> Int[Tensor, " node"]:
    """Length of the longest path that ends at each node; -1 for nodes in or behind a cycle."""
    order = source.argsort(stable=True)
    starts = torch.zeros(n_nodes + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(source, minlength=n_nodes).cumsum(0)
    followers = target[order]
    waiting = torch.bincount(target, minlength=n_nodes)
    level = torch.full((n_nodes,), -1, dtype=torch.int64)
    ready = (waiting == 0).nonzero().flatten()
    depth = 0
    while len(ready):
        level[ready] = depth
        counts = starts[ready + 1] - starts[ready]
        first = (starts[ready] - counts.cumsum(0) + counts).repeat_interleave(counts)
        reached = followers[first + torch.arange(len(first))]
        waiting -= torch.bincount(reached, minlength=n_nodes)
        ready = reached.unique()
        ready = ready[waiting[ready] == 0]
        depth += 1
    return level


def reaching(scores: Float[Tensor, " score"], threshold: float) -> Bool[Tensor, " score"]:
    """The smallest set of largest scores whose sum reaches a share of the whole, ties included.

    Args:
        scores: Not negative.
        threshold: Share of the sum; 1 keeps everything, also what has score 0.
    """
    if threshold >= 1 or not len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    ordered = scores.sort(descending=True).values
    whole = ordered.sum()
    if not bool(whole > 0):
        return torch.ones_like(scores, dtype=torch.bool)
    place = int(torch.searchsorted(ordered.cumsum(0) / whole, threshold))
    return scores >= ordered[min(place, len(ordered) - 1)]


def cumulative_share(scores: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """For each node, the share of the sum held by it and all larger ones: small is important.

    Ties have the share of the last of them, so that the order of nodes does not matter.
    """
    ordered = scores.sort(descending=True).values
    whole = ordered.sum()
    if not bool(whole > 0):
        return torch.ones_like(scores)
    running = (ordered.cumsum(0) / whole).clamp(max=1.0)
    last = torch.searchsorted(-ordered, -scores, right=True) - 1
    return running[last]
