"""Which documents are about this? Latents picked by label, documents ranked, with the words."""

import re

import streamlit as st
from explorer import address, collection_loaders, exports, loaders, panels, text

from saelab.atlas import Atlas
from saelab.document_figures import end_name
from saelab.documents import DocumentPooling, FoundDocument
from saelab.errors import ConfigError

__all__ = ["search", "wanted_of"]

End = tuple[int, int]
MOST = 12
"""Latents a query may hold."""
CALLED = frozenset({"number", "human", "llm", "label", "token"})
"""Where a search must find its words for a latent to stand for them unasked."""
HOW: dict[str, DocumentPooling] = {
    "clearly somewhere": "peak",
    "in much of it": "share",
}
"""What a document is ranked by."""


def search(name: str, collection: str) -> None:
    """The part of the page."""
    atlas = loaders.atlas(name)
    if atlas is None:
        panels.empty(
            "This run has no atlas yet.",
            "Its labels and examples are what latents are found by.",
            f"saelab atlas {loaders.run(name).folder}",
        )
        return
    documents = collection_loaders.documents(name, collection)
    two = documents.two_ended
    given = wanted_of(address.text("want", longest=200), documents.d_sae, two)
    absent = wanted_of(address.text("without", longest=200), documents.d_sae, two)
    bar = st.columns([0.34, 0.24, 0.42], vertical_alignment="bottom")
    words = bar[0].text_input(
        "Concept", key="find", bind="query-params", placeholder="war, taxes, a word, a label"
    )
    way = bar[1].selectbox("It is there", list(HOW), key="there", bind="query-params")
    hits, named = _hits(atlas, words, two)
    if not words and not given:
        _first_words()
        return
    with_these, without = _pick(atlas, hits, given or named, absent, two)
    if not with_these:
        st.html('<div class="sl sl-small">No latent is called that; try another word.</div>')
        return
    query = tuple((end, 1.0) for end in with_these) + tuple((end, -1.0) for end in without)
    found = collection_loaders.found_documents(name, collection, HOW[way or next(iter(HOW))], query)
    labels = atlas.labels([latent for latent, _ in (*with_these, *without)])
    _results(name, found, labels, len(documents), two)


def wanted_of(words: str, d_sae: int, two_ended: bool) -> list[End]:
    """Ends as the address writes them.

    >>> wanted_of("3,7-", 10, True), wanted_of("3", 10, False)
    ([(3, 1), (7, -1)], [(3, 1)])

    Raises:
        ConfigError: They are not ends of the dictionary's latents.
    """
    found: list[End] = []
    for part in filter(None, words.split(",")):
        match = re.fullmatch(r"(\d{1,9})([+-]?)", part)
        sign = -1 if match and match[2] == "-" else 1
        if match is None or int(match[1]) >= d_sae or (sign < 0 and not two_ended):
            raise ConfigError(
                f"{words[:80]!r} in the address must name latents from 0 to {d_sae - 1:,}, "
                "such as 3,7" + (" or 3+,7-." if two_ended else ".")
            )
        found.append((int(match[1]), sign))
    return list(dict.fromkeys(found))[:MOST]


def _first_words() -> None:
    st.html(
        '<div class="sl sl-small">Write a concept: latents whose label, tokens or examples say it '
        "are looked up, and the documents in which they fire most come first, with the words they "
        "fire on. Documents are found by what they mean to the model, whatever they call it.</div>"
    )


def _hits(atlas: Atlas, words: str, two: bool) -> tuple[list[End], list[End]]:
    """Ends that a search in the atlas finds, best first, and those that are called it."""
    if not words.strip():
        return [], []
    found: dict[End, bool] = {}
    for hit in atlas.search(words, limit=24):
        end = (hit.latent, -1 if two and hit.sign < 0 else 1)
        whole = re.search(rf"\b{re.escape(words.strip())}", hit.text, re.IGNORECASE)
        found[end] = found.get(end, False) or (hit.field in CALLED and whole is not None)
    ends = list(found)[:MOST]
    return ends, [end for end in ends if found[end]][:3] or ends[:1]


def _pick(
    atlas: Atlas, hits: list[End], given: list[End], absent: list[End], two: bool
) -> tuple[list[End], list[End]]:
    """The latents that stand for the concept, and those that must be absent."""
    options = list(dict.fromkeys([*given, *hits, *absent]))
    labels = atlas.labels([latent for latent, _ in options])

    def called(end: End) -> str:
        return f"{end_name(*end, two)} {labels.get(end[0], '')}".strip()[:60]

    left, right = st.columns([0.64, 0.36])
    start = given
    key = ",".join(end_name(*end, two) for end in options)
    with_these = left.multiselect(
        "Latents that stand for it", options, default=start, format_func=called,
        key=f"want {key}", max_selections=MOST,
    )  # fmt: skip
    without = right.multiselect(
        "And not", options, default=[end for end in absent if end not in start],
        format_func=called, key=f"without {key}", max_selections=MOST,
    )  # fmt: skip
    without = [end for end in without if end not in with_these]
    for parameter, ends in (("want", with_these), ("without", without)):
        if ends:
            st.query_params[parameter] = ",".join(end_name(*end, two) for end in ends)
        else:
            st.query_params.pop(parameter, None)
    return list(with_these), without


def _results(
    name: str, found: list[FoundDocument], labels: dict[int, str], n: int, two: bool
) -> None:
    panels.heading(f"{len(found)} of {n:,} documents", "those with most of it first")
    rows = []
    top = max((one.score for one in found), default=1.0)
    for one in found:
        parts = []
        for part in one.parts[:3]:
            if part.snippet is None or part.added <= 0:
                continue
            mark = text.token(part.snippet.token, part.sign * part.added, 1.0, peak=True,
                              note=labels.get(part.latent, ""))  # fmt: skip
            link = panels.latent_link(part.latent, name, end_name(part.latent, part.sign, two))
            parts.append(
                f'<div class="sl-text">{text.shown(part.snippet.before)}{mark}'
                f'{text.shown(part.snippet.after)} <span class="sl-small">{link}</span></div>'
            )
        body = "".join(parts)
        rows.append(
            f'<div class="sl-strength">{one.score / top:.0%}</div>'
            f"<div><b>{text.safe(one.name)}</b>{body}</div>"
        )
    st.html(text.examples(rows) if rows else '<div class="sl sl-small">None has it.</div>')
    exports.numbers(
        "documents",
        lambda: [
            {"document": one.document, "name": one.name, "score": one.score,
             "ends": " ".join(f"{end_name(p.latent, p.sign, two)}:{p.added:.3f}"
                              for p in one.parts)}
            for one in found
        ],
        key="documents",
    )  # fmt: skip
