"""What is in these documents and not in those? Two collections, or one by what is known of it."""

import math
from typing import Any

import streamlit as st
from explorer import address, collection_loaders, exports, loaders, panels, text

from saelab.document_figures import differences_figure, end_name, shares_figure
from saelab.documents import Comparison, Difference, DocumentCodes
from saelab.errors import ConfigError

__all__ = ["compare", "sides_of"]

MOST = 18
"""Differences that are drawn."""
LONGEST = 120
"""Characters of a value in the address."""


def compare(name: str, collection: str, all_of: list[str]) -> None:
    """The part of the page."""
    documents = collection_loaders.documents(name, collection)
    others = [one for one in all_of if one != collection]
    ways = [*(f"with {one}" for one in others), *(f"by {field}" for field in _fields(documents))]
    if not ways:
        panels.empty(
            "There is nothing to compare this collection with.",
            "Read a second collection, or one whose documents have fields, such as the lines of "
            "a .jsonl file with a year or an author.",
            f"saelab documents {loaders.run(name).folder} --text OTHER.jsonl",
        )
        return
    way, at = _asked(documents, ways)
    found, chance = collection_loaders.differences(name, collection, way, at)
    sides = sides_of(collection, way, at)
    told = found.discoveries()
    n_a = int(found.in_a.sum())
    panels.lead(
        f"<b>{len(told):,}</b> of {found.n_tested:,} latents tested fire in a share of documents "
        f"that differs by {found.config.least_difference:.0%} or more, with at most "
        f"{found.config.q:.0%} expected to be false; between random halves of the same documents "
        f"it is <b>{chance}</b>. {n_a:,} documents of {text.safe(sides[0])}, "
        f"{len(found.in_a) - n_a:,} of {text.safe(sides[1])}."
    )
    shown = (told or found.largest(MOST))[:MOST]
    if not shown:
        st.html('<div class="sl sl-small">No latent fires in enough documents to be tested.</div>')
        return
    _pictures(name, found, shown, sides, bool(told))


def sides_of(collection: str, way: str, at: str) -> tuple[str, str]:
    """What A and B are called.

    >>> sides_of("speeches", "by year", "1900"), sides_of("speeches", "with news", "")
    (('year ≥ 1900', 'year < 1900'), ('speeches', 'news'))
    """
    kind, _, what = way.partition(" ")
    if kind == "with":
        return collection, what
    return (f"{what} ≥ {at}", f"{what} < {at}") if _number(at) is not None else (at, f"not {at}")


def _pictures(
    name: str, found: Comparison, shown: list[Difference], sides: tuple[str, str], real: bool
) -> None:
    atlas = loaders.atlas(name)
    labels = {} if atlas is None else atlas.labels()
    two = found.documents.two_ended
    names = [
        f"{end_name(one.latent, one.sign, two)} {labels.get(one.latent, '')}".strip()
        for one in shown
    ]
    place = address.integer("end", 0, below=10**6)
    place = place if place < len(shown) else 0
    left, right = st.columns([0.54, 0.46], gap="medium")
    with left:
        quiet = "beyond chance" if real else "none is more than chance"
        panels.heading("Which latents differ most?", quiet)
        exports.chart(
            differences_figure(shown, names, sides, place),
            "differences",
            lambda: _rows(found, labels),
            key="differences",
            on_pick=_note,
        )
    with right:
        one = shown[place]
        words = panels.latent_link(one.latent, name, names[place])
        st.html(f'<div class="sl sl-h" role="heading" aria-level="3">{words}</div>')
        st.html(f'<div class="sl sl-small">{_sentence(one, sides)}</div>')
        _examples(found, one)
        with st.expander("Every latent that was tested"):
            exports.chart(
                shares_figure(found, labels, sides),
                "shares",
                lambda: _rows(found, labels),
                key="shares",
            )


def _sentence(one: Difference, sides: tuple[str, str]) -> str:
    return (
        f"Fires in <b>{one.share_a:.0%}</b> of the documents of {text.safe(sides[0])} and in "
        f"<b>{one.share_b:.0%}</b> of those of {text.safe(sides[1])}; within documents of like "
        f"length {100 * one.difference:+.0f} points, odds ratio {one.odds_ratio:.2g}, "
        f"q {one.q:.2g}. Its strongest there:"
    )


