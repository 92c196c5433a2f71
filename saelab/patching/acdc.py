"""Which edges can go, one after another, while the model's predictions stay? ACDC.

Receivers are visited from the logits back to the start, and the senders of each from the last to
the first. An edge goes for good if that raises the divergence from the whole model by less than a
threshold:

    D(without it too) - D(so far) < threshold        D: mean over rows of KL(model, circuit), nats

after the last position. A component that nothing reads any more goes with all it reads, without a
pass. What is found depends on the order, and on the threshold; `acdc_sweep` takes several.

On the level of nodes, components go as wholes, in the same order and by the same rule.

Source: Conmy et al. 2023 (arXiv 2304.14997), algorithm 1. The difference is signed, as there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.patching.experiment import Cost, Experiment
from saelab.patching.graph import ComponentGraph, Edge
from saelab.patching.scores import EdgeScores, NodeScores

__all__ = ["AcdcResult", "Level", "acdc", "acdc_sweep", "divergence"]

Level = Literal["edge", "node"]
"""Whether edges go one by one, or components as wholes."""


def divergence(
    logits: Float[Tensor, "row d_vocab"], other: Float[Tensor, "row d_vocab"]
) -> Float[Tensor, " row"]:
    """KL divergence of the predictions of some logits from those of others, in nats.

    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> divergence(logits, logits + 3.0).item()
    0.0
    """
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)


@final
@dataclass(frozen=True, slots=True, eq=False)
class AcdcResult:
    """What stayed."""

    graph: ComponentGraph
    """Of which model."""
    threshold: float
    """In nats."""
    level: Level
    """What could go."""
    kept: Bool[Tensor, "receiver sender"]
    """Edges that stayed; on the level of nodes all edges between those that did."""
    nodes: tuple[str, ...]
    """Components that stayed, without `embed`."""
    divergence: float
    """Of the circuit from the model, in nats."""
    tried: int
    """How many removals were tried by a pass."""
    cost: Cost
    """What it took."""

    def edges(self) -> list[Edge]:
        """The edges that stayed."""
        return self.graph.edges(self.kept)


def acdc(
    experiment: Experiment,
    threshold: float,
    level: Level = "edge",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> AcdcResult:
    """Remove what can go.

    Args:
        experiment: Model, prompts and stand-ins.
        threshold: How much one removal may raise the divergence, in nats; above 0.
        level: Edges: one pass for each edge of a component that is still read. Nodes: one pass for
            each component.
        progress: Called with (seen, in all).

    Raises:
        ConfigError: The threshold is not above 0, or there is no such level.
    """
    if not threshold > 0 or level not in ("edge", "node"):
        raise ConfigError(
            f"acdc(threshold={threshold}, level={level!r}): the threshold must be above 0, and the "
            "level 'edge' or 'node'."
        )
    started = experiment.clock()
    search = _Search(experiment, threshold)
    removed, tried = (search.edges if level == "edge" else search.nodes)(progress)
    graph = experiment.graph
    if level == "edge":
        kept = graph.allowed() & ~removed
        names = tuple(graph.nodes_of(kept))
    else:
        gone = removed.all(0)
        kept = graph.allowed() & ~gone[None]
        names = tuple(n for n in graph.nodes if not gone[graph.senders.index(n)])
    cost = experiment.clock() - started
    return AcdcResult(graph, threshold, level, kept, names, search.current, tried, cost)


def acdc_sweep(
    experiment: Experiment,
    thresholds: Sequence[float],
    level: Level = "edge",
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[AcdcResult], EdgeScores | NodeScores]:
    """Several thresholds, and the ranking they make.

    Args:
        experiment: Model, prompts and stand-ins.
        thresholds: In nats.
        level: What can go.
        progress: Called with (thresholds done, in all).

    Returns:
        Results by rising threshold; and as score of each edge or component the largest threshold
        at which it stayed, 0 if it never did.

    Raises:
        ConfigError: A threshold is not above 0, or there is none.
    """
    if not thresholds:
        raise ConfigError("acdc_sweep needs at least one threshold.")
    started, graph = experiment.clock(), experiment.graph
    found = []
    scores = torch.zeros(graph.allowed().shape)
    for done, threshold in enumerate(sorted(thresholds)):
        found.append(acdc(experiment, threshold, level))
        scores[found[-1].kept] = threshold
        if progress is not None:
            progress(done + 1, len(thresholds))
    cost = experiment.clock() - started
    if level == "edge":
        return found, EdgeScores(graph, scores, "ACDC", cost)
    return found, NodeScores(graph, scores.amax(0), "ACDC, nodes", cost)


@final
class _Search:
    """What has gone so far, and how far the rest is from the model."""

    def __init__(self, experiment: Experiment, threshold: float) -> None:
        self.experiment, self.threshold = experiment, threshold
        self.current = 0.0
        self.tried = 0

    def edges(
        self, progress: Callable[[int, int], None] | None
    ) -> tuple[Bool[Tensor, "receiver sender"], int]:
        """Which edges went."""
        graph = self.experiment.graph
        allowed = graph.allowed()
        removed = torch.zeros_like(allowed)
        users = _users(graph)
        for seen, receiver in enumerate(reversed(range(len(allowed)))):
            read_by = users[receiver]
            if receiver < len(allowed) - 1 and not bool((allowed & ~removed)[:, read_by].any()):
                removed[receiver] = allowed[receiver]  # nothing reads what this makes
                continue
            for sender in reversed(allowed[receiver].nonzero().flatten().tolist()):
                removed[receiver, sender] = True
                removed[receiver, sender] = self._accepted(edges=removed)
            if progress is not None:
                progress(seen + 1, len(allowed))
        return removed, self.tried

    def nodes(
        self, progress: Callable[[int, int], None] | None
    ) -> tuple[Bool[Tensor, "receiver sender"], int]:
        """Which components went, as all their edges."""
        graph = self.experiment.graph
        gone = torch.zeros(len(graph.senders), dtype=torch.bool)
        places = [graph.senders.index(name) for name in graph.nodes]
        for seen, sender in enumerate(reversed(places)):
            gone[sender] = True
            gone[sender] = self._accepted(nodes=gone)
            if progress is not None:
                progress(seen + 1, len(places))
        return gone[None].expand(len(graph.receivers), -1).clone(), self.tried

    def _accepted(self, **removed: Tensor) -> bool:
        experiment = self.experiment
        self.tried += 1
        logits = experiment.logits_without(**removed)
        after = float(divergence(experiment.clean_logits, logits).mean())
        if after - self.current < self.threshold:
            self.current = after
            return True
        return False


def _users(graph: ComponentGraph) -> list[list[int]]:
    """By receiver: the senders that compute from it."""
    found: list[list[int]] = [[] for _ in graph.receivers]
    for sender in range(1, len(graph.senders)):
        for receiver in graph.readers(sender):
            found[receiver].append(sender)
    return found
