"""Which circuit? A graph that was saved, or a prompt to trace now."""

import streamlit as st
from explorer import address, circuit_loaders, loaders, panels, text
from explorer.circuit_loaders import Asked, Source

from saelab.graphs import AttributionGraph

__all__ = ["choose", "opened"]

OF_A_GRAPH = ("graph", "prompt", "with", "target", "latents", "node", "pin", "groups")
"""What the address says of one graph, and means nothing for another."""
BUDGETS = (50, 100, 200, 400, 800)
"""Latents to trace, to choose from; the time grows with them."""
DEFAULT_BUDGET = 100
LONGEST = 1000
"""Characters of a prompt."""


def choose(run: str) -> Asked | None:
    """The graph the address names, with the controls to choose another; None if there is none."""
    saved, options = circuit_loaders.graphs(), _options(run)
    asked = _asked(list(saved), run, options)
    if asked is None:
        _form(run, options, asked)
    else:
        left, right = st.columns([0.72, 0.28], vertical_alignment="bottom")
        with left:
            _pick(list(saved), asked)
        if options:
            with right.popover("Trace a prompt", width="stretch", icon=":material/add:"):
                _form(run, options, asked)
    if asked is None and not options:
        panels.empty(
            "There is no graph, and nothing to trace with.",
            "A graph takes a prediction apart into latents. Transcoders of all layers explain most "
            "of it; any dictionary explains a part.",
            "python -m trainers.transcoder_set runs/set",
        )
    return asked


def opened(asked: Asked) -> AttributionGraph:
    """The graph; with a bar while a prompt is traced."""
    if asked.saved:
        return circuit_loaders.whole(asked)
    place = st.empty()

    def shown(done: int, total: int, what: str) -> None:
        place.progress(min(1.0, done / max(total, 1)), f"Tracing: {done:,} of {total:,} {what}")

    try:
        return circuit_loaders.whole(asked, shown)
    finally:
        place.empty()


def _asked(saved: list[str], run: str, options: list[Source]) -> Asked | None:
    prompt = address.text("prompt", longest=LONGEST)
    if prompt.strip():
        names = [one.name for one in options]
        return Asked(
            source=address.text("with", names[0] if names else run, longest=300),
            prompt=prompt,
            target=address.text("target", longest=100),
            latents=address.integer("latents", DEFAULT_BUDGET, below=2001),
        )
    if name := address.text("graph", longest=300):
        return Asked(saved=name)
    near = [one for one in saved if run and one.partition("/")[0] == run.partition("/")[0]]
    return Asked(saved=(near or saved)[0]) if saved else None


def _options(run: str) -> list[Source]:
    """What a prompt can be traced with: sets of the run's model first, then the run alone."""
    if not run:
        return []
    known = circuit_loaders.sources()
    model = loaders.run(run).model
    sets = [one for one in known.values() if len(one.runs) > 1 and one.model == model]
    sets.sort(key=lambda one: run not in one.runs)
    return [*sets, *([known[run]] if run in known else [])]


def _pick(saved: list[str], asked: Asked | None) -> None:
    current = asked.saved if asked and asked.saved else ""
    names = saved if current or asked is None else ["", *saved]
    prompt = asked.prompt if asked else ""

    def shown(name: str) -> str:
        return name or f"traced here: {text.plain(prompt)}"

    options = names if current in names else [current, *names]
    chosen = st.selectbox(
        "Graph", options, index=options.index(current), format_func=shown,
        key=f"graph of {current} {prompt[:40]}",
        help="Graphs that `saelab trace` saved under the folder the explorer was started on.",
    )  # fmt: skip
    if chosen and chosen != current:
        _leave()
        st.query_params["graph"] = chosen
        st.rerun()


def _form(run: str, options: list[Source], asked: Asked | None) -> None:
    """A prompt, what to trace it with, and how far."""
    if not options:
        return
    by_name = {one.name: one for one in options}
    with st.form("trace", border=False):
        prompt = st.text_input(
            "Prompt", asked.prompt if asked else "", LONGEST, key="traced prompt",
            placeholder="The capital of France is",
        )  # fmt: skip
        columns = (
            st.columns([0.4, 0.3, 0.3], vertical_alignment="bottom")
            if asked is None
            else [st.container()] * 3
        )
        source = columns[0].selectbox(
            "With", list(by_name), format_func=lambda name: _described(by_name[name]),
            key=f"with of {run}",
        )  # fmt: skip
        target = columns[1].text_input(
            "Token to explain", asked.target if asked else "", 100, key="traced target",
            placeholder="the likeliest", help="With its leading space, such as ' Paris'.",
        )  # fmt: skip
        budget = columns[2].select_slider(
            "Latents to trace", BUDGETS, DEFAULT_BUDGET, key="traced latents",
            help="The most influential ones; others count as errors. More take longer.",
        )  # fmt: skip
        reason = circuit_loaders.why_not(by_name[source]) if source else ""
        go = st.form_submit_button("Trace", type="primary", disabled=bool(reason))
    if reason:
        st.html(f'<div class="sl sl-small">{text.safe(reason)}</div>')
    if go and prompt.strip():
        _leave()
        st.query_params.update({"prompt": prompt, "with": str(source), "latents": str(budget)})
        if target.strip():
            st.query_params["target"] = target
        st.rerun()


def _described(source: Source) -> str:
    n = len(source.runs)
    return f"{source.name}: {n} transcoders" if n > 1 else f"{source.name} alone"


def _leave() -> None:
    """Forget what the address says of the present graph."""
    for name in OF_A_GRAPH:
        st.query_params.pop(name, None)
