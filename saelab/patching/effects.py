"""How much does each component, edge or path matter? Measured, by taking it away.

    node    every receiver sees the stand-in in place of what the component writes
    edge    one receiver sees it; what follows is recomputed
    path    one component's change reaches some receivers directly, or through MLPs alone: all other
            heads are held at the clean run while the change of what the receivers read is noted;
            in a second pass it is added there, and what follows is recomputed

Source: activation patching; path patching of Wang et al. 2022 (arXiv 2211.00593) and Goldowsky-Dill
et al. 2023 (arXiv 2304.05969).
"""

from collections.abc import Callable, Sequence

import torch

from saelab.errors import ConfigError
from saelab.patching.experiment import Experiment
from saelab.patching.graph import EMBED, Edge
from saelab.patching.scores import EdgeScores, NodeScores

__all__ = ["edge_effects", "node_effects", "path_effect"]

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


def node_effects(
    experiment: Experiment,
    nodes: Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
) -> NodeScores:
    """Take components away one at a time; one pass each.

    The reverse, a clean component in the patch run, is `node_effects` of an experiment on
    `pairs.swapped()`.

    Args:
        experiment: Model, prompts and stand-ins.
        nodes: Which; all heads and MLPs if not given. The score of any other is 0.
        progress: Called after each.

    Returns:
        Changes of what is measured.

    Raises:
        ConfigError: There is no such component.
    """
    graph, started = experiment.graph, experiment.clock()
    places = graph.node_mask(graph.nodes if nodes is None else nodes).nonzero().flatten().tolist()
    scores = torch.zeros(len(graph.senders))
    for done, place in enumerate(places):
        alone = torch.arange(len(graph.senders)) == place
        scores[place] = experiment.without(nodes=alone) - experiment.clean
        if progress is not None:
            progress(done + 1, len(places))
    return NodeScores(graph, scores, "exact", experiment.clock() - started)


def edge_effects(
    experiment: Experiment,
    edges: Sequence[Edge] | None = None,
    *,
    progress: Progress | None = None,
) -> EdgeScores:
    """Take edges away one at a time; one pass each.

    Args:
        experiment: Model, prompts and stand-ins.
        edges: Which; all if not given. The score of any other is 0.
        progress: Called after each.

    Returns:
        Changes of what is measured.

    Raises:
        ConfigError: There is no such edge.
    """
    graph, started = experiment.graph, experiment.clock()
    mask = graph.allowed() if edges is None else graph.mask(edges)
    scores = torch.zeros(mask.shape)
    places = mask.nonzero().tolist()
    for done, (receiver, sender) in enumerate(places):
        alone = torch.zeros_like(mask)
        alone[receiver, sender] = True
        scores[receiver, sender] = experiment.without(edges=alone) - experiment.clean
        if progress is not None:
            progress(done + 1, len(places))
    return EdgeScores(graph, scores, "exact", experiment.clock() - started)


def path_effect(
    experiment: Experiment,
    sender: str,
    receivers: Sequence[str],
    *,
    through_mlps: bool = True,
) -> float:
    """Take away what a component sends to some receivers, along direct paths only.

    Args:
        experiment: Model, prompts and stand-ins.
        sender: A component, or embed.
        receivers: Such as a5.q1, m3, logits.
        through_mlps: Whether MLPs between them react; otherwise only the stream itself carries it.

    Returns:
        The change of what is measured.

    Raises:
        ConfigError: There is no such component, or no edge between them.
    """
    graph = experiment.graph
    edges = graph.mask([Edge(sender, receiver) for receiver in receivers])
    if not bool(edges.any()):
        raise ConfigError(f"No receiver was named that reads {sender}.")
    if not through_mlps:
        return experiment.without(edges=edges) - experiment.clean
    gone = graph.node_mask([sender])
    heads = graph.node_mask([n for n in graph.senders if n != EMBED and n[0] == "a"])
    streams = experiment.streams(gone, heads & ~gone)
    clean = experiment.streams(torch.zeros_like(gone), torch.zeros_like(gone))
    hooks = {name: _stream_of(experiment, name) for name in receivers}
    offsets = {name: streams[hook] - clean[hook] for name, hook in hooks.items()}
    return experiment.with_offsets(offsets) - experiment.clean


def _stream_of(experiment: Experiment, receiver: str) -> str:
    """The hook point of the residual stream that a receiver reads."""
    graph = experiment.graph
    layer, at = divmod(graph.receivers.index(receiver), graph.receivers_per_layer)
    if layer == graph.n_layers:
        return experiment.parts[-1].end
    is_mlp = at == graph.channels["mlp"][0]
    return experiment.parts[layer].mlp_stream if is_mlp else experiment.parts[layer].stream
