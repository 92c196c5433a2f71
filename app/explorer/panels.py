"""The pieces pages are made of: a lead sentence, examples, effects, small tables, empty states."""

from collections.abc import Sequence
from urllib.parse import urlencode

import streamlit as st
from explorer import text

from saelab.atlas import Example, TailCard, TokenEffect

__all__ = [
    "effects",
    "empty",
    "example",
    "examples",
    "heading",
    "latent_link",
    "lead",
    "one_in",
    "stats",
    "table",
]


def one_in(density: float) -> str:
    """A density as people say it.

    >>> one_in(0.0012), one_in(0.4), one_in(0)
    ('1 in 833 tokens', '40% of tokens', 'no token')
    """
    if density <= 0:
        return "no token"
    if density >= 0.1:
        return f"{density:.0%} of tokens"
    return f"1 in {round(1 / density):,} tokens"


def lead(sentence: str) -> None:
    """The sentence under a title, already escaped."""
    st.html(f'<p class="sl sl-lead">{sentence}</p>')


def heading(words: str, quiet: str = "", sign: int = 0) -> None:
    """A small heading; the side of zero gives its color."""
    hue = {1: " pos", -1: " neg"}.get(sign, "")
    note = f'<span class="sl-small">{text.safe(quiet)}</span>' if quiet else ""
    st.html(
        f'<div class="sl sl-h{hue}" role="heading" aria-level="3">{text.safe(words)}{note}</div>'
    )


def stats(pairs: Sequence[tuple[str, str]]) -> None:
    """Numbers with their names under them."""
    inside = "".join(
        f'<div><div class="v">{text.safe(value)}</div><div class="k">{text.safe(name)}</div></div>'
        for name, value in pairs
    )
    st.html(f'<div class="sl sl-stats">{inside}</div>')


def empty(what: str, why: str, command: str | None = None) -> None:
    """What is missing, why it is useful, and the command that makes it."""
    st.html(f'<div class="sl sl-empty"><b>{text.safe(what)}</b><br>{text.safe(why)}</div>')
    if command:
        st.code(command, language="bash")


def latent_link(latent: int, run: str, words: str | None = None) -> str:
    """A link to a latent's page, as HTML."""
    address = text.safe("latent?" + urlencode({"run": run, "latent": latent}))
    return f'<a href="{address}" target="_self">{text.safe(words or str(latent))}</a>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int]) -> None:
    """A small table; cells are HTML, already escaped."""
    head = "".join(
        f"<th{_number(i, numeric)}>{text.safe(name)}</th>" for i, name in enumerate(columns)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{_number(i, numeric)}>{cell}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    st.html(
        f'<table class="sl sl-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def example(one: Example, top: float) -> str:
    """One example as HTML: its strength, and the text around its peak."""
    tokens = "".join(
        text.token(word, value, top, peak=place == one.peak, note=_effects_note(one, place))
        for place, (word, value) in enumerate(zip(one.tokens, one.activations, strict=True))
    )
    before = '<span class="cut">… </span>' if one.cut[0] else ""
    after = '<span class="cut"> …</span>' if one.cut[1] else ""
    source = f'<div class="sl-source">{text.safe(one.document)}</div>' if one.document else ""
    strength = f"{one.strength:.3g}" if one.strength else "silent"
    return (
        f'<div class="sl-strength">{strength}</div>'
        f'<div><div class="sl-text">{before}{tokens}{after}</div>{source}</div>'
    )


def examples(some: Sequence[Example], top: float) -> None:
    """Several, shaded on one scale."""
    if some:
        st.html(text.examples([example(one, top) for one in some]))
    else:
        st.html('<div class="sl sl-small">None.</div>')


def effects(tail: TailCard, some: Sequence[TokenEffect]) -> None:
    """Tokens a side pushes up or down."""
    top = max((abs(one.effect) for one in (*tail.promoted, *tail.suppressed)), default=1.0)
    st.html(
        text.chips(
            [
                text.chip(one.token, one.effect, top, f"{one.effect:+.3g} logits per unit")
                for one in some
            ]
        )
    )


def _effects_note(one: Example, place: int) -> str:
    lines = []
    for name, effects in (("direct effect", one.direct), ("ablation effect", one.ablation)):
        if effects is not None and effects[place] is not None:
            lines.append(f"{name} on its log-probability {effects[place]:+.3g} nats")
    return "\n".join(lines)


def _number(place: int, numeric: set[int]) -> str:
    return ' class="num"' if place in numeric else ""
