"""AttributionGraph: which latents, tokens and errors made the model say this, on one prompt?

With attention patterns, normalization scales and MLP outputs frozen at their values, everything a
latent or a logit reads is a sum over what was written before it:

    total_t = sum_s Adj[t, s] + constants that no node stands for

Nodes are the terms, Adj[t, s] the signed contribution of s to the pre-activation (or read-out) of
t. A graph is immutable: pruning, labeling and grouping give a new one.

Source: Ameisen et al. 2025, "Circuit tracing"; Dunefsky et al. 2024 (arXiv 2406.11944).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.graphs.editing import labeled, part_of
from saelab.graphs.influence import cumulative_share, in_shares, in_sums, propagate
from saelab.graphs.node import Edge, Node
from saelab.graphs.pruning import Pruning, edge_scores
from saelab.graphs.validation import check_groups, check_memory, check_parts, check_prompt

__all__ = ["AttributionGraph", "Edge", "Node"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttributionGraph:
    """Nodes, signed edges, and the sums the edges close to.

    >>> token = Node(id="t", kind="token", position=0, index=5)
    >>> latent = Node(id="f", kind="latent", layer=0, position=0, index=3, value=2.0)
    >>> logit = Node(id="l", kind="logit", position=0, index=9, probability=0.5)
    >>> graph = AttributionGraph(
    ...     nodes=(token, latent, logit),
    ...     source=torch.tensor([0, 0, 1]), target=torch.tensor([1, 2, 2]),
    ...     weight=torch.tensor([2.0, 1.0, -3.0]), totals=torch.tensor([torch.nan, 2.0, -2.0]),
    ...     weights=torch.tensor([0.0, 0.0, 0.5]), tokens=(" a",), token_ids=(5,),
    ... )
    >>> graph.influence().tolist(), graph.closes(1e-6)
    ([0.5, 0.375, 0.0], True)
    """

    nodes: tuple[Node, ...]
    """In any order; edges refer to them by place."""
    source: Int[Tensor, " edge"]
    """Place of each edge's upstream node."""
    target: Int[Tensor, " edge"]
    """Place of each edge's downstream node; edges are kept sorted by target, then source."""
    weight: Float[Tensor, " edge"]
    """Adj[target, source], signed, in the target's units; edges of weight 0 are left out."""
    totals: Float[Tensor, " node"]
    """What each node's in-edges sum to; NaN for nodes that nothing explains."""
    weights: Float[Tensor, " node"]
    """Weight of each read-out (a logit's probability), 0 for all other nodes."""
    tokens: tuple[str, ...]
    """The prompt, token by token, as text; untrusted."""
    token_ids: tuple[int, ...]
    """The prompt, token by token, as ids."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Model, dictionaries, options and provenance, as plain JSON."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Supernodes: ids of the members by name; a node is in one at most."""
    pinned: tuple[str, ...] = ()
    """Ids of nodes that a person keeps in view."""
    dropped: Float[Tensor, " node"] | None = None
    """Sum of the in-edges of each node that pruning removed; None in a whole graph."""
    pruning: Pruning | None = None
    """What was pruned; None in a whole graph."""

    def __post_init__(self) -> None:
        n = len(self.nodes)
        source, target = self.source.detach().cpu().long(), self.target.detach().cpu().long()
        weight = self.weight.detach().cpu()
        check_parts(self.nodes, source, target, weight, self.totals, self.weights)
        check_memory(self.nodes, self.dropped, self.pruning)
        check_groups(self.nodes, self.groups, self.pinned)
        check_prompt(self.nodes, self.tokens, self.token_ids, self.metadata)
        kept = (weight != 0).nonzero().flatten()
        kept = kept[(target[kept] * n + source[kept]).argsort(stable=True)]
        put = object.__setattr__
        put(self, "source", source[kept])
        put(self, "target", target[kept])
        put(self, "weight", weight[kept])
        put(self, "totals", self.totals.detach().cpu().clone())
        put(self, "weights", self.weights.detach().cpu().clone())
        put(self, "metadata", json.loads(json.dumps(dict(self.metadata))))
        put(self, "groups", {name: tuple(ids) for name, ids in self.groups.items()})
        if self.dropped is not None:
            put(self, "dropped", self.dropped.detach().cpu().clone())

    @classmethod
    def from_adjacency(
        cls,
        nodes: Sequence[Node],
        adjacency: Float[Tensor, "node node"],
        totals: Float[Tensor, " node"],
        weights: Float[Tensor, " node"],
        tokens: Sequence[str],
        token_ids: Sequence[int],
        metadata: Mapping[str, Any] | None = None,
    ) -> "AttributionGraph":
        """Build from a dense matrix whose rows are targets and whose columns are sources."""
        target, source = adjacency.nonzero(as_tuple=True)
        return cls(
            nodes=tuple(nodes),
            source=source,
            target=target,
            weight=adjacency[target, source],
            totals=totals,
            weights=weights,
            tokens=tuple(tokens),
            token_ids=tuple(token_ids),
            metadata=metadata or {},
        )

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return len(self.weight)

    @property
    def model_name(self) -> str:
        """The name of the model whose prompt it is; empty if it was not recorded."""
        about = self.metadata.get("model") or ""
        return str(about.get("name") or "") if isinstance(about, dict) else str(about)

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.nodes)

    def __eq__(self, other: object) -> bool:
        """Same nodes in the same order, same edges, same everything else, to the last bit."""
        from saelab.graphs.saving import to_json

        if not isinstance(other, AttributionGraph):
            return NotImplemented
        return self is other or to_json(self) == to_json(other)

    def __repr__(self) -> str:
        """Sizes and prompt."""
        return (
            f"AttributionGraph({len(self)} nodes, {self.n_edges} edges, "
            f"prompt {''.join(self.tokens)!r})"
        )

    def place(self, node: str | Node) -> int:
        """Where a node is, by id.

        Raises:
            DataError: There is none.
        """
        name = node if isinstance(node, str) else node.id
        for place, one in enumerate(self.nodes):
            if one.id == name:
                return place
        raise DataError(f"No node {name!r} among the {len(self)} of this graph.")

    def node(self, name: str) -> Node:
        """The node of an id."""
        return self.nodes[self.place(name)]

    def of_kind(self, *kinds: str) -> Bool[Tensor, " node"]:
        """Which nodes are of any of some kinds."""
        return torch.tensor([node.kind in kinds for node in self.nodes], dtype=torch.bool)

    def adjacency(self) -> Float[Tensor, "node node"]:
        """The dense matrix: rows are targets, columns are sources; n_nodes squared numbers."""
        dense = self.weight.new_zeros(len(self), len(self))
        dense[self.target, self.source] = self.weight
        return dense

    def into(self, node: str | Node) -> tuple[Edge, ...]:
        """What a node is made of: its in-edges, largest first."""
        return self._edges(self.target == self.place(node))

    def out_of(self, node: str | Node) -> tuple[Edge, ...]:
        """What a node contributes to: its out-edges, largest first."""
        return self._edges(self.source == self.place(node))

    def _edges(self, chosen: Bool[Tensor, " edge"]) -> tuple[Edge, ...]:
        places = chosen.nonzero().flatten()
        places = places[self.weight[places].abs().argsort(descending=True, stable=True)]
        return tuple(
            Edge(self.nodes[int(self.source[at])], self.nodes[int(self.target[at])], weight)
            for at, weight in zip(places, self.weight[places].tolist(), strict=True)
        )

    def residuals(self) -> Float[Tensor, " node"]:
        """total - sum of in-edges (- what pruning dropped), float64; NaN where no total is known.

        It is 0 up to rounding where nothing was forgotten.
        """
        dropped = 0.0 if self.dropped is None else self.dropped.double()
        return self.totals.double() - in_sums(self.target, self.weight, len(self)) - dropped

    def closes(self, tolerance: float = 1e-4) -> bool:
        """Whether every known sum closes.

        Args:
            tolerance: Largest |residual| allowed, as a share of the node's sum of |in-edges| or
                |total|, whichever is larger.
        """
        scale = torch.maximum(
            in_sums(self.target, self.weight.abs(), len(self)), self.totals.double().abs()
        )
        known = ~self.totals.isnan()
        return bool((self.residuals().abs() <= tolerance * scale)[known].all())

    def influence(self) -> Float[Tensor, " node"]:
        """w ((I - A)^-1 - I): share of the read-outs' weight that goes through each node.

        A is |Adj| with rows summing to 1; see `saelab.graphs.influence`.

        Returns:
            0 to the sum of the weights, float64; 0 for read-outs that nothing reads.
        """
        return propagate(self.source, self.target, self.shares(), self.weights.double())

    def direct(self) -> Float[Tensor, " node"]:
        """w A: the part of the influence that takes one edge to a read-out."""
        flow = self.weights.double()[self.target] * self.shares()
        return in_sums(self.source, flow, len(self))

    def shares(self) -> Float[Tensor, " edge"]:
        """A: each edge's share of its target's absolute in-edges, 0 to 1, float64."""
        return in_shares(self.target, self.weight, len(self))

    def cumulative(self) -> Float[Tensor, " node"]:
        """Share of all influence held by a node and those above it: small is important.

        Of the whole graph, which a pruned one remembers.
        """
        if self.pruning is not None:
            return torch.tensor(self.pruning.cumulative, dtype=torch.float64)
        return cumulative_share(self.influence())

    def replacement_score(self) -> float:
        """Influence of the prompt / influence of prompt and errors, 0 to 1.

        Of the whole graph, which a pruned one remembers. Biases count on neither side.
        """
        from saelab.graphs.scores import scores

        return scores(self).replacement

    def completeness_score(self) -> float:
        """Share of what the nodes read, weighted by influence, that is no error, 0 to 1.

        Of the whole graph, which a pruned one remembers. Tokens and errors read nothing and count
        as complete, so it is far above 0 without any latent: see `scores().completeness_floor`.
        """
        from saelab.graphs.scores import scores

        return scores(self).completeness

    def prune(
        self, node_threshold: float = 0.8, edge_threshold: float = 0.98
    ) -> "AttributionGraph":
        """Keep the fewest nodes, then edges, that hold a share of the influence.

        Tokens and read-outs stay. The result remembers the scores of the whole graph, what share
        of influence it holds and what was dropped, so its sums still close.

        Args:
            node_threshold: Share of node influence, above 0 to 1.
            edge_threshold: Share of edge scores, above 0 to 1.

        Raises:
            ConfigError: A threshold is out of range, or the graph was pruned before.
        """
        from saelab.graphs.pruner import Pruner

        return Pruner(self).at(node_threshold, edge_threshold)

    def subgraph(self, ids: Iterable[str]) -> "AttributionGraph":
        """Some nodes and the edges among them; what the others contributed is in `dropped`."""
        chosen = torch.zeros(len(self), dtype=torch.bool)
        places = {node.id: place for place, node in enumerate(self.nodes)}
        for name in ids:
            if name not in places:
                raise DataError(f"No node {name!r} among the {len(self)} of this graph.")
            chosen[places[name]] = True
        part = part_of(self, chosen, chosen[self.source] & chosen[self.target])
        if self.pruning is None:
            return part
        return replace(part, pruning=self.pruning.of(chosen.nonzero().flatten().tolist()))

    def edge_scores(self) -> Float[Tensor, " edge"]:
        """A[t, s] (influence_t + w_t): how much influence runs along each edge, float64."""
        return edge_scores(self.source, self.target, self.weight, self.weights)

    def group(self, groups: Mapping[str, Sequence[str]]) -> "AttributionGraph":
        """Name supernodes by hand: ids of the members by name, in place of those there were."""
        return replace(self, groups={name: tuple(ids) for name, ids in groups.items()})

    def group_by_influence(self, similarity: float = 0.7) -> "AttributionGraph":
        """Group latents that read from and write to the same nodes; see `saelab.graphs.grouping`.

        Args:
            similarity: Mean cosine that members of a group share at least, 0 to 1.
        """
        from saelab.graphs.grouping import co_influence_groups

        return self.group(co_influence_groups(self, similarity))

    def with_labels(
        self, labels: Mapping[str, str] | Callable[[Node], str | None]
    ) -> "AttributionGraph":
        """Label nodes.

        Args:
            labels: By id; or asked for each node, where None leaves the label as it is, for example
                `saelab.graphs.atlas_labels({hook: atlas})`.

        Raises:
            DataError: A label is for a node that is not there.
        """
        return labeled(self, labels)

    def pin(self, ids: Iterable[str]) -> "AttributionGraph":
        """Keep some nodes in view, in place of those pinned before."""
        return replace(self, pinned=tuple(ids))

    def save(self, path: str | Path) -> Path:
        """Write our JSON: everything, checksummed, atomic."""
        from saelab.graphs.saving import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "AttributionGraph":
        """Read what `save` wrote, to the last bit.

        Raises:
            CheckpointError: The file is missing, damaged, altered or of a later version.
        """
        from saelab.graphs.saving import load

        return load(path)

    def export(self, path: str | Path, format: str = "neuronpedia", **options: Any) -> Path:
        """Write the graph for another program; see `saelab.graphs.exporting`.

        Args:
            path: File, or for "csv" the folder of nodes.csv and edges.csv.
            format: "neuronpedia", "circuit-tracer", "graphml", "dot", "cytoscape" or "csv".
            options: Of that format.

        Raises:
            FormatError: The format is unknown or cannot express this graph.
        """
        from saelab.graphs.exporting import export

        return export(self, path, format, **options)
