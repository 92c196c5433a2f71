"""The first look as one HTML file: a table of every latent and a card for the chosen one.

The table and the cards are built in the browser from JSON; see `report` for how text stays inert.
A column per property keeps the JSON small: a few hundred bytes per context shown.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.latent_tails import Tail
from saelab.logit_effects import LogitEffects
from saelab.report import asset, page

__all__ = ["latent_page"]

LEAST_EXAMPLES = 2
MANY_LATENTS = 20_000
"""Above this many latents a page holds 4 promoted and suppressed tokens of each, not all."""
LEVELS = 999
"""Activations of a context are stored as whole shares of the latent's strongest."""


def latent_page(
    *,
    latents: Int[Tensor, " latent"],
    tails: Sequence[Tail],
    ids: Sequence[Int[Tensor, "latent n window"]],
    documents: Sequence[Int[Tensor, "latent n"]],
    document_names: Sequence[str],
    strings: Mapping[int, str],
    effects: LogitEffects | None,
    effects_missing: str,
    n_tokens: int,
    before: int,
    about: Mapping[str, Any],
    n_examples: int | None,
    max_bytes: int,
    opening: int,
) -> str:
    """Build the page from the parts of a `FirstLook`; `before` is the peak's place in a window."""
    words = _Words(strings)
    sources = _Words(dict(enumerate(document_names)))
    strongest = torch.stack([tail.strength[:, 0] for tail in tails]).amax(0)

    def encoded(side: int, place: int, rank: int) -> list[Any]:
        tail = tails[side]
        return _example(
            ids[side][place, rank],
            tail.window[place, rank] / strongest[place],
            (int(tail.row[place, rank]), int(tail.position[place, rank])),
            sources(int(documents[side][place, rank])),
            before,
            words,
        )

    n_shown, with_examples = _budget(tails, encoded, n_examples, max_bytes)
    examples = [
        [
            [encoded(side, place, rank) for rank in range(_filled(tail, place, n_shown))]
            if place in with_examples
            else []
            for place in range(len(latents))
        ]
        for side, tail in enumerate(tails)
    ]
    data: dict[str, Any] = {
        "latent": latents.tolist(),
        "signed": len(tails) == 2,
        "n_tokens": n_tokens,
        "opening": opening,
        "count": [tail.count.tolist() for tail in tails],
        "max": [_short(tail.strength[:, 0]) for tail in tails],
        "top_token": [_top_tokens(some, before, words) for some in ids],
        "n_bins": tails[0].histogram.shape[1],
        "bins_top": [tail.top.tolist() for tail in tails],
        "histogram": [tail.histogram.tolist() for tail in tails],
        "examples": examples,
        **_effect_columns(effects, len(latents), words),
    }
    data["strings"], data["sources"] = words.texts, sources.texts
    lead = _lead(
        about, n_tokens, effects_missing, len(latents), len(with_examples), n_shown, len(tails) == 2
    )
    body = _body(about, lead)
    title = f"First look at {about['hook']} of {about['model']}"
    return page(title, body, data={"look": data}, scripts=[asset("first_look.js")])


