"""What does a latent split into? Families in a wider dictionary, or across nested prefixes."""

import os
from pathlib import Path
from typing import Any

import streamlit as st
from explorer import address, exports, loaders, panels

from saelab.family_figures import FamilyEdge, family_figure
from saelab.geometry_survey import GeometrySurvey, SplitFamily, TreeFamily

__all__ = ["show"]

MOST_SHOWN = 40
"""Members of a family that are drawn."""
NESTED = "its own prefixes"


def show(name: str, survey: GeometrySurvey) -> None:
    """The part of the page."""
    options = ([NESTED] if survey.tree is not None else []) + list(survey.splits)
    if not options:
        _missing(name)
        return
    picked = options[0]
    if len(options) > 1:
        picked = st.selectbox("Families in", options, key="families") or options[0]
    if picked == NESTED and survey.tree is not None:
        _tree(name, survey.tree)
    else:
        _split(name, survey.splits[picked])


def _missing(name: str) -> None:
    run = loaders.run(name)
    wider = [
        one.folder
        for one in loaders.runs().values()
        if one.finished and one.hook == run.hook and one.model == run.model
        and one.d_sae > run.d_sae
    ]  # fmt: skip
    st.html(
        '<div class="sl sl-small">A family needs a second, wider dictionary of the same hook point'
        f" ({'this folder has one' if wider else 'there is none in this folder'}), or one trained "
        "on nested prefixes (Matryoshka). It shows which latents split, into what, and how often "
        "chance would say so.</div>"
    )
    st.code(
        f"saelab geometry {run.folder} --wider {wider[0] if wider else 'WIDER_RUN'}",
        language="bash",
    )


def _split(name: str, family: SplitFamily) -> None:
    panels.stats(
        [
            (f"children found (codes moved apart {family.n_edges_null:,})", f"{family.n_edges:,}"),
            ("latents with two children or more", f"{family.n_splits:,}"),
            (
                f"alike and never together: absorption (moved apart {family.n_absorbed_null:,})",
                f"{family.n_absorbed:,}",
            ),
            (f"of {family.n_wider:,} wider latents have no parent", f"{family.n_orphans:,}"),
        ]
    )
    if not family.splits:
        st.html('<div class="sl sl-small">No latent has two children.</div>')
        return
    other = _run_at(name, family.wider)
    own, theirs = _labels(name), _labels(other)
    place = _pick([f"{own(one[0])} ({len(one[3])})" for one in family.splits])
    parent, covered, overlap, children = family.splits[place]
    names = {"parent": own(parent)}
    edges = []
    for child, cosine, given in children[:MOST_SHOWN]:
        key = str(child)
        names[key] = f"{theirs(child)}  {given:.0%}"
        note = f"cosine {cosine:+.2f}; where it fires, its parent does in {given:.0%}"
        edges.append(FamilyEdge(parent="parent", child=key, weight=max(0.0, given), note=note))
    panels.heading(
        f"What does {own(parent)} split into?", "where a child fires, how often its parent does"
    )
    exports.chart(
        family_figure("parent", edges, names, (name, other or family.wider)),
        "family",
        lambda: _split_rows(family),
        key=f"family {family.wider} {place}",
    )
    st.html(
        f'<div class="sl sl-small">Where {panels.latent_link(parent, name, own(parent))} fires, '
        f"some child does in {covered:.0%}; where a child fires, another does too in {overlap:.0%}"
        " (0% is a clean partition).</div>"
    )


def _tree(name: str, tree: TreeFamily) -> None:
    panels.stats(
        [
            (
                f"of {tree.candidates:,} latents above the first prefix have a parent (codes moved "
                f"apart {1 - tree.orphan_rate_null:.0%})",
                f"{1 - tree.orphan_rate:.0%}",
            ),
            ("latents in each prefix", " · ".join(f"{end:,}" for end in tree.prefixes)),
        ]
    )
    roots = tree.roots(60)
    if not roots:
        st.html('<div class="sl sl-small">No latent has another below it.</div>')
        return
    own = _labels(name)
    place = _pick([f"{own(root)} ({size})" for root, size in roots])
    root = roots[place][0]
    pairs = tree.family(root)[:MOST_SHOWN]
    members = {root, *(child for _, child in pairs)}
    edges = [
        FamilyEdge(
            parent=str(parent), child=str(child), weight=float(tree.score[child]),
            note=f"P(parent | child) times cosine {float(tree.score[child]):.2f}",
        )
        for parent, child in pairs
    ]  # fmt: skip
    panels.heading(f"What lies under {own(root)}?", "from general to special")
    exports.chart(
        family_figure(
            str(root), edges, {str(latent): own(latent) for latent in members}, ("root",)
        ),
        "family",
        lambda: _tree_rows(tree),
        key=f"tree {root}",
    )


def _pick(options: list[str]) -> int:
    """The family in the address, and a box to choose another."""
    current = address.integer("family", 0, below=10**6)
    current = current if current < len(options) else 0
    with st.columns([0.5, 0.5])[0]:
        picked = st.selectbox(
            "Family of (members)",
            list(range(len(options))),
            index=current,
            format_func=lambda row: options[row],
            key=f"family now {current}",
        )
    if picked is not None and picked != current:
        st.query_params["family"] = str(picked)
        st.rerun()
    return current


def _run_at(name: str, relative: str) -> str | None:
    """The name of a run by its folder relative to another's, if it is among those found."""
    folder = Path(os.path.normpath(loaders.run(name).folder / relative))
    return next((one for one, run in loaders.runs().items() if run.folder == folder), None)


def _labels(name: str | None) -> Any:
    """Calls latents by their labels, or by their numbers where there are none."""
    atlas = loaders.atlas(name) if name else None
    found = {} if atlas is None else atlas.labels()

    def called(latent: int) -> str:
        return f"{latent} {found.get(latent, '')}".strip()

    return called


def _split_rows(family: SplitFamily) -> list[dict[str, Any]]:
    return [
        {"parent": parent, "child": child, "cosine": cosine, "parent_given_child": given,
         "covered": covered, "overlap": overlap}
        for parent, covered, overlap, children in family.splits
        for child, cosine, given in children
    ]  # fmt: skip


def _tree_rows(tree: TreeFamily) -> list[dict[str, Any]]:
    return [
        {"latent": latent, "parent": int(parent), "score": float(tree.score[latent])}
        for latent, parent in enumerate(tree.parent.tolist())
        if parent >= 0
    ]
