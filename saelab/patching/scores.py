"""How much does each component, or each edge, matter; and which are the most important ones?

A score is the change of what is measured, m(taken away) - m(clean), mean over prompts: measured, or
predicted. A component that works for the answer has a negative score.
"""

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.patching.experiment import Cost
from saelab.patching.graph import ComponentGraph, Edge

__all__ = ["EdgeScores", "NodeScores"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class NodeScores:
    """A score for every component."""

    graph: ComponentGraph
    """Of which model."""
    scores: Float[Tensor, " sender"]
    """In units of what is measured; that of `embed` is kept but never ranked."""
    method: str
    """How they were found."""
    cost: Cost
    """What it took."""

    def ranked(self) -> list[str]:
        """Components without `embed`, the largest in size first; ties in the model's order."""
        names = self.graph.nodes
        sizes = self.scores[self._places()].abs()
        order = sizes.argsort(descending=True, stable=True).tolist()
        return [names[n] for n in order]

    def of(self, node: str) -> float:
        """One component's score.

        Raises:
            ConfigError: There is no such component.
        """
        return float(self.scores[self.graph.node_mask([node])][0])

    def values(self) -> Float[Tensor, " node"]:
        """Scores of `graph.nodes`, in that order."""
        return self.scores[self._places()]

    def _places(self) -> Bool[Tensor, " sender"]:
        return self.graph.node_mask(self.graph.nodes)


@final
@dataclass(frozen=True, slots=True, eq=False)
class EdgeScores:
    """A score for every edge."""

    graph: ComponentGraph
    """Of which model."""
    scores: Float[Tensor, "receiver sender"]
    """In units of what is measured; 0 where there is no edge."""
    method: str
    """How they were found."""
    cost: Cost
    """What it took."""

    def ranked(self) -> list[Edge]:
        """Edges, the largest in size first; ties in the model's order."""
        edges, sizes = self.graph.edges(), self.values().abs()
        return [edges[n] for n in sizes.argsort(descending=True, stable=True).tolist()]

    def of(self, sender: str, receiver: str) -> float:
        """One edge's score.

        Raises:
            ConfigError: There is no such edge.
        """
        return float(self.scores[self.graph.mask([Edge(sender, receiver)])][0])

    def values(self) -> Float[Tensor, " edge"]:
        """Scores of `graph.edges()`, in that order."""
        return self.scores[self.graph.allowed()]

    def top(self, n: int) -> Bool[Tensor, "receiver sender"]:
        """The n edges that are largest in size.

        Raises:
            ConfigError: There are not so many.
        """
        there = int(self.graph.allowed().sum())
        if not 0 <= n <= there:
            raise ConfigError(f"The {n} largest edges were asked for; there are {there}.")
        return self.graph.mask(self.ranked()[:n])

    def nodes(self) -> NodeScores:
        """Sum over receivers: for first-order scores, the first-order effect of each component."""
        return NodeScores(self.graph, self.scores.sum(0), f"{self.method}, summed", self.cost)
