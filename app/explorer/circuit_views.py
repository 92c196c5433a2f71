"""What of a graph is shown: pruned, grouped and named as the address says, computed once."""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import streamlit as st
import torch
from explorer import circuit_loaders, loaders, style, supernodes
from explorer.circuit_loaders import Asked

from saelab.graphs import AttributionGraph, Pruner, group_drawing, layered_figure, node_drawing
from saelab.graphs.editing import part_of
from saelab.graphs.node import READ_OUTS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["VIEWS", "View", "figure", "measured", "shown"]

VIEWS = ("nodes", "supernodes")
"""Every node, or every group as one."""
MAX_NAMED = 400
"""Latents that get the words they promote for a name; further ones keep their number."""


class View(NamedTuple):
    """What is shown of which graph."""

    asked: Asked
    """The graph."""
    stamp: float
    """When it last changed."""
    keep: float
    """Share of node influence that is kept."""
    edges: float
    """Share of edge influence that is kept."""
    errors: bool
    """Whether errors and biases are shown."""
    words: bool
    """Whether latents without a label are named by what they promote."""
    pinned: tuple[str, ...]
    """Ids."""
    groups: supernodes.Groups
    """By hand."""
    alike: float
    """Similarity of automatic groups; 0 for none."""


def shown(view: View) -> AttributionGraph:
    """The graph as it is shown."""
    return _shown(view)


@st.cache_resource(show_spinner=False, max_entries=24)
def _shown(view: View) -> AttributionGraph:
    graph = _pruned(view.asked, view.stamp, view.keep, view.edges, view.pinned)
    if not view.errors:
        kinds = {"token", "latent", "head", *READ_OUTS}
        graph = graph.subgraph([node.id for node in graph.nodes if node.kind in kinds])
    if view.words:
        graph = graph.with_labels(_words(view, graph))
    there = {node.id for node in graph.nodes}
    graph = supernodes.grouped(graph, view.groups, view.alike)
    mine = dict.fromkeys(one for one in (*graph.pinned, *view.pinned) if one in there)
    return graph.pin(mine)


@st.cache_resource(show_spinner=False, max_entries=24)
def _pruned(
    asked: Asked,
    stamp: float,  # noqa: ARG001
    keep: float,
    edges: float,
    pinned: tuple[str, ...],
) -> AttributionGraph:
    """Pruned; pinned nodes that pruning would drop stay, with the edges to what is kept."""
    pruner = circuit_loaders.pruner(asked)
    if pruner is None:
        return circuit_loaders.whole(asked)
    graph, pruned = pruner.graph, pruner.at(keep, edges)
    places = {node.id: place for place, node in enumerate(graph.nodes)}
    there = {node.id for node in pruned.nodes}
    back = [places[one] for one in pinned if one in places and one not in there]
    return _with_nodes(pruner, pruned, places, back) if back else pruned


def _with_nodes(
    pruner: Pruner, pruned: AttributionGraph, places: dict[str, int], back: list[int]
) -> AttributionGraph:
    """The pruned graph with some nodes it had dropped, and their edges to what is there."""
    graph = pruner.graph
    kept = torch.tensor([places[node.id] for node in pruned.nodes])
    nodes = torch.zeros(len(graph), dtype=torch.bool)
    nodes[kept], nodes[torch.tensor(back)] = True, True
    known = kept[pruned.target] * len(graph) + kept[pruned.source]
    edges = torch.isin(graph.target * len(graph) + graph.source, known)
    extra = torch.zeros(len(graph), dtype=torch.bool)
    extra[torch.tensor(back)] = True
    edges |= (extra[graph.source] | extra[graph.target]) & nodes[graph.source] & nodes[graph.target]
    influence, cumulative = pruner.influence[nodes], pruner.cumulative[nodes]
    memory = pruned.pruning and replace(
        pruned.pruning, influence=tuple(influence.tolist()), cumulative=tuple(cumulative.tolist())
    )
    return replace(part_of(graph, nodes, edges), pruning=memory)


def _words(view: View, graph: AttributionGraph) -> dict[str, str]:
    """The tokens each latent without a label would promote, after an arrow."""
    places = graph.influence().argsort(descending=True).tolist()
    some = [graph.nodes[place] for place in places]
    bare = [node.id for node in some if node.kind == "latent" and not node.label][:MAX_NAMED]
    found = circuit_loaders.reopened(view.asked).promoted(bare)
    return {
        name: "\u2192 " + " \u00b7 ".join(token.strip() or repr(token) for token in tokens)
        for name, tokens in found.items()
    }


def figure(view: View, kind: str, selected: str) -> "Figure":
    """The drawing in the reader's theme; made once for each choice."""
    return _figure(view, kind, selected, style.is_dark())


@st.cache_resource(show_spinner=False, max_entries=48)
def _figure(view: View, kind: str, selected: str, dark: bool) -> "Figure":  # noqa: ARG001
    graph = shown(view)
    push = circuit_loaders.push(view.asked)
    drawn = group_drawing(graph, push) if kind == VIEWS[1] else node_drawing(graph, push)
    # In the supernode view groups are items; in the other one their members have rims.
    groups = None if kind == VIEWS[1] else graph.groups
    return style.themed(
        layered_figure(drawn, selected=selected, pinned=graph.pinned, groups=groups)
    )


def measured(asked: Asked, node: str, value: float) -> list[float]:
    """Change of every read-out in the running model when one latent gets another value."""
    return _measured(asked, circuit_loaders.stamp(asked), node, value)


@st.cache_data(show_spinner="Running the model twice …", max_entries=256)
def _measured(asked: Asked, stamp: float, node: str, value: float) -> list[float]:  # noqa: ARG001
    opened = circuit_loaders.reopened(asked)
    with loaders.model_lock:
        return opened.measured({node: value}).tolist()