def _examples(found: Comparison, one: Difference) -> None:
    rows = []
    some = found.examples(one, n=4)
    top = max((peak for _, peak, _ in some), default=1.0)
    for document, peak, snippet in some:
        inside = "" if snippet is None else (
            text.shown(snippet.before)
            + text.token(snippet.token, one.sign * peak, top, peak=True)
            + text.shown(snippet.after)
        )  # fmt: skip
        source = f'<div class="sl-source">{text.safe(found.documents.name(document))}</div>'
        rows.append(
            f'<div class="sl-strength">{peak:.3g}</div>'
            f'<div><div class="sl-text">{inside}</div>{source}</div>'
        )
    st.html(text.examples(rows))


def _note() -> None:
    points = st.session_state["differences"]["selection"].get("points", [])
    if points and points[0].get("customdata") is not None:
        value = points[0]["customdata"]
        st.query_params["end"] = str(int(value[0] if isinstance(value, list) else value))


def _asked(documents: DocumentCodes, ways: list[str]) -> tuple[str, str]:
    """How the documents are divided, as the address says it."""
    asked = address.text("how", ways[0], longest=200)
    current = asked if asked in ways else ways[0]
    bar = st.columns([0.3, 0.3, 0.4], vertical_alignment="bottom")
    way = bar[0].selectbox("Compare", ways, index=ways.index(current), key="how now") or ways[0]
    if way != current:
        for parameter in ("at", "end"):
            st.query_params.pop(parameter, None)
    st.query_params["how"] = way
    kind, _, field = way.partition(" ")
    if kind == "with":
        return way, ""
    values: list[Any] = [one[field] for one in documents.fields if one.get(field) is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        at = _threshold(bar[1], field, sorted(values))
    else:
        at = _value(bar[1], field, [str(value) for value in values])
    st.query_params["at"] = at
    return way, at


def _threshold(place: Any, field: str, values: list[float]) -> str:
    low, high = values[0], values[-1]
    asked = _number(address.text("at", str(values[len(values) // 2]), longest=LONGEST))
    start = values[len(values) // 2] if asked is None else min(max(asked, low), high)
    whole = all(float(value).is_integer() for value in values)
    kind = int if whole else float
    picked = place.number_input(
        f"{field} at least", kind(low), kind(high), kind(start), key=f"at {field}"
    )
    return f"{picked:.6g}" if not whole else str(int(picked))


def _value(place: Any, field: str, values: list[str]) -> str:
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    options = sorted(
        (value for value, n in counts.items() if 1 < n < len(values)),
        key=lambda value: -counts[value],
    )
    if not options:
        raise ConfigError(f"No value of {field} is shared by two documents and not by all.")
    asked = address.text("at", options[0], longest=LONGEST)
    start = options.index(asked) if asked in options else 0
    picked = place.selectbox(f"{field} is", options, index=start, key=f"at {field}")
    return picked or options[0]


def _fields(documents: DocumentCodes) -> list[str]:
    """Fields that divide the documents."""
    found: dict[str, set[str]] = {}
    for fields in documents.fields:
        for name, value in fields.items():
            if value is not None and len(str(value)) <= LONGEST:
                found.setdefault(name, set()).add(str(value))
    return [name for name, values in found.items() if len(values) > 1]


def _number(words: str) -> float | None:
    try:
        value = float(words)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _rows(found: Comparison, labels: dict[int, str]) -> list[dict[str, Any]]:
    tested = [end for end, q in enumerate(found.columns["q"]) if not math.isnan(q)]
    rows = []
    for end in tested:
        one = found.at(end)
        rows.append(
            {
                "latent": one.latent, "sign": one.sign, "label": labels.get(one.latent, ""),
                "share_a": one.share_a, "share_b": one.share_b, "difference": one.difference,
                "odds_ratio": one.odds_ratio, "p": one.p, "q": one.q,
            }
        )  # fmt: skip
    return rows
