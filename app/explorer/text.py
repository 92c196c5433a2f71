"""Text as a page shows it: every token shaded by activation, and nothing of it interpreted.

Tokens come from models and corpora, so every one is escaped before it enters a page; what they
contain, a script or Markdown or a reversed line, is shown and never acted on.
"""

import difflib
import html
import re
from collections.abc import Sequence

from saelab.untrusted_text import LINE_MARKS, spelled_out

__all__ = [
    "bar",
    "chip",
    "chips",
    "differing",
    "examples",
    "plain",
    "safe",
    "shown",
    "strip",
    "token",
]

SHADE = 0.62
"""Opacity of the background at a latent's own maximum; in between it is linear."""
LONGEST = 120
"""Characters of one token that are shown."""
_MARKDOWN = frozenset("\\`*_{}[]<>()#+-.!|~$:&")
_MARKS = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_AS_THEY_ARE = {letter: letter for letter in LINE_MARKS}


def safe(text: str) -> str:
    """Text for the inside of an HTML element or of a quoted attribute.

    >>> safe("<b>&</b>")
    '&lt;b&gt;&amp;&lt;/b&gt;'
    """
    return html.escape(spelled_out(text, _AS_THEY_ARE), quote=True)


def shown(text: str) -> str:
    """A token's text as HTML: line ends and tabs are marked quietly, what is too long is cut."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    marked = "".join(
        f'<span class="odd">{_MARKS[c][0]}</span>{_MARKS[c][1:]}' if c in _MARKS else safe(c)
        for c in cut
    )
    return marked or '<span class="odd">∅</span>'


def token(text: str, value: float, top: float, *, peak: bool = False, note: str = "") -> str:
    """One token as HTML.

    Args:
        text: Its text.
        value: Signed activation.
        top: The latent's largest |activation|, which has the full shade.
        peak: Whether it is underlined.
        note: Further lines of the tip that appears under the pointer.
    """
    classes = "sl-token" + _hue(value) + (" peak" if peak else "")
    style = f' style="--a:{_alpha(value, top)}"' if value else ""
    lines = [f"‹{text[:LONGEST]}›", f"activation {value:+.3g}" if value else "silent", note]
    tip = safe("\n".join(line for line in lines if line)).replace("\n", "&#10;")
    return f'<span class="{classes}"{style} data-tip="{tip}"><bdi>{shown(text)}</bdi></span>'


def plain(text: str) -> str:
    """A token as plain text for a control, where Markdown would otherwise act."""
    cut = text if len(text) <= 24 else text[:23] + "…"
    quoted = "".join(f"\\{c}" if c in _MARKDOWN else c for c in spelled_out(cut))
    return quoted.strip() or "·"


def strip(tokens: Sequence[str], values: Sequence[float], top: float) -> str:
    """A whole text."""
    inside = "".join(token(t, v, top) for t, v in zip(tokens, values, strict=True))
    return f'<div class="sl sl-text">{inside}</div>'


def examples(rows: Sequence[str]) -> str:
    """A list of what `example` of panels gave."""
    items = "".join(f'<div role="listitem">{row}</div>' for row in rows)
    return f'<div class="sl sl-examples" role="list">{items}</div>'


def chip(text: str, value: float, top: float, tip: str) -> str:
    """A token by itself, shaded by an effect."""
    quoted = safe(tip).replace("\n", "&#10;")
    return (
        f'<span class="sl-chip{_hue(value)}" style="--a:{_alpha(value, top)}" data-tip="{quoted}">'
        f"<span><bdi>{shown(text)}</bdi></span></span>"
    )


def chips(inside: Sequence[str]) -> str:
    """Several, in a line that wraps."""
    return f'<div class="sl sl-chips">{"".join(inside)}</div>'


def differing(one: str, other: str) -> tuple[str, str]:
    """Two texts as HTML, with the words that the other does not have in that place marked.

    >>> differing("a b c", "a x c")
    ('a <mark>b</mark> c', 'a <mark>x</mark> c')
    """
    words = [re.findall(r"\S+|\s+", some) for some in (one, other)]
    parts: tuple[list[str], list[str]] = ([], [])
    for kind, *places in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, (start, stop) in enumerate((places[:2], places[2:])):
            inside = "".join(_line_ends(word) for word in words[side][start:stop])
            if inside:
                parts[side].append(inside if kind == "equal" else f"<mark>{inside}</mark>")
    return "".join(parts[0]), "".join(parts[1])


def bar(change: float) -> str:
    """A change of a probability as a bar to the left or to the right, as HTML."""
    share = min(1.0, abs(change)) * 50
    side = "left" if change > 0 else "right"
    return (
        f'<div class="sl-bar{_hue(change)}" role="img" aria-label="{change:+.1%}">'
        f'<i style="{side}:50%;width:{share:.1f}%"></i><span>{change:+.1%}</span></div>'
    )


def _line_ends(words: str) -> str:
    return "<br>".join(safe(line) for line in words.split("\n"))


def _hue(value: float) -> str:
    return " p" if value > 0 else " n" if value < 0 else ""


def _alpha(value: float, top: float) -> str:
    return f"{min(1.0, abs(value) / top) * SHADE:.3f}" if top else "0"
