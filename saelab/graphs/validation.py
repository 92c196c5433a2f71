"""Is it a graph? The checks at the door of AttributionGraph."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.graphs.influence import levels
from saelab.graphs.node import READ_OUTS, SOURCES, Node
from saelab.graphs.pruning import Pruning

__all__ = ["check_groups", "check_memory", "check_parts", "check_prompt"]


def check_parts(
    nodes: Sequence[Node],
    source: Int[Tensor, " edge"],
    target: Int[Tensor, " edge"],
    weight: Float[Tensor, " edge"],
    totals: Float[Tensor, " node"],
    weights: Float[Tensor, " node"],
) -> None:
    """Refuse repeated ids, dangling, repeated or circular edges, and numbers that are not finite.

    Raises:
        DataError: With the first node or edge that is wrong.
    """
    n = len(nodes)
    if not n:
        raise DataError("A graph needs at least one node; got none.")
    repeated = [name for name, count in Counter(node.id for node in nodes).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} node ids are used twice, {repeated[0]!r} first.")
    _check_lengths(n, source, target, weight, totals, weights)
    ends = torch.cat([source, target])
    if len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < n:
        raise DataError(
            f"An edge ends at node {int(ends.min())} or {int(ends.max())}, but nodes are 0 to "
            f"{n - 1}."
        )
    if not bool(weight.isfinite().all()):
        at = int((~weight.isfinite()).nonzero()[0])
        raise DataError(
            f"The edge from {nodes[int(source[at])].id!r} to {nodes[int(target[at])].id!r} weighs "
            f"{float(weight[at])}; weights must be finite."
        )
    if bool(totals.isinf().any()):
        at = int(totals.isinf().nonzero()[0])
        raise DataError(f"The total of {nodes[at].id!r} is infinite; use NaN where it is unknown.")
    _check_edges(nodes, source, target)
    _check_weights(nodes, weights)


def _check_lengths(
    n: int, source: Tensor, target: Tensor, weight: Tensor, totals: Tensor, weights: Tensor
) -> None:
    if not len(source) == len(target) == len(weight):
        raise DataError(
            f"Edges have {len(source)} sources, {len(target)} targets and {len(weight)} weights; "
            "give one of each per edge."
        )
    if not len(totals) == len(weights) == n:
        raise DataError(
            f"{n} nodes have {len(totals)} totals and {len(weights)} weights; give one per node."
        )


def _check_edges(
    nodes: Sequence[Node], source: Int[Tensor, " edge"], target: Int[Tensor, " edge"]
) -> None:
    n = len(nodes)
    keys = (target * n + source).sort().values
    twice = (keys.diff() == 0).nonzero().flatten()
    if len(twice):
        key = int(keys[twice[0]])
        raise DataError(
            f"{len(twice)} edges are given twice, from {nodes[key % n].id!r} to "
            f"{nodes[key // n].id!r} first; add them up."
        )
    terminal = torch.tensor([node.kind in SOURCES for node in nodes])
    wrong = terminal[target].nonzero().flatten()
    if len(wrong):
        node = nodes[int(target[wrong[0]])]
        raise DataError(
            f"An edge leads into {node.id!r}, a {node.kind} node, which nothing explains. Was "
            "source taken for target?"
        )
    stuck = (levels(source, target, n) < 0).nonzero().flatten()
    if len(stuck):
        raise DataError(
            f"The edges have a cycle: {len(stuck)} nodes are in one or behind one, "
            f"{nodes[int(stuck[0])].id!r} first. Contributions run from earlier to later only."
        )


def _check_weights(nodes: Sequence[Node], weights: Float[Tensor, " node"]) -> None:
    for at in (~weights.isfinite() | (weights < 0)).nonzero().flatten().tolist():
        raise DataError(
            f"Node {nodes[at].id!r} has weight {float(weights[at])}; weights are finite and not "
            "negative."
        )
    for at in weights.nonzero().flatten().tolist():
        if nodes[at].kind not in READ_OUTS:
            raise DataError(
                f"Node {nodes[at].id!r} is a {nodes[at].kind} but has weight "
                f"{float(weights[at])}; only logits and targets have one."
            )


def check_memory(
    nodes: Sequence[Node], dropped: Float[Tensor, " node"] | None, pruning: Pruning | None
) -> None:
    """Refuse memories of pruning that are not of these nodes.

    Raises:
        DataError: With what does not fit.
    """
    if dropped is not None and (len(dropped) != len(nodes) or not bool(dropped.isfinite().all())):
        raise DataError(
            f"What was dropped is {len(dropped)} numbers for {len(nodes)} nodes; give one finite "
            "number for each."
        )
    if pruning is not None and not len(pruning.influence) == len(pruning.cumulative) == len(nodes):
        raise DataError(
            f"The memory of the whole graph has {len(pruning.influence)} influences and "
            f"{len(pruning.cumulative)} cumulative shares for {len(nodes)} nodes."
        )


def check_prompt(
    nodes: Sequence[Node],
    tokens: Sequence[str],
    token_ids: Sequence[int],
    metadata: Mapping[str, Any],
) -> None:
    """Refuse nodes beyond the prompt, and metadata that is no JSON.

    Raises:
        DataError: With what is wrong.
    """
    if len(tokens) != len(token_ids):
        raise DataError(f"{len(tokens)} tokens have {len(token_ids)} ids; give one for each.")
    for node in nodes:
        if node.position is not None and node.position >= len(tokens):
            raise DataError(
                f"Node {node.id!r} is at position {node.position}, but the prompt has "
                f"{len(tokens)} tokens."
            )
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"The metadata of a graph must be plain JSON: {error}.") from None


def check_groups(
    nodes: Sequence[Node], groups: Mapping[str, Sequence[str]], pinned: Sequence[str]
) -> None:
    """Refuse groups that share a node, are empty, or name a node that is not there.

    Raises:
        DataError: With the name that is wrong.
    """
    known = {node.id for node in nodes}
    seen: dict[str, str] = {}
    for name, ids in groups.items():
        if not ids:
            raise DataError(f"Group {name!r} is empty.")
        for one in ids:
            if one not in known:
                raise DataError(f"Group {name!r} has {one!r}, but no node has that id.")
            if one in seen:
                raise DataError(f"Node {one!r} is in groups {seen[one]!r} and {name!r}.")
            seen[one] = name
    for one in pinned:
        if one not in known:
            raise DataError(f"{one!r} is pinned, but no node has that id.")
    if len(set(pinned)) != len(pinned):
        raise DataError("A node is pinned twice.")
