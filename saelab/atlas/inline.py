"""One latent as HTML inside a notebook: what it fires on, with every token shaded.

Styles are inline and nothing is scripted, because notebook viewers drop style sheets and scripts.
Tokens come from models and corpora, so each is escaped, and what would act is shown by its name.
"""

import html
from collections.abc import Sequence

from saelab.atlas.cards import LatentCard, TailCard
from saelab.atlas.records import Example, TokenEffect
from saelab.latents import one_in
from saelab.untrusted_text import spelled_out

__all__ = ["card_html", "tokens_html"]

_BLUE, _ORANGE = "44,111,187", "217,115,13"
_SHADE = 0.62
"""Opacity of a token's background at the latent's own maximum; in between it is linear."""
_EXAMPLES = 5
"""Strongest examples of each side."""
_QUIET = "opacity:.65;font-size:.9em"


def card_html(card: LatentCard) -> str:
    """The card of one latent: label, density, strongest examples of both sides, logit effects."""
    title = f"Latent {card.latent}" + (f": {_safe(card.label)}" if card.label else "")
    if card.dead:
        return f"<div><b>{title}</b><br>It fired on none of {card.n_tokens:,} tokens.</div>"
    density = (
        f"fires on {one_in(card.count, card.n_tokens)} of {card.n_tokens:,} tokens, "
        f"at most {card.max:.3g}"
    )
    sides = "".join(_side(tail, card) for tail in card.tails if tail.count)
    return (
        '<div style="max-width:60em;line-height:1.65">'
        f'<b style="font-size:1.15em">{title}</b><br><span style="{_QUIET}">{density}</span>'
        f"{sides}</div>"
    )


def tokens_html(tokens: Sequence[str], activations: Sequence[float], top: float) -> str:
    """A text whose tokens are shaded: orange above zero, blue below, full shade at `top`.

    Args:
        tokens: Their text.
        activations: One signed number for each.
        top: The |activation| that has the full shade.
    """
    pairs = zip(tokens, activations, strict=True)
    return f'<span dir="ltr">{"".join(_token(text, value, top) for text, value in pairs)}</span>'


def _side(tail: TailCard, card: LatentCard) -> str:
    name = "" if not card.signed else "Above zero. " if tail.sign > 0 else "Below zero. "
    rows = "".join(_example(one, card.max) for one in tail.top()[:_EXAMPLES])
    effects = ""
    if tail.promoted:
        effects = (
            f'<div style="margin-top:.5em"><span style="{_QUIET}">{name}One unit promotes</span> '
            f'{_effects(tail.promoted)} <span style="{_QUIET}">and suppresses</span> '
            f"{_effects(tail.suppressed)}</div>"
        )
    head = f'<div style="margin-top:.5em"><span style="{_QUIET}">{name}Strongest</span></div>'
    return head + rows + effects


def _example(one: Example, top: float) -> str:
    text = tokens_html(one.tokens, one.activations, top)
    before, after = ("…" if cut else "" for cut in one.cut)
    return (
        '<div style="margin:.15em 0"><code style="font-size:.8em;opacity:.65;margin-right:.7em">'
        f"{one.strength:.3g}</code>{before}{text}{after}</div>"
    )


def _effects(some: Sequence[TokenEffect], n: int = 6) -> str:
    return ", ".join(
        f"<bdi><code>{_safe(one.token) or '∅'}</code></bdi> {one.effect:+.2f}" for one in some[:n]
    )


def _token(text: str, value: float, top: float) -> str:
    inside = f"<bdi>{_safe(text)}</bdi>"
    if not value or not top:
        return inside
    color = _ORANGE if value > 0 else _BLUE
    alpha = min(1.0, abs(value) / top) * _SHADE
    style = f"background:rgba({color},{alpha:.3f});border-radius:3px"
    return f'<span style="{style}" title="{value:+.3g}">{inside}</span>'


def _safe(text: str) -> str:
    return html.escape(spelled_out(text), quote=True)
