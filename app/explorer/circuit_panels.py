"""The parts of the circuits page: what it is of, how far to believe it, what is drawn, groups."""

import math

import streamlit as st
from explorer import address, circuit_loaders, circuit_views, panels, supernodes, text
from explorer.circuit_loaders import Asked
from explorer.circuit_views import VIEWS, View

from saelab.errors import DataError
from saelab.graphs import AttributionGraph, Node, Scores, answer_of, scores
from saelab.graphs.cards import short_name
from saelab.graphs.layered_figure import GROUP_HUES

__all__ = ["controls", "figure", "groups", "lead", "numbers", "selected"]

KEPT = (20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
EDGES = (50, 60, 70, 80, 90, 95, 98, 100)
"""Shares of influence to choose from, in percent."""


def lead(asked: Asked, graph: AttributionGraph) -> None:
    """What was asked, and what the model says."""
    answer = answer_of(graph)
    tokens = graph.tokens[1:] if _is_mark(graph.tokens[0]) else graph.tokens
    prompt = text.safe("".join(tokens[-24:]).strip())
    said = "nothing" if answer is None else f"<b>{text.shown(answer.label or answer.id)}</b>"
    chance = ""
    if answer is not None and answer.probability is not None:
        chance = f" ({answer.probability:.0%} likely)"
    about, source = graph.metadata, circuit_loaders.source_of(asked, graph)
    with_what = f"{len(about.get('dictionaries') or [])} dictionaries"
    if source is not None and len(source.runs) == 1:
        with_what = text.safe(source.runs[0])
    elif source is not None and source.name:
        with_what = f"the {len(source.runs)} transcoders of <b>{text.safe(source.name)}</b>"
    model = text.safe(str((about.get("model") or {}).get("name") or "an unnamed model"))
    panels.lead(
        f"Why does “<bdi>{prompt}</bdi>” lead to {said}{chance}? Taken apart with {with_what} in "
        f"{model}; {about.get('traced_latents', 0):,} of {about.get('active_latents', 0):,} active "
        "latents are traced."
    )


def numbers(asked: Asked, graph: AttributionGraph, shown: AttributionGraph) -> None:
    """Both scores with their floors, and what the drawing holds."""
    pruner = circuit_loaders.pruner(asked)
    found = pruner.scores if pruner is not None else _scores(graph)
    pairs = []
    if found is not None:
        pairs = [
            (
                f"of influence ends at the prompt; {found.replacement_floor:.1%} with no latents",
                f"{found.replacement:.1%}",
            ),
            (
                f"of what is read is no error; {found.completeness_floor:.1%} with no latents",
                f"{found.completeness:.1%}",
            ),
        ]
    memory = shown.pruning
    n_nodes, n_edges = (
        (len(graph), graph.n_edges) if memory is None else (memory.nodes, memory.edges)
    )
    share = 1.0 if memory is None else memory.node_share
    if pruner is not None and memory is not None:  # errors may be hidden, and pins shown
        share = sum(memory.influence) / max(float(pruner.influence.sum()), 1e-300)
    pairs += [
        (f"of influence is drawn, at {len(shown):,} of {n_nodes:,} nodes", f"{share:.0%}"),
        (f"edges of {n_edges:,} are drawn", f"{shown.n_edges:,}"),
    ]
    cells = "".join(
        f'<div><div class="v">{text.safe(value)}</div><div class="k">{text.safe(name)}</div></div>'
        for name, value in pairs
    )
    st.html(
        '<div class="sl sl-stats" style="display:grid;gap:.4rem 1.6rem;'
        f'grid-template-columns:repeat({len(pairs)},1fr)">{cells}</div>'
    )


def _is_mark(token: str) -> bool:
    """Whether a token is one that models put first, such as <|endoftext|> or <s>."""
    return token.startswith("<") and token.endswith(">") and len(token) < 20


def _scores(graph: AttributionGraph) -> Scores | None:
    try:
        return scores(graph)
    except DataError:
        return None


def controls(asked: Asked, graph: AttributionGraph) -> tuple[View, str]:
    """How much is shown, and how; in the address."""
    bar = st.columns([0.22, 0.22, 0.26, 0.15, 0.15], vertical_alignment="bottom")
    whole = graph.pruning is None
    why = None if whole else "This graph was pruned before it was saved; it is shown as it is."
    keep = bar[0].select_slider(
        "% of node influence", KEPT, 70, key="keep",
        bind="query-params", disabled=not whole,
        help=why or "The fewest nodes that hold this share of all influence.",
    )  # fmt: skip
    edges = bar[1].select_slider(
        "% of edge influence", EDGES, 80, key="edges",
        bind="query-params", disabled=not whole,
        help=why or "Among the nodes kept, the fewest edges that hold this share.",
    )  # fmt: skip
    kind = bar[2].segmented_control(
        "Draw", VIEWS, default=VIEWS[0], key="view", bind="query-params"
    )
    errors = bar[3].toggle(
        "Errors", True, key="errors", bind="query-params",
        help="What dictionaries miss, and biases. They hold their influence whether shown or not.",
    )  # fmt: skip
    words = bar[4].toggle(
        "Words", False, key="words", bind="query-params",
        help="Latents without a label are named by those of the likeliest answers that what they "
        "write would promote, if it went straight to the logits; in early layers that says little. "
        "Runs the model once.",
    )  # fmt: skip
    view = View(
        asked=asked,
        stamp=circuit_loaders.stamp(asked),
        keep=(keep or 70) / 100,
        edges=(edges or 80) / 100,
        errors=bool(errors),
        words=bool(words),
        pinned=supernodes.ids(address.text("pin", longest=4000)),
        groups=supernodes.parsed(address.text("groups", longest=8000)),
        alike=_alike(),
    )
    return view, kind or VIEWS[0]


def _alike() -> float:
    """Similarity of automatic groups: the slider below has not been drawn when it is needed."""
    asked = st.session_state.get("alike", address.text("alike", "0", longest=10))
    try:
        value = float(asked)
    except ValueError:
        value = math.nan
    return value if 0 <= value <= 1 else 0.0


def selected(graph: AttributionGraph, shown: AttributionGraph) -> Node:
    """The node of the address; else the most influential latent that is shown."""
    known = {node.id: node for node in graph.nodes}
    if (asked := address.text("node", longest=200)) in known:
        return known[asked]
    influence = shown.influence().tolist()
    latents = [at for at, node in enumerate(shown.nodes) if node.kind == "latent"]
    best = max(latents or range(len(shown)), key=lambda at: influence[at])
    return shown.nodes[best]


def figure(view: View, kind: str, node: Node) -> None:
    """The drawing; a click chooses a node."""
    key = f"drawing {kind}"
    # Until the reader chooses, nothing fades behind the node that is told of beside.
    chosen = node.id if "node" in st.query_params else ""
    if chosen and kind == VIEWS[1]:
        groups_ = circuit_views.shown(view).groups
        chosen = next((name for name, ids in groups_.items() if node.id in ids), node.id)
    st.plotly_chart(
        circuit_views.figure(view, kind, chosen),
        theme=None,
        key=key,
        on_select=lambda: _note(key, view),
        selection_mode="points",
        config={"displaylogo": False},
    )
    st.html(
        '<div class="sl sl-small">Prompt from left to right, layers upward; size is influence. '
        '<b style="color:rgb(var(--sl-pos))">▲</b> and solid lines promote, '
        '<b style="color:rgb(var(--sl-neg))">▼</b> and dotted lines suppress: a triangle says '
        "what the latent adds to the answer along all paths. ◇ error, ■ token, ⬢ answer. Click a "
        "node; drag to zoom, double-click to go back.</div>"
    )


def _note(key: str, view: View) -> None:
    """Write the node that was clicked into the address."""
    points = st.session_state[key]["selection"].get("points", [])
    ids = [point.get("customdata") for point in points]
    ids = [one[0] if isinstance(one, list) and one else one for one in ids]
    for one in ids:
        if isinstance(one, str) and one:
            members = circuit_views.shown(view).groups.get(one)
            st.query_params["node"] = members[0] if members else one
            return


def groups(view: View, shown: AttributionGraph, node: Node) -> None:
    """Supernodes, by hand and by co-influence."""
    left, right = st.columns([0.42, 0.58], gap="large")
    with left:
        st.slider(
            "Group latents that play one role: mean cosine at least", 0.0, 0.95, 0.0, 0.05,
            key="alike", bind="query-params",
            help="Latents that read from and write to the same nodes. 0 groups none.",
        )  # fmt: skip
        with st.form("group", border=False):
            name = st.text_input(
                f"Put {text.plain(short_name(node, shown))} into the group", key="group name",
                max_chars=40, placeholder="a name, such as capitals",
            )  # fmt: skip
            put = st.form_submit_button("Put it there")
        if put and (name := supernodes.named(name)):
            _put(view, node.id, name)
            st.rerun()
        for one, _ in view.groups:
            st.button(
                f"Dissolve {text.plain(one)}", key=f"dissolve {one}", on_click=_dissolve,
                args=(view, one),
            )  # fmt: skip
    with right:
        _group_table(shown)


def _group_table(shown: AttributionGraph) -> None:
    if not shown.groups:
        st.html(
            '<div class="sl sl-small">No group yet. Groups are drawn with a rim of one hue, and as '
            "one item each under “supernodes”.</div>"
        )
        return
    influence = dict(zip((n.id for n in shown.nodes), shown.influence().tolist(), strict=True))
    rows = []
    for nth, (name, ids) in enumerate(list(shown.groups.items())[:12]):
        hue = GROUP_HUES[nth % len(GROUP_HUES)]
        members = ", ".join(short_name(shown.node(one), shown) for one in ids[:5])
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        rows.append(
            [
                f'<b style="color:{hue}">◯</b> {text.safe(name)}',
                text.safe(members + more),
                f"{sum(influence[one] for one in ids):.3f}",
            ]
        )
    panels.table(["group", "members", "influence"], rows, {2})
    if len(shown.groups) > 12:
        st.html(f'<div class="sl sl-small">and {len(shown.groups) - 12} smaller ones</div>')


def _put(view: View, node: str, name: str) -> None:
    left = [(one, tuple(i for i in ids if i != node)) for one, ids in view.groups]
    found = dict(left)
    found[name] = (*found.get(name, ()), node)
    st.query_params["groups"] = supernodes.written(tuple(found.items()))


def _dissolve(view: View, name: str) -> None:
    left = tuple(one for one in view.groups if one[0] != name)
    if left:
        st.query_params["groups"] = supernodes.written(left)
    else:
        st.query_params.pop("groups", None)
