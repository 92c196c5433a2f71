"""What would the answer be if a latent were changed, as a graph has it?

With z_s the value of latent s, one more unit of it adds Adj[t, s] / z_s to what t reads. For new
values z' of some latents,

    direct    change of a read-out y = sum_s Adj[y, s] (z'_s - z_s) / z_s
    paths     the same with d_s in place of z'_s - z_s for every latent, where
              d_t = sum_s Adj[t, s] / z_s d_s: a latent moves with its pre-activation

Changed latents keep their new values whatever reaches them. Norm scales and attention patterns are
held, as everywhere in a graph: `saelab.circuits.reopen` measures the same change in the model.

Source: Ameisen et al. 2025, "Circuit tracing", on validating graphs by perturbation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.graphs.influence import in_sums
from saelab.graphs.node import READ_OUTS, Node

if TYPE_CHECKING:
    from saelab.graphs.graph import AttributionGraph

__all__ = ["PredictedChange", "predicted_change", "pushes"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedChange:
    """What a graph says becomes of its read-outs."""

    read_outs: tuple[Node, ...]
    """Logits and targets, in the order of the graph."""
    direct: Float[Tensor, " read_out"]
    """By the edges that lead straight to them, in their units."""
    paths: Float[Tensor, " read_out"]
    """By all paths between latents."""


def predicted_change(graph: "AttributionGraph", changes: Mapping[str, float]) -> PredictedChange:
    """What becomes of the read-outs when some latents get other values.

    Args:
        graph: Whole, as a rule: a pruned one has forgotten the edges that it dropped.
        changes: New value by id of a latent; at least one, and the present value must not be 0.

    Raises:
        ConfigError: No latent is named, or something that is none.
        DataError: A node is not in the graph.

    >>> latent = Node(id="f", kind="latent", layer=0, position=0, index=3, value=2.0)
    >>> logit = Node(id="l", kind="logit", position=0, index=9, probability=0.5)
    >>> from saelab.graphs.graph import AttributionGraph
    >>> graph = AttributionGraph(
    ...     nodes=(latent, logit), source=torch.tensor([0]), target=torch.tensor([1]),
    ...     weight=torch.tensor([3.0]), totals=torch.tensor([torch.nan, 3.0]),
    ...     weights=torch.tensor([0.0, 0.5]), tokens=(" a",), token_ids=(5,),
    ... )
    >>> predicted_change(graph, {"f": 4.0}).direct.tolist()
    [3.0]
    """
    if not changes:
        raise ConfigError("No change was named. Give a new value for at least one latent.")
    moved = torch.zeros(len(graph), dtype=torch.float64)
    held = torch.zeros(len(graph), dtype=torch.bool)
    for name, new in changes.items():
        place = graph.place(name)
        node = graph.nodes[place]
        if node.kind != "latent" or not node.value:
            raise ConfigError(
                f"{name!r} is a {node.kind} of value {node.value}: only latents that are active "
                "can be given another value."
            )
        moved[place], held[place] = new - node.value, True
    slope = graph.weight.double() * _per_unit(graph)[graph.source]
    direct = in_sums(graph.target, slope * moved[graph.source], len(graph))
    movable = graph.of_kind("latent") & ~held
    total, step = direct.clone(), direct * movable
    for _ in range(len(graph)):
        if not bool(step.any()):
            break
        arrived = in_sums(graph.target, slope * step[graph.source], len(graph))
        total += arrived
        step = arrived * movable
    places = graph.of_kind(*READ_OUTS).nonzero().flatten()
    return PredictedChange(
        read_outs=tuple(graph.nodes[place] for place in places.tolist()),
        direct=direct[places],
        paths=total[places],
    )


def pushes(graph: "AttributionGraph", read_out: str | Node) -> Float[Tensor, " node"]:
    """What each node adds to one read-out, along all paths between latents; signed, in its units.

    Setting a latent to 0 changes the read-out by minus this, as `predicted_change` has it.

    Args:
        graph: Any.
        read_out: A logit or target of it.

    Raises:
        DataError: There is no such node, or it is no read-out.
    """
    place = graph.place(read_out)
    if graph.nodes[place].kind not in READ_OUTS:
        raise DataError(
            f"{graph.nodes[place].id!r} is a {graph.nodes[place].kind}; pushes are on a logit or a "
            "target."
        )
    weight, per_unit = graph.weight.double(), _per_unit(graph)
    total = torch.zeros(len(graph), dtype=torch.float64)
    step = torch.zeros(len(graph), dtype=torch.float64)
    step[place] = 1.0
    for _ in range(len(graph)):
        arrived = in_sums(graph.source, weight * step[graph.target], len(graph))
        if not bool(arrived.any()):
            break
        total += arrived
        step = arrived * per_unit
    return total


def _per_unit(graph: "AttributionGraph") -> Float[Tensor, " node"]:
    """1 / value of every latent that is active; 0 for all other nodes, which nothing moves."""
    values = [node.value if node.kind == "latent" else None for node in graph.nodes]
    return torch.tensor([1 / value if value else 0.0 for value in values], dtype=torch.float64)
