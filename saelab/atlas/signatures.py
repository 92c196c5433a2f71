"""What would one call a latent, without asking a language model?

Five kinds of description, each with a score measured on the corpus itself:

- token, bigram, trigram, next: a set of keys (see `profiles`) that says where a tail fires. Among
  the sets of at most `MOST_KEYS` of its commonest keys, the smallest whose F1 is within 0.02 of the
  best (a key belongs to the set of best F1 when its precision exceeds half of that F1).
- context: words that stand before the peak where it fires and not where the same token stands and
  it stays silent. Chosen on half of the contexts, scored by balanced accuracy on the other half.
- output: the tokens it promotes most, scored by their mean effect over the spread of all (z).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from saelab.atlas.profiles import FamilyCounts
from saelab.atlas.tail_pairs import ranks_within

__all__ = ["Signature", "best_of", "context_signatures", "key_signatures", "output_signature"]

MOST_KEYS = 8
SHOWN_KEYS = 4
_CONSIDERED = 24
LEAST_CONTEXTS = 8
"""Contexts of each kind below which no context words are looked for."""
CLEAR_F1, CLEAR_CONTEXT, SIMPLER = 0.2, 0.75, 0.02


@final
@dataclass(frozen=True, kw_only=True)
class Signature:
    """One automatic description of a tail."""

    tail: int
    """Which tail of the band."""
    kind: str
    """"token", "bigram", "trigram", "next", "context" or "output"."""
    text: str
    """The description."""
    score: float
    """How well it does."""
    score_name: str
    """In what."""
    precision: float | None = None
    """Of what it points at, the share on which the tail fires."""
    recall: float | None = None
    """Of where the tail fires, the share it points at."""


def key_signatures(
    counts: FamilyCounts, fired: np.ndarray, text: Callable[[Sequence[int]], str]
) -> list[Signature]:
    """The best set of keys of each tail that fires.

    Args:
        counts: Keys of one family.
        fired: Tokens on which each tail fires.
        text: Spells out token ids.
    """
    # a run of tokens that occurs once would describe the latent perfectly, and say nothing
    repeated = (counts.corpus > 1) | (counts.family.name == "token")
    rank = counts.ranked(counts.fires * repeated.astype(float))
    near = np.flatnonzero((rank < _CONSIDERED) & repeated)
    shape = (len(fired), _CONSIDERED)
    fires, corpus = np.zeros(shape), np.ones(shape)
    entry = np.full(shape, -1)
    at = (counts.tail[near], rank[near])
    fires[at], corpus[at], entry[at] = counts.fires[near], counts.corpus[near], near
    chosen = _best_sets(fires, corpus, fired)
    hits, claimed = (chosen * fires).sum(1), (chosen * corpus).sum(1)
    name, found = counts.family.name, []
    for tail in np.flatnonzero(chosen.any(1)):
        keys = counts.key[entry[tail][chosen[tail]]]
        words = [text(counts.family.tokens[key].tolist()) for key in keys]
        found.append(
            Signature(
                tail=int(tail),
                kind=name,
                text=("before " if name == "next" else "") + quoted(words),
                score=float(2 * hits[tail] / (fired[tail] + claimed[tail])),
                score_name="F1",
                precision=float(hits[tail] / claimed[tail]),
                recall=float(hits[tail] / fired[tail]),
            )
        )
    return found


def _best_sets(fires: np.ndarray, corpus: np.ndarray, fired: np.ndarray) -> np.ndarray:
    """Which keys, commonest first, make the set of best F1 with at most MOST_KEYS of them."""
    best = np.zeros(len(fires))
    chosen = np.zeros(fires.shape, dtype=bool)
    for _ in range(6):
        useful = (fires > 0) & (fires / corpus >= best[:, None] / 2)
        useful &= np.cumsum(useful, 1) <= MOST_KEYS
        hits, claimed = np.cumsum(useful * fires, 1), np.cumsum(useful * corpus, 1)
        f1 = 2 * hits / np.maximum(fired[:, None] + claimed, 1)
        score = f1.max(1)
        last = (f1 >= score[:, None] - SIMPLER).argmax(1)  # no key that hardly helps
        better = score > best
        sets = useful & (np.arange(fires.shape[1]) <= last[:, None])
        chosen[better] = sets[better]
        best = np.maximum(best, score)
    return chosen


def context_signatures(
    firing: tuple[np.ndarray, np.ndarray],
    silent: tuple[np.ndarray, np.ndarray],
    n_tails: int,
    text: Callable[[Sequence[int]], str],
) -> list[Signature]:
    """Words that tell a tail's contexts from those where it stays silent.

    Args:
        firing: Tail [example] and token ids before the peak [example, before], -1 for none.
        silent: The same of near misses.
        n_tails: Tails of the band.
        text: Spells out token ids.
    """
    span = int(max(firing[1].max(initial=0), silent[1].max(initial=0))) + 1
    sides = [_Presence.of(*side, n_tails=n_tails, span=span) for side in (firing, silent)]
    enough = np.minimum(*(np.minimum(*side.totals) for side in sides)) >= LEAST_CONTEXTS // 2
    keys = np.unique(sides[0].key[sides[0].half == 0])
    keys = keys[enough[keys // span]]
    rates = [side.rate(keys) for side in sides]
    gain = rates[0] - rates[1]
    order = np.lexsort((keys, -gain, keys // span))
    order = order[gain[order] >= 0.2]
    tail = keys[order] // span
    starts = np.flatnonzero(np.diff(tail, prepend=-1))
    place = np.arange(len(tail)) - np.repeat(starts, np.diff(starts, append=len(tail)))
    picked = np.sort(keys[order][place < 3])
    hits = [side.hits(picked, n_tails) for side in sides]
    found = []
    for one in np.unique(picked // span):
        shares = [hit[one] / side.totals[1][one] for hit, side in zip(hits, sides, strict=True)]
        mine = keys[order][(tail == one) & (place < 3)] % span
        claimed = hits[0][one] + hits[1][one]
        found.append(
            Signature(
                tail=int(one),
                kind="context",
                text="near " + quoted([text([int(token)]) for token in mine]),
                score=float((shares[0] + 1 - shares[1]) / 2),
                score_name="balanced accuracy",
                precision=float(hits[0][one] / claimed) if claimed else None,
                recall=float(shares[0]),
            )
        )
    return found


@final
@dataclass(frozen=True, eq=False)
class _Presence:
    """Which tokens stand in which contexts; every context belongs to half 0 or 1."""

    key: np.ndarray
    """tail * span + token, one per context and distinct token."""
    context: np.ndarray
    half: np.ndarray
    totals: tuple[np.ndarray, np.ndarray]
    """Contexts of each tail, by half."""
    span: int
    """Above every token id."""

    @classmethod
    def of(cls, tail: np.ndarray, ids: np.ndarray, *, n_tails: int, span: int) -> "_Presence":
        context, column = np.nonzero(ids >= 0)
        flat = np.unique(context * span + ids[context, column])
        context, token = flat // span, flat % span
        half = ranks_within(tail) % 2
        totals = tuple(np.bincount(tail[half == side], minlength=n_tails) for side in (0, 1))
        return cls(
            tail[context] * span + token, context, half[context], (totals[0], totals[1]), span
        )

    def rate(self, keys: np.ndarray) -> np.ndarray:
        """Share of the tail's contexts of half 0 that hold each token."""
        mine = np.sort(self.key[self.half == 0])
        count = np.searchsorted(mine, keys, "right") - np.searchsorted(mine, keys, "left")
        return count / np.maximum(self.totals[0][keys // self.span], 1)

    def hits(self, picked: np.ndarray, n_tails: int) -> np.ndarray:
        """Contexts of half 1 that hold any of the picked tokens of their tail."""
        if not len(picked):
            return np.zeros(n_tails, dtype=np.int64)
        where = np.searchsorted(picked, self.key).clip(max=len(picked) - 1)
        hit = (picked[where] == self.key) & (self.half == 1)
        first = np.unique(self.context[hit], return_index=True)[1]
        return np.bincount(self.key[hit][first] // self.span, minlength=n_tails)


def output_signature(tail: int, words: Sequence[str], mean: float, std: float) -> Signature:
    """What a tail promotes.

    Args:
        tail: Which tail of the band.
        words: Promoted tokens, most promoted first.
        mean: Mean effect of those.
        std: Spread of the effects over the vocabulary.
    """
    score = mean / std if std > 0 else 0.0
    return Signature(
        tail=tail,
        kind="output",
        text="promotes " + quoted(words),
        score=float(score),
        score_name="z",
    )


def best_of(found: Sequence[Signature]) -> Signature | None:
    """The description to show first.

    The set of keys with the best F1 if it is above 0.2, a longer key only if it is better by 0.02;
    else the context if its balanced accuracy is above 0.75; else the output; else what there is.
    """
    by_kind = {one.kind: one for one in found}
    keys = [by_kind[kind] for kind in ("token", "next", "bigram", "trigram") if kind in by_kind]
    best: Signature | None = None
    for one in keys:
        if best is None or one.score > best.score + SIMPLER:
            best = one
    if best is not None and best.score >= CLEAR_F1:
        return best
    context, output = by_kind.get("context"), by_kind.get("output")
    if context is not None and context.score >= CLEAR_CONTEXT:
        return context
    return output or best or context


def quoted(words: Sequence[str]) -> str:
    """The first few words in quotes, each once.

    >>> quoted([" war", "war", " army"])
    '“war”, “army”'
    """
    shown = dict.fromkeys(visible(word) for word in words)
    more = ", …" if len(shown) > SHOWN_KEYS else ""
    return ", ".join(f"“{word}”" for word in list(shown)[:SHOWN_KEYS]) + more


def visible(text: str) -> str:
    """A token as one short line of plain text: line breaks shown, control characters replaced.

    >>> visible(" a"), visible(" "), visible(chr(10))
    ('a', '␣', '↵')
    """
    text = text.replace("\r\n", "↵").replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")
    text = "".join(one if one.isprintable() else "�" for one in text[:64])
    return text.strip(" ") or "␣"
