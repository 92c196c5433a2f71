"""What is each lobe about? Its tokens, its latents, its documents."""

import re
from collections.abc import Mapping

import streamlit as st
from explorer import panels, text

from saelab.atlas import Atlas
from saelab.geometry_survey import Lobe, LobeLevel
from saelab.lobe_figures import lobe_colors

__all__ = ["all_lobes", "lobe_names", "lobe_words", "one_lobe"]


def lobe_names(level: LobeLevel, atlas: Atlas | None) -> dict[int, str]:
    """What each lobe is called: the tokens that mark it, else its most characteristic latent."""
    found = {}
    for number, lobe in enumerate(level.lobes):
        words = lobe_words(lobe, atlas)[:3]
        label = ""
        if atlas is not None and not words and lobe.characteristic:
            label = atlas.labels(lobe.characteristic[:1]).get(lobe.characteristic[0], "")
        found[number] = " · ".join(words) or label or f"lobe {number}"
    return found


def lobe_words(lobe: Lobe, atlas: Atlas | None) -> list[str]:
    """The tokens that mark a lobe, as words, without repeats."""
    if atlas is None:
        return []
    found: dict[str, str] = {}
    for one in atlas.strings([token for token, _ in lobe.tokens]):
        word = one.strip()
        if word and re.search(r"\w", word):
            found.setdefault(word.lower(), word[:20])
    return list(found.values())


def _swatch(number: int, n: int) -> str:
    return f'<span class="sl-swatch" style="background:{lobe_colors(n)[number]}"></span>'


def all_lobes(name: str, level: LobeLevel, names: Mapping[int, str], atlas: Atlas | None) -> None:
    """Every lobe in a line."""
    panels.heading("What is each about?", "tokens its latents fire on more than others do")
    some = sorted({latent for lobe in level.lobes for latent in lobe.characteristic[:3]})
    labels = {} if atlas is None else atlas.labels(some)
    rows = []
    for number, lobe in enumerate(level.lobes):
        latents = ", ".join(
            panels.latent_link(latent, name, labels.get(latent) or str(latent))
            for latent in lobe.characteristic[:3]
        )
        rows.append(
            [
                _swatch(number, len(level.lobes)) + text.safe(names[number]),
                f"{lobe.size:,}",
                text.safe(", ".join(lobe_words(lobe, atlas)[:8])) or "–",
                latents,
                _first_document(lobe),
            ]
        )
    panels.table(
        ["lobe", "latents", "tokens that mark it", "most characteristic", "most at home in"],
        rows,
        {1},
    )


def _first_document(lobe: Lobe) -> str:
    if not lobe.documents:
        return "–"
    document, lift = lobe.documents[0]
    return f"{text.safe(document)} ({lift.value:.1f}×)"


def one_lobe(name: str, lobe: Lobe, called: str, number: int, atlas: Atlas | None) -> None:
    """One lobe: its company, its latents, its tokens and documents."""
    st.subheader(f"Lobe {number}")
    st.html(
        f'<p class="sl sl-lead"><b>{text.safe(called)}</b>: {lobe.size:,} latents; of their '
        f"nearest directions <b>{lobe.company.value:.0%}</b> are of the lobe, with lobes shuffled "
        f"{lobe.company.mean:.0%} ± {lobe.company.spread:.1%}.</p>"
    )
    left, right = st.columns(2, gap="large")
    with left:
        panels.heading("Its most characteristic latents", "those that go with the rest of it most")
        labels = {} if atlas is None else atlas.labels(lobe.characteristic)
        rows = [
            [panels.latent_link(latent, name), text.safe(labels.get(latent, ""))]
            for latent in lobe.characteristic
        ]
        panels.table(["latent", "label"], rows, set())
    with right:
        if atlas is not None and lobe.tokens:
            panels.heading("Tokens that mark it", "how much more of its firing they have")
            top = max(lift for _, lift in lobe.tokens)
            words = atlas.strings([token for token, _ in lobe.tokens])
            st.html(
                text.chips(
                    [
                        text.chip(word, lift, top, f"{lift:.1f} times its share of all firing")
                        for word, (_, lift) in zip(words, lobe.tokens, strict=True)
                    ]
                )
            )
        if lobe.documents:
            panels.heading("Documents that mark it", "and the same with lobes shuffled")
            rows = [
                [text.safe(document), f"{lift.value:.2f}×", f"{lift.mean:.2f} ± {lift.spread:.2f}"]
                for document, lift in lobe.documents
            ]
            panels.table(["document", "lift", "shuffled"], rows, {1, 2})
