"""What do viewers that know only latents, errors, embeddings and logits see of a graph?

A position embedding is added to the token's: their edges add up. So do those of several errors at
one place, such as what a dictionary misses and what latents beyond a budget give: viewers have one
id for all. Biases have no place there, so their edges are left out and the sums are kept as text.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.errors import FormatError
from saelab.graphs.influence import in_sums
from saelab.graphs.node import READ_OUTS, Node

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["Folded", "fold", "reads_attention"]


@final
@dataclass(frozen=True, kw_only=True)
class Folded:
    """A graph of latents, errors, embeddings, heads and read-outs."""

    graph: "AttributionGraph"
    """Positions and errors folded, biases left out; latents, errors, tokens, read-outs in turn."""
    cumulative: tuple[float, ...]
    """Of each of its nodes: share of the whole graph's influence held by it and those above."""
    left_out: dict[str, float]
    """By id of a node: sum of the biases' contributions to it."""


def fold(graph: "AttributionGraph") -> Folded:
    """Fold positions into tokens and errors into one a place, and leave biases out.

    Raises:
        FormatError: A node lacks what viewers place it by.
    """
    home = _homes(graph)
    bias = graph.of_kind("bias", "attention_bias")
    cumulative = graph.cumulative()
    for place in (home != torch.arange(len(graph))).nonzero().flatten().tolist():
        at = int(home[place])
        cumulative[at] = torch.minimum(cumulative[at], cumulative[place])
    left = bias[graph.source]
    sums = in_sums(graph.target[left], graph.weight[left], len(graph))
    stays = ~bias & (home == torch.arange(len(graph)))
    order = sorted(stays.nonzero().flatten().tolist(), key=lambda at: _rank(graph.nodes[at]))
    new_place = torch.full((len(graph),), -1, dtype=torch.int64)
    new_place[order] = torch.arange(len(order))
    source, target, weight = _added_up(graph, home, ~left)
    nodes = [_embedding(graph.nodes[place], graph) for place in order]
    names = {node.id for node in nodes}
    groups = {name: tuple(i for i in ids if i in names) for name, ids in graph.groups.items()}
    folded = replace(
        graph,
        nodes=tuple(nodes),
        source=new_place[source],
        target=new_place[target],
        weight=weight,
        totals=graph.totals[order],
        weights=graph.weights[order],
        groups={name: ids for name, ids in groups.items() if ids},
        pinned=tuple(one for one in graph.pinned if one in names),
        dropped=None,
        pruning=None,
    )
    return Folded(
        graph=folded,
        cumulative=tuple(cumulative[order].tolist()),
        left_out={graph.nodes[at].id: float(sums[at]) for at in sums.nonzero().flatten().tolist()},
    )


def reads_attention(node: Node) -> bool:
    """Whether it is a head, or of a dictionary on attention."""
    return node.kind == "head" or "attn" in (node.hook or "") or "attention" in (node.hook or "")


def _rank(node: Node) -> tuple[int, int, int, int]:
    """Latents, errors, embeddings, logits: the order in which viewers compute scores."""
    if node.kind in READ_OUTS:
        return 3, 0, 0, 0
    kind = {"error": 1, "token": 2, "position": 2}.get(node.kind, 0)
    return kind, node.layer or 0, node.position or 0, node.index or 0


def _embedding(node: Node, graph: "AttributionGraph") -> Node:
    """A position without a token stands for the embedding itself."""
    if node.kind != "position" or node.position is None:
        return node
    return replace(node, kind="token", index=max(graph.token_ids[node.position], 0))


def _homes(graph: "AttributionGraph") -> Int[Tensor, " node"]:
    """For each node the one it is folded into: itself, a position's token, or an error before."""
    tokens = {n.position: place for place, n in enumerate(graph.nodes) if n.kind == "token"}
    errors: dict[tuple[int | None, int | None, bool], int] = {}
    home = torch.arange(len(graph))
    for place, node in enumerate(graph.nodes):
        if node.kind in ("token", "position", "error", "latent") and node.position is None:
            raise FormatError(f"Node {node.id!r} has no position, which viewers place it by.")
        if node.kind in ("error", "latent", "head") and node.layer is None:
            raise FormatError(f"Node {node.id!r} has no layer, which viewers place it by.")
        if node.kind == "position":
            home[place] = tokens.setdefault(node.position, place)
        if node.kind == "error":
            where = (node.layer, node.position, reads_attention(node))
            home[place] = errors.setdefault(where, place)
    return home


def _added_up(
    graph: "AttributionGraph", home: Int[Tensor, " node"], chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges of folded nodes; those that now have the same ends are summed."""
    n = len(graph)
    keys = home[graph.target[chosen]] * n + home[graph.source[chosen]]
    unique, where = keys.unique(return_inverse=True)
    weight = in_sums(where, graph.weight[chosen], len(unique)).to(graph.weight.dtype)
    return unique % n, unique // n, weight
