"""What if a latent were off, or stronger? What the graph predicts, and what the model does."""

import streamlit as st
import torch
from explorer import circuit_loaders, circuit_views, loaders, panels, style, text
from explorer.circuit_loaders import Asked

from saelab.circuits import agreement
from saelab.graphs import AttributionGraph, Node, answer_of, predicted_change
from saelab.graphs.agreement_figure import agreement_figure
from saelab.graphs.cards import short_name

__all__ = ["change", "check"]

N_READ_OUTS = 6
N_CHECKED = 12


def change(asked: Asked, graph: AttributionGraph, node: Node) -> None:
    """One latent at another value: predicted, and measured when asked."""
    if node.kind != "latent" or not node.value:
        st.html('<div class="sl sl-small">Only a latent can be given another value.</div>')
        return
    panels.heading("What if it were different?", "the chosen latent at another activation")
    factor = st.slider(
        "Its activation, times", 0.0, 3.0, 0.0, 0.25, key="factor", bind="query-params",
        help="0 switches it off, 1 leaves it as it is.",
    )  # fmt: skip
    value = factor * node.value
    found = predicted_change(graph, {node.id: value})
    key = (asked, node.id, value)
    reason = _why_not(asked, graph)
    if st.button("Measure it in the model", key="measure", disabled=bool(reason), help=reason):
        st.session_state["measured change"] = key
    done = st.session_state.get("measured change") == key
    measured = circuit_views.measured(asked, node.id, value) if done else None
    weights = [float(graph.weights[graph.place(one)]) for one in found.read_outs]
    order = sorted(range(len(weights)), key=lambda at: -weights[at])[:N_READ_OUTS]
    rows = [
        [
            f"<bdi>{text.shown(found.read_outs[at].label or found.read_outs[at].id)}</bdi>",
            f"{graph.totals[graph.place(found.read_outs[at])]:+.2f}",
            f"{found.direct[at]:+.3f}",
            f"{found.paths[at]:+.3f}",
            "–" if measured is None else f"<b>{measured[at]:+.3f}</b>",
        ]
        for at in order
    ]
    columns = ["answer", "logit", "by its edges", "by all paths", "in the model"]
    panels.table(columns, rows, {1, 2, 3, 4})
    if measured is None:
        st.html(
            '<div class="sl sl-small">What the graph predicts, with norm scales and attention '
            "patterns held. The model holds nothing: measure it.</div>"
        )


def check(asked: Asked, graph: AttributionGraph, shown: AttributionGraph) -> None:
    """The strongest latents off one by one: does the model agree with the graph?"""
    reason = _why_not(asked, graph)
    if st.button(
        f"Switch off the {N_CHECKED} strongest, one by one", key="check", disabled=bool(reason),
        help=reason or "Latents that add most to the answer along all paths; two passes of the "
        "model each.",
    ):  # fmt: skip
        st.session_state["checked"] = asked
    if st.session_state.get("checked") != asked:
        if reason:
            st.html(f'<div class="sl sl-small">{text.safe(reason)}</div>')
        return
    names, direct, paths, measured = _checked(asked, graph)
    if not names:
        st.html('<div class="sl sl-small">No latent is traced in this graph.</div>')
        return
    labels = {one.id: short_name(one, shown) for one in shown.nodes}
    st.plotly_chart(
        style.themed(
            agreement_figure([labels.get(one, one) for one in names], direct, paths, measured)
        ),
        theme=None,
        key="agreement",
    )
    truth = torch.tensor(measured)
    by_edges, by_paths = (agreement(torch.tensor(one), truth).cosine for one in (direct, paths))
    st.html(
        '<div class="sl sl-small">Cosine of predicted and measured changes of the answer: '
        f"<b>{by_edges:+.2f}</b> by direct edges, <b>{by_paths:+.2f}</b> by all paths; 0 is what "
        "a graph that knows nothing would have.</div>"
    )


def _checked(
    asked: Asked, graph: AttributionGraph
) -> tuple[list[str], list[float], list[float], list[float]]:
    """Ids, and changes of the answer: by edges, by paths, and in the model; measured once."""
    answer = answer_of(graph)
    pushed = circuit_loaders.push(asked)
    latents = [one for one in graph.nodes if one.kind == "latent" and one.value]
    latents.sort(key=lambda one: -abs(pushed.get(one.id, 0.0)))
    names, direct, paths, measured = [], [], [], []
    some = latents[:N_CHECKED] if answer is not None else []
    bar = st.progress(0.0, "Switching latents off …")
    for nth, node in enumerate(some):
        bar.progress(nth / len(some), f"Switching off latent {nth + 1} of {len(some)} …")
        predicted = predicted_change(graph, {node.id: 0.0})
        at = [one.id for one in predicted.read_outs].index(answer.id if answer else "")
        names.append(node.id)
        direct.append(float(predicted.direct[at]))
        paths.append(float(predicted.paths[at]))
        measured.append(circuit_views.measured(asked, node.id, 0.0)[at])
    bar.empty()
    return names, direct, paths, measured


def _why_not(asked: Asked, graph: AttributionGraph) -> str:
    """Why the model cannot be asked, as far as files say; "" if it can be."""
    source = circuit_loaders.source_of(asked, graph)
    if source is None:
        root = loaders.root().name
        return f"The dictionaries that this graph was traced with are not under {root}."
    return circuit_loaders.why_not(source)
