"""A graph of thirteen nodes whose every number is worked out here by hand.

Two layers, three tokens. Each row lists what a node reads; shares are |weight| / sum of |weights|.

    l0a (sum 4)   token0 +3 (3/4), token1 -1 (1/4)
    l0b (sum 2)   token1 +2 (1)
    l1a (sum 8)   l0a +4 (1/2), err0 -2 (1/4), pos1 +1 (1/8), token2 +1 (1/8)
    l1b (sum 5)   l0b -5 (1)
    logit p (10)  l1a +5 (1/2), l1b +2 (1/5), err1 -2 (1/5), bias +1 (1/10)        weight 0.6
    logit q (4)   l1b -3 (3/4), token2 +1 (1/4)                                    weight 0.2

Influence, from the top:
    l1a 0.6/2 = 0.3; l1b 0.6/5 + 0.2*3/4 = 0.27; err1 0.12; bias 0.06
    l0a 0.3/2 = 0.15; err0 0.3/4 = 0.075; pos1 0.3/8 = 0.0375; l0b 0.27
    token0 0.15*3/4 = 0.1125; token1 0.15/4 + 0.27 = 0.3075; token2 0.2/4 + 0.3/8 = 0.0875
"""

import math
from typing import Any

import torch

from saelab.graphs import AttributionGraph, Node

NODES = (
    Node(id="t0", kind="token", position=0, index=11),
    Node(id="t1", kind="token", position=1, index=12),
    Node(id="t2", kind="token", position=2, index=13),
    Node(id="pos1", kind="position", position=1, index=1),
    Node(id="bias", kind="bias"),
    Node(id="e0", kind="error", layer=0, position=1, hook="blocks.0.mlp"),
    Node(id="e1", kind="error", layer=1, position=2, hook="blocks.1.mlp"),
    Node(id="l0a", kind="latent", layer=0, position=1, index=7, value=1.5, hook="blocks.0.mlp"),
    Node(id="l0b", kind="latent", layer=0, position=1, index=9, value=0.5, hook="blocks.0.mlp"),
    Node(id="l1a", kind="latent", layer=1, position=2, index=7, value=2.5, hook="blocks.1.mlp"),
    Node(id="l1b", kind="latent", layer=1, position=2, index=3, value=1.0, hook="blocks.1.mlp"),
    Node(id="p", kind="logit", position=2, index=40, value=6.0, probability=0.6, label=" Paris"),
    Node(id="q", kind="logit", position=2, index=41, value=-2.0, probability=0.2, label=" Rome"),
)
EDGES = {
    ("t0", "l0a"): 3.0,
    ("t1", "l0a"): -1.0,
    ("t1", "l0b"): 2.0,
    ("l0a", "l1a"): 4.0,
    ("e0", "l1a"): -2.0,
    ("pos1", "l1a"): 1.0,
    ("t2", "l1a"): 1.0,
    ("l0b", "l1b"): -5.0,
    ("l1a", "p"): 5.0,
    ("l1b", "p"): 2.0,
    ("e1", "p"): -2.0,
    ("bias", "p"): 1.0,
    ("l1b", "q"): -3.0,
    ("t2", "q"): 1.0,
}
TOTALS = {"l0a": 2.0, "l0b": 2.0, "l1a": 4.0, "l1b": -5.0, "p": 6.0, "q": -2.0}
INFLUENCE = {
    "t0": 0.1125,
    "t1": 0.3075,
    "t2": 0.0875,
    "pos1": 0.0375,
    "bias": 0.06,
    "e0": 0.075,
    "e1": 0.12,
    "l0a": 0.15,
    "l0b": 0.27,
    "l1a": 0.3,
    "l1b": 0.27,
    "p": 0.0,
    "q": 0.0,
}


def graph_of(
    nodes: tuple[Node, ...],
    edges: dict[tuple[str, str], float],
    totals: dict[str, float],
    weights: dict[str, float],
    **more: Any,
) -> AttributionGraph:
    """A graph from ids; three tokens unless told otherwise."""
    places = {node.id: place for place, node in enumerate(nodes)}
    more.setdefault("tokens", ("<s>", " capital", " is"))
    more.setdefault("token_ids", tuple(range(11, 11 + len(more["tokens"]))))
    return AttributionGraph(
        nodes=nodes,
        source=torch.tensor([places[source] for source, _ in edges], dtype=torch.int64),
        target=torch.tensor([places[target] for _, target in edges], dtype=torch.int64),
        weight=torch.tensor(list(edges.values()), dtype=torch.float32),
        totals=torch.tensor([totals.get(node.id, math.nan) for node in nodes]),
        weights=torch.tensor([weights.get(node.id, 0.0) for node in nodes]),
        **more,
    )


def hand_graph(**more: Any) -> AttributionGraph:
    """The graph above."""
    more.setdefault("metadata", {"model": "toy", "n_layers": 2})
    return graph_of(NODES, EDGES, TOTALS, {"p": 0.6, "q": 0.2}, **more)


def random_graph(seed: int, n_latents: int = 20, n_tokens: int = 4) -> AttributionGraph:
    """Tokens, errors, latents in four layers and three logits, with about half of all edges."""
    generator = torch.Generator().manual_seed(seed)
    nodes = [Node(id=f"t{p}", kind="token", position=p, index=p) for p in range(n_tokens)]
    nodes += [Node(id=f"e{layer}", kind="error", layer=layer, position=1) for layer in range(4)]
    for i in range(n_latents):
        layer, position = i * 4 // n_latents, i % n_tokens
        nodes.append(
            Node(id=f"f{i}", kind="latent", layer=layer, position=position, index=i, value=1.0)
        )
    nodes += [
        Node(id=f"y{i}", kind="logit", position=n_tokens - 1, index=i, probability=0.5 / (i + 1))
        for i in range(3)
    ]
    depth = [-1 if n.kind == "token" else 9 if n.kind == "logit" else n.layer for n in nodes]
    weight = torch.randn(len(nodes), len(nodes), generator=generator, dtype=torch.float64)
    for t, target in enumerate(nodes):
        for s in range(len(nodes)):
            later = depth[s] < depth[t] and target.kind in ("latent", "logit")  # type: ignore[operator]
            if not later or float(torch.rand(1, generator=generator)) < 0.4:
                weight[t, s] = 0.0
    totals = weight.sum(1)
    totals[[place for place, n in enumerate(nodes) if n.kind in ("token", "error")]] = math.nan
    return AttributionGraph.from_adjacency(
        nodes,
        weight,
        totals,
        torch.tensor([n.probability or 0.0 for n in nodes], dtype=torch.float64),
        tuple(f" w{p}" for p in range(n_tokens)),
        tuple(range(n_tokens)),
    )
