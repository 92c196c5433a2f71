"""What is measured when only some items of a model are left: components, edges, or latents?

One interface, so that circuits of every kind are judged alike: a list of items that can be taken
away, and what is measured when only some of them are kept.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Protocol, final, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from saelab.circuits import FeatureNode, metric_with_only
from saelab.circuits.feature_sites import FeatureSite
from saelab.models import LanguageModel
from saelab.patching.experiment import Experiment
from saelab.patching.graph import Edge

__all__ = ["Ablation", "EdgeAblation", "LatentAblation", "NodeAblation"]


@runtime_checkable
class Ablation(Protocol):
    """Items of a model that can be taken away."""

    items: Sequence[Hashable]
    """All of them."""

    def with_only(self, kept: Collection[Hashable]) -> float:
        """Mean of what is measured when every other item is taken away."""
        ...

    def kind(self, item: Hashable) -> str:
        """What an item is: a random circuit has as many of each kind as the one it is held to."""
        ...


@final
class NodeAblation:
    """Heads and MLPs; the embedding always stays."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.items: Sequence[Hashable] = experiment.graph.nodes

    def with_only(self, kept: Collection[Hashable]) -> float:
        """Mean of what is measured when every other component is taken away."""
        stays = set(kept)
        gone = [str(name) for name in self.items if name not in stays]
        return self.experiment.without(nodes=self.experiment.graph.node_mask(gone))

    def kind(self, item: Hashable) -> str:
        """Head or MLP."""
        return "MLP" if str(item).startswith("m") else "head"


@final
class EdgeAblation:
    """Edges between embedding, heads, MLPs and logits."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.items: Sequence[Hashable] = experiment.graph.edges()

    def with_only(self, kept: Collection[Hashable]) -> float:
        """Mean of what is measured when every other edge is taken away."""
        graph = self.experiment.graph
        stays = graph.mask([edge for edge in kept if isinstance(edge, Edge)])
        return self.experiment.without(edges=graph.allowed() & ~stays)

    def kind(self, item: Hashable) -> str:
        """The kinds of its ends, such as head->q."""
        assert isinstance(item, Edge), "items are edges"
        sender = "head" if item.sender[0] == "a" else item.sender.rstrip("0123456789")
        receiver = item.receiver.partition(".")[2] or item.receiver
        return f"{sender}->{receiver.rstrip('0123456789')}"


@final
class LatentAblation:
    """Latents and errors of dictionaries; see `saelab.circuits.metric_with_only`."""

    def __init__(
        self,
        model: LanguageModel,
        sites: Sequence[FeatureSite],
        tokens: Int[Tensor, "row pos"],
        metric: Callable[[Tensor], Tensor],
        baseline: Int[Tensor, "baseline_row baseline_pos"] | None = None,
    ) -> None:
        """Name what can be taken away.

        Args:
            model: The running model.
            sites: Of `saelab.circuits.feature_sites`.
            tokens: Inputs.
            metric: Logits [row, pos, d_vocab] in, one number a row out.
            baseline: Inputs whose means stand in; zeros if None.
        """
        self._about = model, sites, tokens, metric, baseline
        self.items: Sequence[Hashable] = [
            FeatureNode(site.hook, None, latent)
            for site in sites
            for latent in (*range(site.sae.d_sae), None)
        ]

    def with_only(self, kept: Collection[Hashable]) -> float:
        """Mean metric when every other latent and error is taken away."""
        model, sites, tokens, metric, baseline = self._about
        nodes = [node for node in kept if isinstance(node, FeatureNode)]
        return metric_with_only(model, sites, nodes, tokens, metric, baseline)

    def kind(self, item: Hashable) -> str:
        """Latent or error, and where."""
        assert isinstance(item, FeatureNode), "items are nodes"
        return f"{'error' if item.latent is None else 'latent'} of {item.hook}"