class _Words:
    """Numbers the texts that a page shows, in order of first use."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        self._known, self._numbers = texts, dict[int, int]()
        self.texts: list[str] = []

    def __call__(self, key: int) -> int:
        """The number of a text; -1 for a negative key."""
        if key < 0:
            return -1
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            self.texts.append(self._known[key])
        return self._numbers[key]


def _example(
    ids: Tensor,
    shares: Tensor,
    address: tuple[int, int],
    source: int,
    before: int,
    words: _Words,
) -> list[Any]:
    """[row, position, source, place of the peak, cut left, cut right, words, levels]."""
    shown = (ids >= 0).nonzero().squeeze(1).tolist()
    first, last = shown[0], shown[-1]
    levels = shares[first : last + 1] * LEVELS
    # what is not zero must not round to it: the page would call it not active
    rounded = torch.where(levels.abs() < 1, levels.sign(), levels.round()).long().tolist()
    tokens = [words(token) for token in ids[first : last + 1].tolist()]
    cuts = (int(first == 0), int(last == len(ids) - 1))
    return [*address, source, before - first, *cuts, tokens, rounded]


def _filled(tail: Tail, place: int, most: int) -> int:
    return int((tail.strength[place, :most] > 0).sum())


def _budget(
    tails: Sequence[Tail],
    encoded: Callable[[int, int, int], list[Any]],
    n_examples: int | None,
    max_bytes: int,
) -> tuple[int, set[int]]:
    """How many examples to show per latent and sign, and of which latents."""
    n_kept = tails[0].strength.shape[1]
    filled = torch.stack([(tail.strength > 0).long() for tail in tails])
    count = torch.stack([tail.count for tail in tails]).sum(0)
    alive = count.nonzero().squeeze(1)
    if not len(alive):
        return n_kept, set()
    sample = alive[:: max(1, len(alive) // 64)].tolist()
    sizes = [
        len(json.dumps(encoded(side, place, 0)))
        for side, tail in enumerate(tails)
        for place in sample
        if float(tail.strength[place, 0]) > 0
    ]
    size = sum(sizes) / len(sizes)
    if n_examples is not None:
        return min(n_examples, n_kept), set(alive.tolist())
    totals = filled.sum((0, 1)).cumsum(0) * size
    n_shown = min(n_kept, max(LEAST_EXAMPLES, int((totals <= max_bytes).sum())))
    costs = filled[:, :, :n_shown].sum((0, 2))
    order = torch.argsort(count, descending=True, stable=True)
    fits = costs[order].cumsum(0) * size <= max_bytes
    return n_shown, set(order[fits & (count[order] > 0)].tolist())


def _top_tokens(ids: Tensor, before: int, words: _Words) -> list[int]:
    return [words(token) for token in ids[:, 0, before].tolist()]


def _effect_columns(
    effects: LogitEffects | None, n_latents: int, words: _Words
) -> dict[str, list[Any] | None]:
    if effects is None:
        return {"promoted": None}
    n = effects.promoted.shape[1] if n_latents <= MANY_LATENTS else 4
    return {
        "promoted": [[words(token) for token in row] for row in effects.promoted[:, :n].tolist()],
        "suppressed": [
            [words(token) for token in row] for row in effects.suppressed[:, :n].tolist()
        ],
        "promoted_values": [_short(row) for row in effects.promoted_by[:, :n]],
        "suppressed_values": [_short(row) for row in effects.suppressed_by[:, :n]],
    }


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.3g}") for value in values.tolist()]


def _lead(
    about: Mapping[str, Any],
    n_tokens: int,
    effects_missing: str,
    n_latents: int,
    n_with_examples: int,
    n_shown: int,
    signed: bool,
) -> str:
    which = "Every latent" if n_latents == about["d_sae"] else f"{n_latents:,} latents"
    sentences = [
        f"{which} of {about['dictionary']}, over {n_tokens:,} tokens of {about['corpus']}: how "
        "often it fires, the contexts in which it is strongest"
        + (" on either side of zero" if signed else "")
        + (
            ", and the tokens its direction pushes."
            if not effects_missing
            else f". Promoted tokens are not known: {effects_missing}"
        ),
        str(about["excluded"]),
        f"A context stays within its document and counts once per latent; {n_shown} are shown of "
        f"each{' sign' if signed else ''}"
        + (
            f", for the {n_with_examples:,} latents that fire most often, to keep this file small."
            if 0 < n_with_examples < n_latents and n_shown == LEAST_EXAMPLES
            else "."
        ),
    ]
    return " ".join(sentences)


def _body(about: Mapping[str, Any], lead: str) -> str:
    options = "".join(
        f'<option value="{value}">{name}</option>'
        for value, name in (
            ("alive", "that fire"),
            ("rare", "rarer than 1 in 10,000"),
            ("dense", "denser than 1 in 10"),
            ("dead", "that never fire"),
            ("all", "all"),
        )
    )
    return (
        '<main class="look"><header class="top">'
        f'<p class="eyebrow">First look · {escape(str(about["model"]))}</p>'
        f"<h1>{escape(str(about['hook']))}</h1>"
        f'<p class="lead">{escape(lead)}</p></header>'
        '<section class="browser" aria-label="latents"><div class="filters">'
        '<input id="search" type="search" placeholder="number, token, or promoted token" '
        'aria-label="search latents" autocomplete="off" spellcheck="false">'
        f'<select id="filter" aria-label="which latents">{options}</select></div>'
        '<div class="scroll"><table class="latents"><thead id="head"></thead>'
        '<tbody id="rows"></tbody></table>'
        '<p class="empty" id="none" hidden>No latent matches. Clear the search or choose “all”.</p>'
        '</div><div class="pager"><span id="range"></span><div>'
        '<button type="button" class="quiet-button" id="back">Previous</button>'
        '<button type="button" class="quiet-button" id="on">Next</button></div></div></section>'
        '<section class="card" id="card" aria-label="one latent"></section></main>'
        '<div class="tip" id="tip" hidden></div>'
        "<noscript><p class='empty'>This page builds its table with JavaScript, from data in this "
        "file; nothing is loaded from anywhere.</p></noscript>"
    )
