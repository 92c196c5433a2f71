"""The first look as one HTML file: a table of every latent and a card for the chosen one.

The table and the cards are built in the browser from JSON; see `report` for how text stays inert.
A column per property keeps the JSON small: a few hundred bytes per context shown.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import torch
from jaxtyping import Float, Int
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
    names: Sequence[str] | None = None,
    details: Sequence[Sequence[tuple[str, str]]] | None = None,
    kind: str = "First look",
) -> str:
    """Build the page from the parts of a `FirstLook`; `before` is the peak's place in a window.

    An atlas also gives what each latent is called (`names`), further lines about each (`details`:
    what it is, and its text), and the `kind` of page.
    """
    words = _Words(strings)
    sources = _Words(dict(enumerate(document_names)))
    strongest = torch.stack([tail.strength[:, 0] for tail in tails]).amax(0)
    # plain lists: reading a tensor one number at a time would take minutes for a large dictionary
    tokens = [part.tolist() for part in ids]
    levels = [_levels(tail.window, strongest).tolist() for tail in tails]
    rows = [tail.row.tolist() for tail in tails]
    positions = [tail.position.tolist() for tail in tails]
    sources_of = [part.tolist() for part in documents]

    def encoded(side: int, place: int, rank: int) -> list[Any]:
        return [
            rows[side][place][rank],
            positions[side][place][rank],
            sources(sources_of[side][place][rank]),
            *_example(tokens[side][place][rank], levels[side][place][rank], before, words),
        ]

    n_shown, with_examples = _budget(tails, encoded, n_examples, max_bytes)
    examples = [
        [
            [encoded(side, place, rank) for rank in range(min(n, n_shown))]
            if place in with_examples
            else []
            for place, n in enumerate((tail.strength > 0).sum(1).tolist())
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
    if names is not None:
        data["names"] = list(names)
    if details is not None:
        data["details"] = [[list(line) for line in lines] for lines in details]
    data["strings"], data["sources"] = words.texts, sources.texts
    signed = len(tails) == 2
    alive = int((torch.stack([tail.count for tail in tails]).sum(0) > 0).sum())
    body = _body(
        kind,
        about,
        _lead(about, n_tokens, len(latents), signed, effects is not None),
        _notes(about, effects_missing, n_shown, alive - len(with_examples), signed),
    )
    title = f"{kind} at {about['hook']} of {about['model']}"
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


def _levels(
    window: Float[Tensor, "latent n window"], strongest: Float[Tensor, " latent"]
) -> Int[Tensor, "latent n window"]:
    """Activations as whole shares of the latent's strongest, -LEVELS to LEVELS."""
    levels = window / strongest.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None] * LEVELS
    # what is not zero must not round to it: the page would call it not active
    return torch.where(levels.abs() < 1, levels.sign(), levels.round()).long()


def _example(tokens: list[int], levels: list[int], before: int, words: _Words) -> list[Any]:
    """[place of the peak, cut left, cut right, words, levels], without what is not shown."""
    first, last = before, before
    while first > 0 and tokens[first - 1] >= 0:
        first -= 1
    while last + 1 < len(tokens) and tokens[last + 1] >= 0:
        last += 1
    shown = slice(first, last + 1)
    cuts = (int(first == 0), int(last == len(tokens) - 1))
    return [before - first, *cuts, [words(token) for token in tokens[shown]], levels[shown]]


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
    about: Mapping[str, Any], n_tokens: int, n_latents: int, signed: bool, effects: bool
) -> str:
    which = str(about["dictionary"])
    if n_latents != about["d_sae"]:
        which = f"{n_latents:,} of the {which}"
    sides = ", on either side of zero" if signed else ""
    pushed = ", and the tokens its direction pushes" if effects else ""
    return (
        f"{which}, over {n_tokens:,} tokens of {about['corpus']}: how often each latent fires, the "
        f"contexts in which it is strongest{sides}{pushed}."
    )


def _notes(
    about: Mapping[str, Any], effects_missing: str, n_shown: int, left_out: int, signed: bool
) -> list[str]:
    notes = [
        str(about["excluded"]),
        f"A context is one row of text, cut to the document of its peak; it counts once per latent"
        f"{' and sign' if signed else ''}. Up to {n_shown} contexts of each are in this file.",
        "Shading is linear in the activation over the latent's own maximum.",
    ]
    if left_out:
        notes.append(
            f"To keep this file small, the contexts of the {left_out:,} latents that fire least "
            "often are left out."
        )
    if effects_missing:
        notes.append(f"Promoted tokens are not known: {effects_missing}")
    else:
        notes.append(
            "Promoted and suppressed tokens: the decoder direction through the final norm's gain "
            "and the unembedding, relative to the vocabulary's mean. What later layers do with it "
            "is not counted."
        )
    return notes


def _body(kind: str, about: Mapping[str, Any], lead: str, notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
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
        f'<p class="eyebrow">{escape(kind)} · {escape(str(about["model"]))}</p>'
        f"<h1>{escape(str(about['hook']))}</h1>"
        f'<p class="lead">{escape(lead)}</p>'
        "<details><summary>What is counted and what is left out</summary>"
        f"<ul>{items}</ul></details></header>"
        '<section class="browser" aria-label="latents"><div class="filters">'
        '<input id="search" type="search" placeholder="number or token" '
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
