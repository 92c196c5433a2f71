"""The chosen node: what it is, what the atlas knows of it, what it reads and what it feeds."""

from pathlib import Path
from urllib.parse import urlencode

import streamlit as st
from explorer import circuit_loaders, loaders, panels, supernodes, text
from explorer.circuit_views import View

from saelab.graphs import AttributionGraph, Edge, Node, answer_of
from saelab.graphs.cards import short_name
from saelab.graphs.node import READ_OUTS

__all__ = ["card", "inputs_and_outputs"]

N_EDGES = 6
N_EXAMPLES = 2


def card(view: View, graph: AttributionGraph, shown: AttributionGraph, node: Node) -> None:
    """Name, numbers, a pin, and what the atlas says."""
    labeled = _labeled(shown, node)
    panels.heading(short_name(labeled, graph), _where(node, graph))
    panels.stats(_numbers(view, graph, node))
    if node.id not in {one.id for one in shown.nodes}:
        st.html('<div class="sl sl-small">Not among the nodes that are drawn: pin it.</div>')
    pinned = node.id in view.pinned
    st.button(
        "Unpin" if pinned else "Pin",
        icon=":material/keep_off:" if pinned else ":material/keep:",
        help="Keep this node in the drawing, with a rim and its name.",
        key="pin it",
        on_click=_pin,
        args=(view, node.id, pinned),
    )
    if node.kind == "latent" and node.index is not None:
        _from_atlas(view, graph, node, node.index)


def inputs_and_outputs(graph: AttributionGraph, shown: AttributionGraph, node: Node) -> None:
    """What it reads, and what reads it; of the whole graph, also where it is pruned."""
    total = float(graph.totals[graph.place(node)])
    what = "its logit" if node.kind == "logit" else "its pre-activation"
    note = "" if total != total else f"all of it sums to {total:+.3g}, {what}"
    _table("What it reads", note, graph, shown, graph.into(node), inward=True)
    _table("What reads it", "", graph, shown, graph.out_of(node), inward=False)


def _labeled(shown: AttributionGraph, node: Node) -> Node:
    """The node with the name it has in the drawing."""
    return next((one for one in shown.nodes if one.id == node.id), node)


def _where(node: Node, graph: AttributionGraph) -> str:
    words = []
    if node.label and node.kind == "latent":
        words.append(f"latent {node.index}")
    elif node.kind in ("latent", "head") or (node.label and node.kind != "token"):
        words.append(node.kind.replace("_", " "))
    if node.layer is not None:
        words.append(f"layer {node.layer}")
    if node.position is not None and node.kind not in READ_OUTS:
        words.append(f"at ‹{graph.tokens[node.position].strip() or '·'}›")
    return ", ".join(words)


def _numbers(view: View, graph: AttributionGraph, node: Node) -> list[tuple[str, str]]:
    found = []
    if node.value is not None:
        found.append(("logit" if node.kind == "logit" else "activation", f"{node.value:.3g}"))
    if node.probability is not None:
        found.append(("probability", f"{node.probability:.1%}"))
    if node.kind not in READ_OUTS:
        place = graph.place(node)
        pruner = circuit_loaders.pruner(view.asked)
        known = pruner.influence if pruner is not None else graph.influence()
        found.append(("influence", f"{float(known[place]):.3f}"))
        answer = answer_of(graph)
        if answer is not None:
            pushed = circuit_loaders.push(view.asked).get(node.id, 0.0)
            found.append(
                (f"logits to {answer.label.strip()[:16] or 'the answer'}", f"{pushed:+.2f}")
            )
    return found


def _pin(view: View, node: str, pinned: bool) -> None:
    left = [one for one in view.pinned if one != node]
    ids = left if pinned else [*left, node]
    if ids:
        st.query_params["pin"] = ",".join(ids[-supernodes.MOST :])
    else:
        st.query_params.pop("pin", None)


def _from_atlas(view: View, graph: AttributionGraph, node: Node, latent: int) -> None:
    """The latent's label and strongest examples; or how to get them."""
    source = circuit_loaders.source_of(view.asked, graph)
    run = circuit_loaders.runs_by_hook(source).get(node.hook or "")
    if run is None:
        st.html('<div class="sl sl-small">Its dictionary is not under this folder.</div>')
        return
    atlas = loaders.atlas(run)
    if atlas is None:
        st.html(
            '<div class="sl sl-small">Its dictionary has no atlas yet, so what it fires on '
            f"elsewhere is not known: <code>{text.safe(_atlas_command(run))}</code></div>"
        )
        return
    found = atlas.latent(latent)
    panels.heading("Fires most on", panels.one_in(found.density))
    tail = found.tails[-1 if (node.value or 0) < 0 and len(found.tails) > 1 else 0]
    panels.examples(tail.top()[:N_EXAMPLES], found.max)
    if tail.promoted:
        panels.heading("Promotes")
        panels.effects(tail, tail.promoted[:6])
    link = panels.latent_link(latent, run, "All that is known of it")
    st.html(f'<div class="sl sl-small">{link}</div>')


def _atlas_command(run: str) -> str:
    """What makes the atlas of a run, from where the explorer was started."""
    one = loaders.run(run)
    folder = one.folder
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    if (one.folder / "sources.json").exists():
        return f"saelab atlas {folder}"
    return f"saelab atlas {folder} --model {one.model or 'MODEL'} --text {one.corpus or 'TEXT'}"


def _table(
    title: str,
    note: str,
    graph: AttributionGraph,
    shown: AttributionGraph,
    edges: tuple[Edge, ...],
    *,
    inward: bool,
) -> None:
    panels.heading(title, note)
    if not edges:
        st.html('<div class="sl sl-small">Nothing that this graph knows.</div>')
        return
    largest = abs(edges[0].weight)
    labels = {one.id: one for one in shown.nodes}
    rows = []
    for edge in edges[:N_EDGES]:
        other = edge.source if inward else edge.target
        name = short_name(labels.get(other.id, other), graph)
        bar = _bar(edge.weight, largest)
        rows.append([_link(other, name, graph), bar, f"{edge.weight:+.3g}"])
    panels.table(["", "", "adds"], rows, {2})
    if len(edges) > N_EDGES:
        rest = sum(edge.weight for edge in edges[N_EDGES:])
        adds = f", together {rest:+.3g}" if inward else ""
        st.html(f'<div class="sl sl-small">and {len(edges) - N_EDGES:,} more{adds}</div>')


def _link(node: Node, name: str, graph: AttributionGraph) -> str:
    """A link to the same page with another node, as HTML."""
    query = {key: str(value) for key, value in st.query_params.items()} | {"node": node.id}
    where = text.safe(_where(node, graph))
    return (
        f'<a href="{text.safe("circuits?" + urlencode(query))}" target="_self"><bdi>'
        f'{text.shown(name)}</bdi></a> <span class="sl-small">{where}</span>'
    )


def _bar(weight: float, largest: float) -> str:
    share = 50 * abs(weight) / largest if largest else 0.0
    side, hue = ("left", " p") if weight > 0 else ("right", " n")
    return (
        f'<div class="sl-bar{hue}" style="min-width:4.5rem" aria-hidden="true">'
        f'<i style="{side}:50%;width:{share:.1f}%"></i></div>'
    )
