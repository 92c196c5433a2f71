"""Are relations directions? Pairs of words as arrows, and the latents nearest to parallelograms."""

from typing import Any

import streamlit as st
from explorer import address, exports, loaders, panels, text

from saelab.crystal_figures import (
    best_partner_figure,
    parallelogram_figure,
    relation_figure,
    relations_figure,
)
from saelab.geometry_survey import GeometrySurvey, Relation, WordCrystals

__all__ = ["show"]


def show(name: str, survey: GeometrySurvey) -> None:
    """The part of the page."""
    if survey.words is None:
        panels.heading("Pairs of words")
        st.html(f'<div class="sl sl-small">{text.safe(survey.words_missing)}</div>')
    else:
        _words(survey.words)
    st.divider()
    _latents(name, survey)


def _words(words: WordCrystals) -> None:
    relation = _relation(words)
    left, right = st.columns([0.52, 0.48], gap="large")
    with left:
        panels.heading(f"Is “{relation.name}” one direction?")
        exports.chart(
            relation_figure(relation),
            "relation",
            lambda: _pair_rows(relation),
            key=f"relation {relation.name}",
        )
        st.html(
            '<div class="sl sl-small">If it is, the arrows point to the right, alike. No pair has '
            "a say in its own axis: that is the mean of the other half. A unit is the mean length "
            "of a difference.</div>"
        )
    with right:
        panels.heading("Which relations are?", "◆ model ◇ after the dictionary • chance")
        exports.chart(
            relations_figure(words, relation.name),
            "relations",
            lambda: _relation_rows(words),
            key="relations",
            on_pick=lambda: _note(words),
        )
        panels.stats(
            [
                ("second words found by adding the relation's vector "
                 f"(another's {words.found.mean:.0%}, none {words.without:.0%})",
                 f"{words.found.value:.0%}"),
                ("silhouette by relation, on pairs not fitted to "
                 f"(shuffled {words.separation.mean:.2f})", f"{words.separation.value:.2f}"),
            ]
        )  # fmt: skip


def _relation(words: WordCrystals) -> Relation:
    names = [one.name for one in words.relations]
    asked = address.text("relation", names[0], longest=200)
    current = names.index(asked) if asked in names else 0
    with st.columns([0.34, 0.66])[0]:
        picked = st.selectbox("Relation", names, index=current, key=f"relation now {current}")
    if picked and picked != names[current]:
        st.query_params["relation"] = picked
        st.rerun()
    return words.relations[current]


def _note(words: WordCrystals) -> None:
    points = st.session_state["relations"]["selection"].get("points", [])
    if points and points[0].get("customdata") is not None:
        value = points[0]["customdata"]
        place = int(value[0] if isinstance(value, list) else value)
        st.query_params["relation"] = words.relations[place].name


def _latents(name: str, survey: GeometrySurvey) -> None:
    found = survey.parallelograms
    atlas = loaders.atlas(name)
    latents = sorted({latent for one in found.best for latent in one.corners})
    labels = {} if atlas is None else atlas.labels(latents)
    left, right = st.columns([0.52, 0.48], gap="large")
    with left:
        panels.heading("The latents nearest to a parallelogram")
        if not found.best:
            st.html('<div class="sl sl-small">No two differences point alike.</div>')
            return
        place = address.integer("four", 0, below=len(found.best))
        one = found.best[place]
        names = [labels.get(latent) or f"latent {latent}" for latent in one.corners]
        exports.chart(
            parallelogram_figure(one, names),
            "parallelogram",
            lambda: _four_rows(survey, labels),
            key=f"four {place}",
        )
        picked = st.pills(
            "Others, the best first",
            list(range(len(found.best))),
            format_func=lambda row: f"{found.best[row].cosine:.2f}",
            default=place,
            key=f"fours now {place}",
        )
        if picked is not None and picked != place:
            st.query_params["four"] = str(picked)
            st.rerun()
        links = ", ".join(panels.latent_link(latent, name) for latent in one.corners)
        st.html(
            f'<div class="sl sl-small">Latents {links}: cosine of the two arrows {one.cosine:.2f}, '
            f"gap {one.gap:.2f} of their length.</div>"
        )
    with right:
        panels.heading("Is that more than chance?")
        exports.chart(
            best_partner_figure(found), "best_partners", lambda: _bin_rows(survey), key="partners"
        )
        panels.stats(
            [
                (f"largest |cosine| of two (Gaussian cloud {found.largest.mean:.2f} ± "
                 f"{found.largest.spread:.2f})", f"{found.largest.value:.2f}"),
                ("of differences in a class of three parallel ones (Gaussian cloud "
                 f"{survey.parallel_share.mean:.1%})", f"{survey.parallel_share.value:.1%}"),
            ]
        )  # fmt: skip


def _pair_rows(relation: Relation) -> list[dict[str, Any]]:
    return [
        {"relation": relation.name, "first": a, "second": b, "first_x": place[0],
         "first_y": place[1], "second_x": place[2], "second_y": place[3]}
        for (a, b), place in zip(relation.pairs, relation.places, strict=True)
    ]  # fmt: skip


def _relation_rows(words: WordCrystals) -> list[dict[str, Any]]:
    return [
        {"relation": one.name, "pairs": len(one.pairs), "cosine": one.cosine.value,
         "cosine_null": one.cosine.mean, "cosine_null_sd": one.cosine.spread, "p": one.cosine.p,
         "cosine_after_dictionary": one.cosine_recons.value,
         "cosine_after_dictionary_null": one.cosine_recons.mean}
        for one in words.relations
    ]  # fmt: skip


def _four_rows(survey: GeometrySurvey, labels: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {**dict(zip("abcd", one.corners, strict=True)),
         "cosine": one.cosine, "gap": one.gap,
         "labels": " | ".join(labels.get(latent, "") for latent in one.corners)}
        for one in survey.parallelograms.best
    ]  # fmt: skip


def _bin_rows(survey: GeometrySurvey) -> list[dict[str, Any]]:
    found = survey.parallelograms
    n = len(found.counts)
    return [
        {"from": place / n, "to": (place + 1) / n, "differences": own, "gaussian_cloud": null}
        for place, (own, null) in enumerate(zip(found.counts, found.null_counts, strict=True))
    ]
