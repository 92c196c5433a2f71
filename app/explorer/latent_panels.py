"""The parts of a latent's page: its title, both tails, what it pushes, its company, notes."""

import tempfile
from pathlib import Path

import streamlit as st
from explorer import loaders, pages, panels, text

from saelab.atlas import Atlas, LatentCard, TailCard

__all__ = [
    "evidence",
    "first_to_show",
    "neighbors",
    "notes",
    "pushes",
    "tail_examples",
    "tail_heading",
    "title",
    "try_text",
    "words",
]


@st.cache_data(show_spinner=False)
def _first(folder: str, created: str) -> int:  # noqa: ARG001
    found = Atlas.open(folder).latents(
        "count >= 20", "auto_score_name = 'F1' DESC, auto_score DESC", 1
    )
    return int(found["latent"].iloc[0]) if len(found) else 0


def first_to_show(atlas: Atlas) -> int:
    """The latent with the best automatic label: the page's default."""
    return _first(str(atlas.folder), str(atlas.about.get("created")))


def title(card: LatentCard, run: str, d_sae: int) -> None:
    """The label, with the latents before and after it."""
    left, star, before, after = st.columns([0.82, 0.06, 0.06, 0.06], vertical_alignment="center")
    with left:
        st.html(f'<h1 style="margin:0">{text.safe(card.label or f"Latent {card.latent}")}</h1>')
    with star:
        starred = st.button(
            "★" if card.starred else "☆", help="Star this latent, to find it again", key="star"
        )
    if starred:
        atlas = loaders.atlas(run)
        if atlas is not None:
            atlas.annotate(card.latent, starred=not card.starred)
        st.rerun()
    if before.button("←", help="The latent before", disabled=card.latent == 0, key="before"):
        pages.go("latent", run=run, latent=card.latent - 1)
    if after.button("→", help="The next latent", disabled=card.latent + 1 >= d_sae, key="after"):
        pages.go("latent", run=run, latent=card.latent + 1)


def tail_heading(tail: TailCard, signed: bool) -> None:
    """Which side this is, and how often it fires."""
    words = "Fires on"
    if signed:
        words = "Above zero" if tail.sign > 0 else "Below zero"
    quiet = (
        f"{panels.one_in(tail.density)}, {tail.count:,} of them, in {tail.n_documents:,} documents"
    )
    panels.heading(words, quiet, tail.sign if signed else 0)


def tail_examples(tail: TailCard, kind: str, top: float) -> None:
    """The examples of one side, chosen as the reader asked."""
    if not tail.count:
        st.html('<div class="sl sl-small">This side never fired.</div>')
    elif kind == "Equal intervals":
        for place in reversed(range(len(tail.intervals))):
            interval = tail.intervals[place]
            panels.heading(
                f"{interval.low:.3g} to {interval.high:.3g}",
                f"{interval.share:.1%} of where it fires",
            )
            panels.examples(tail.of_interval(place), top)
    elif kind == "Quantiles":
        for place in reversed(range(len(tail.quantile_edges) - 1)):
            low, high = tail.quantile_edges[place], tail.quantile_edges[place + 1]
            panels.heading(f"{low:.3g} to {high:.3g}", "an equal share of where it fires")
            panels.examples(tail.of_quantile(place), top)
    elif kind == "Near misses":
        st.html(
            '<div class="sl sl-small">One of its own tokens stands there; it stays silent.</div>'
        )
        panels.examples(tail.near_misses, top)
    else:
        panels.examples(tail.top(), top)


def pushes(tail: TailCard, card: LatentCard) -> None:
    """What it promotes and suppresses."""
    if card.effects_missing:
        if tail.sign > 0:
            st.html(f'<div class="sl sl-small">{text.safe(card.effects_missing)}</div>')
        return
    when = "" if not card.signed else " when above zero" if tail.sign > 0 else " when below zero"
    panels.heading(f"Promotes{when}", "logits, straight through the final norm")
    panels.effects(tail, tail.promoted)
    panels.heading(f"Suppresses{when}")
    panels.effects(tail, tail.suppressed)


