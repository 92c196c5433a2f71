"""Which latents play one role? Supernodes, by co-influence or by hand, and edges between them.

Two latents play one role if they read from and write to the same nodes. The profile of latent i has
one half for what it reads, Adj[i, :], and one for what it contributes, Adj[:, i] over the sums of
absolute in-edges of its targets, each half scaled to length 1: it does not change when a latent is
rescaled. Profiles are signed, so a latent that suppresses what another promotes is no companion.
Groups are the average-linkage clusters of these profiles.

Supernodes are a view: nothing about the graph changes, only what is drawn together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.graphs.influence import in_sums

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["GroupView", "co_influence_groups", "group_view"]


@final
@dataclass(frozen=True, kw_only=True)
class GroupView:
    """A graph with every group drawn as one."""

    names: tuple[str, ...]
    """Groups first, by name, then ids of nodes in none."""
    members: tuple[tuple[str, ...], ...]
    """Ids of the nodes each stands for."""
    adjacency: Float[Tensor, "item item"]
    """Signed share of what the target's members read from outside it that the source's give,
    -1 to 1; rows are targets."""
    influence: Float[Tensor, " item"]
    """Sum over members."""


def co_influence_groups(graph: "AttributionGraph", similarity: float) -> Mapping[str, list[str]]:
    """Groups of two latents or more, most influential first, named after their strongest member.

    Args:
        graph: Pruned first, as a rule: the cost grows with the square of its latents.
        similarity: Mean cosine between profiles that holds a group together, 0 to 1.

    Raises:
        ConfigError: The similarity is out of range.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if not 0 < similarity <= 1:
        raise ConfigError(f"similarity is {similarity}; it lies above 0 and up to 1.")
    latents = graph.of_kind("latent").nonzero().flatten()
    if len(latents) < 2:
        return {}
    profiles = _profiles(graph, latents)
    cosines = profiles @ profiles.T
    above = torch.triu_indices(len(latents), len(latents), offset=1)
    distances = (1 - cosines[above[0], above[1]]).clamp(0, 2)
    labels = fcluster(linkage(distances.numpy(), "average"), 1 - similarity + 1e-9, "distance")
    influence = graph.influence()
    clusters: dict[int, list[int]] = {}
    for place, label in zip(latents.tolist(), labels.tolist(), strict=True):
        clusters.setdefault(label, []).append(place)
    found = [
        sorted(cluster, key=lambda place: (-float(influence[place]), graph.nodes[place].id))
        for cluster in clusters.values()
        if len(cluster) > 1
    ]
    found.sort(key=lambda cluster: -float(influence[cluster].sum()))
    groups: dict[str, list[str]] = {}
    for cluster in found:
        first = graph.nodes[cluster[0]]
        groups[_unused(first.label or first.name, groups)] = [graph.nodes[at].id for at in cluster]
    return groups


def _profiles(graph: "AttributionGraph", latents: Tensor) -> Float[Tensor, "latent two_nodes"]:
    """What each latent reads and writes, half and half, of length 1."""
    n = len(graph)
    row = torch.full((n,), -1, dtype=torch.int64)
    row[latents] = torch.arange(len(latents))
    share = graph.shares() * graph.weight.double().sign()
    reads, writes = torch.zeros(2, len(latents), n, dtype=torch.float64)
    into, out_of = row[graph.target] >= 0, row[graph.source] >= 0
    reads[row[graph.target[into]], graph.source[into]] = share[into]
    writes[row[graph.source[out_of]], graph.target[out_of]] = share[out_of]
    halves = [half / half.norm(dim=1, keepdim=True).clamp_min(1e-300) for half in (reads, writes)]
    whole = torch.cat(halves, 1)
    return whole / whole.norm(dim=1, keepdim=True).clamp_min(1e-300)


def _unused(name: str, taken: Mapping[str, object]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


def group_view(graph: "AttributionGraph") -> GroupView:
    """The graph with every group as one item.

    An edge between items is the signed sum of its members' contributions, over the sum of the
    absolute contributions that the target's members get from outside their group.
    """
    grouped = {one for ids in graph.groups.values() for one in ids}
    alone = [node.id for node in graph.nodes if node.id not in grouped]
    members = [*graph.groups.values(), *((one,) for one in alone)]
    item_of = {one: item for item, ids in enumerate(members) for one in ids}
    items = torch.tensor([item_of[node.id] for node in graph.nodes], dtype=torch.int64)
    source, target = items[graph.source], items[graph.target]
    outer = source != target
    weight = graph.weight.double()[outer]
    mass = in_sums(target[outer], weight.abs(), len(members))
    adjacency = torch.zeros(len(members), len(members), dtype=torch.float64)
    share = weight / mass[target[outer]].clamp_min(1e-300)
    adjacency.index_put_((target[outer], source[outer]), share, accumulate=True)
    return GroupView(
        names=(*graph.groups, *alone),
        members=tuple(members),
        adjacency=adjacency,
        influence=in_sums(items, graph.influence(), len(members)),
    )
