"""Which tokens, and runs of tokens, does each tail fire on?

Every measured place has a key per family: its token, the two or three tokens that end there, the
token after it. A tail's profile counts its keys and compares them with the corpus.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saelab.atlas.corpus import Corpus
from saelab.atlas.tail_pairs import TailPairs, ranks_within

__all__ = ["FAMILIES", "Family", "FamilyCounts", "families_of", "profile_columns"]

FAMILIES: dict[str, tuple[int, ...]] = {
    "token": (0,),
    "bigram": (-1, 0),
    "trigram": (-2, -1, 0),
    "next": (1,),
}
"""Which tokens, counted from the firing one, make a family's key."""


@final
@dataclass(frozen=True, eq=False)
class Family:
    """Keys of one family over the corpus."""

    name: str
    """Which family."""
    key: np.ndarray
    """Key of each place, int32; -1 where it has none or is not measured."""
    tokens: np.ndarray
    """Token ids of each key, [key, n]."""
    corpus: np.ndarray
    """Measured places with each key."""


@final
@dataclass(frozen=True, eq=False)
class FamilyCounts:
    """Keys on which tails of a band fire, sorted by tail and then by key."""

    family: Family
    """Which family."""
    tail: np.ndarray
    """Which tail."""
    key: np.ndarray
    """Which key."""
    fires: np.ndarray
    """Places with that key on which the tail fires."""
    total: np.ndarray
    """Sum of |activation| there."""

    @classmethod
    def of(cls, family: Family, tails: TailPairs) -> "FamilyCounts":
        """Count one family over a band."""
        key = family.key[tails.token.numpy()].astype(np.int64)
        valid = np.flatnonzero(key >= 0)
        n_keys = len(family.corpus)
        flat = tails.tail.numpy()[valid] * n_keys + key[valid]
        order = np.argsort(flat, kind="stable")
        flat, strength = flat[order], tails.strength.double().numpy()[valid][order]
        starts = np.flatnonzero(np.diff(flat, prepend=-1))
        fires = np.diff(starts, append=len(flat))
        total = np.add.reduceat(strength, starts) if len(starts) else np.zeros(0)
        return cls(family, flat[starts] // n_keys, flat[starts] % n_keys, fires, total)

    @property
    def corpus(self) -> np.ndarray:
        """Measured places with each entry's key."""
        return self.family.corpus[self.key]

    def ranked(self, score: np.ndarray) -> np.ndarray:
        """Rank of each entry within its tail, largest score first, then smallest key."""
        order = np.lexsort((self.key, -score, self.tail))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = ranks_within(self.tail[order])
        return rank


def families_of(corpus: Corpus) -> list[Family]:
    """The keys of every family."""
    return [_family(name, offsets, corpus) for name, offsets in FAMILIES.items()]


def _family(name: str, offsets: Sequence[int], corpus: Corpus) -> Family:
    center = corpus.measured.nonzero().squeeze(1)
    before, after = -min(0, *offsets, 0), max(0, *offsets, 0)
    windows = corpus.windows(center, before, after)
    columns = [before + offset for offset in offsets]
    whole = windows.inside[:, columns].all(1)
    ids = corpus.ids[windows.place[whole][:, columns]].numpy()
    key = np.full(len(corpus.ids), -1, dtype=np.int32)
    span = int(corpus.ids.max()) + 1
    # two ids fit one int64 exactly; a third is joined to the number of the first two
    flat = ids[:, 0].astype(np.int64)
    for column in range(1, ids.shape[1]):
        flat = np.unique(flat, return_inverse=True)[1] * span + ids[:, column]
    _, first, inverse, count = np.unique(
        flat, return_index=True, return_inverse=True, return_counts=True
    )
    key[center[whole].numpy()] = inverse
    return Family(name, key, ids[first], count)


def profile_columns(
    counts: Sequence[FamilyCounts],
    tails: TailPairs,
    n_measured: int,
    n_listed: int,
    text: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    """The columns of `profiles` for a band: the first by count and by enrichment."""
    parts: list[dict[str, Any]] = []
    fired = tails.count().numpy()
    for one in counts:
        share = one.fires / fired[one.tail]
        lift = share / (one.corpus / n_measured)
        by_count = one.ranked(one.fires.astype(float))
        by_enrichment = one.ranked(one.fires * np.log(lift))
        kept = np.flatnonzero((by_count < n_listed) | ((by_enrichment < n_listed) & (lift > 1)))
        enriched = np.where(lift[kept] > 1, by_enrichment[kept], n_listed)
        parts.append(
            {
                "tail": one.tail[kept],
                "family": [one.family.name] * len(kept),
                "token_ids": list(one.family.tokens[one.key[kept]]),
                "fires": one.fires[kept],
                "corpus": one.corpus[kept],
                "share": share[kept],
                "precision": one.fires[kept] / one.corpus[kept],
                "lift": lift[kept],
                "mean": one.total[kept] / one.fires[kept],
                "count_rank": _listed(by_count[kept], n_listed),
                "enriched_rank": _listed(enriched, n_listed),
            }
        )
    return _joined(parts, tails, text)


def _listed(rank: np.ndarray, n: int) -> np.ma.MaskedArray:
    return np.ma.masked_greater_equal(rank, n)


def _joined(
    parts: list[dict[str, Any]], tails: TailPairs, text: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    import pyarrow as pa

    tail = np.concatenate([part["tail"] for part in parts])
    order = np.argsort(tail, kind="stable")  # families stay in their order within a tail
    token_ids = [ids for part in parts for ids in part["token_ids"]]
    names = [name for part in parts for name in part["family"]]
    columns: dict[str, Any] = {
        "latent": tails.first + tail[order] // tails.sides,
        "sign": np.where(tail[order] % tails.sides, -1, 1),
        "family": [names[place] for place in order],
        "token_ids": [token_ids[place] for place in order],
        "text": [text(token_ids[place].tolist()) for place in order],
    }
    for name in ("fires", "corpus", "share", "precision", "lift", "mean"):
        columns[name] = np.concatenate([part[name] for part in parts])[order]
    for name in ("count_rank", "enriched_rank"):
        column = np.ma.concatenate([part[name] for part in parts])[order]
        columns[name] = pa.array(column.data, mask=np.ma.getmaskarray(column))
    return columns