def evidence(card: LatentCard) -> None:
    """Every label and how well each does."""
    if not card.labels:
        return
    panels.heading("What it could be called", "and how well each label does")
    rows = []
    for one in card.labels:
        side = {1: "+", -1: "−", 0: ""}[one.sign] if card.signed else ""
        score = f"{one.score:.2f} {text.safe(one.score_name)}" if one.score is not None else "–"
        source = text.safe(one.source if one.kind in {"llm", "human"} else one.kind)
        rows.append([f"{side} {text.safe(one.text)}".strip(), source, score])
    panels.table(["label", "from", "score"], rows, {2})


def words(card: LatentCard) -> None:
    """The tokens it fires on most, and how far they explain it."""
    for tail in card.tails:
        some = [one for one in tail.profile if one.family == "token" and one.count_rank is not None]
        some = sorted(some, key=lambda one: one.count_rank or 0)[:6]
        if not some:
            continue
        side = "" if not card.signed else " above zero" if tail.sign > 0 else " below zero"
        panels.heading(f"Tokens it fires on{side}")
        rows = [
            [
                f"<bdi>{text.shown(one.text)}</bdi>",
                f"{one.share:.0%}",
                f"{one.precision:.0%}",
                f"{one.lift:,.0f}×",
            ]
            for one in some
        ]
        panels.table(["token", "of its firing", "fires when seen", "lift"], rows, {1, 2, 3})


def neighbors(card: LatentCard, run: str) -> None:
    """Latents that point the same way, and those that fire together with it."""
    left, right = st.columns(2)
    with left:
        panels.heading("Points the same way")
        rows = [
            [panels.latent_link(one.latent, run), text.safe(one.label), f"{one.cosine:+.2f}"]
            for one in card.neighbors[:6]
        ]
        panels.table(["latent", "label", "cosine"], rows, {2})
    with right:
        panels.heading("Fires together")
        found = [(tail, one) for tail in card.tails for one in tail.cooccurring[:6]]
        rows = [
            [
                panels.latent_link(one.latent, run),
                text.safe(one.label),
                f"{one.phi:+.2f}" + (" −" if tail.sign < 0 else ""),
            ]
            for tail, one in found
        ]
        panels.table(["latent", "label", "phi"], rows, {2})


def try_text(run: str, latent: int, top: float) -> None:
    """A box for the reader's own text."""
    with st.form("try", border=False):
        words = st.text_input(
            "Try your own text",
            key="try",
            bind="query-params",
            placeholder="Type a sentence; the model runs when you press Enter.",
            max_chars=2000,
        )
        st.form_submit_button("See where it fires")
    if words:
        reading = loaders.prompt(run, words)
        values = reading.over_text(latent)[reading.first :]
        st.html(text.strip(reading.tokens[reading.first :], values, top or 1.0))
        peak = max(values, key=abs, default=0.0)
        st.html(
            f'<div class="sl sl-small">{"strongest " + format(peak, ".3g") if peak else "silent"}'
            " on this text</div>"
        )


def notes(atlas: Atlas, card: LatentCard) -> None:
    """A label and a note of the reader's own, and the page to take away."""
    mine = next((one for one in card.annotations if one.sign == 0), None)
    with st.expander("Your label and notes", expanded=bool(mine and (mine.label or mine.note))):
        with st.form("notes", border=False):
            label = st.text_input(
                "Label", mine.label if mine else "", 200, key=f"own label {card.latent}"
            )
            note = st.text_area(
                "Note", mine.note if mine else "", max_chars=5000, key=f"own note {card.latent}"
            )
            saved = st.form_submit_button("Save")
        if saved:
            atlas.annotate(card.latent, label=label, note=note)
            st.rerun()
    if st.button("Make a page to share", help="One HTML file of this latent", key="page"):
        with tempfile.TemporaryDirectory() as folder:
            path = atlas.save_html(Path(folder) / "latent.html", [card.latent])
            st.download_button(
                "Download the page",
                path.read_bytes(),
                f"latent_{card.latent}.html",
                "text/html",
                key="download",
            )
