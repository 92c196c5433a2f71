"""What is in a set of tokens, and does held-out text occur in the training text?

Repetition and overlap are counted on n-grams of kept text within one document, each n-gram
reduced to a 64-bit hash, so that a leak is found wherever rows happen to be cut. Hashes are
compared a share at a time: memory stays below about 0.5 GB beside the tokens themselves. (Two of
10^8 different n-grams have the same hash with probability below 10^-3.)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from saelab.tokens.layout import TokenRun

__all__ = ["describe_run", "hash_columns", "ngrams_in", "share_of_repeated_ngrams"]

_CHUNK = 1 << 22  # n-grams hashed at a time
_HASHES_AT_ONCE = 1 << 24  # hashes sorted at a time: 128 MiB
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def describe_run(run: TokenRun, n_documents: int, top: int = 20, n: int = 13) -> dict[str, Any]:
    """Statistics of kept tokens.

    entropy = - sum_t p(t) log2 p(t), where p(t) is token t's share of the kept tokens: 0 if one
    token is all there is, log2(unique) if all are equally common.

    Args:
        run: The text tokens; those not kept are left out of every count.
        n_documents: How many documents there are, those without a token included.
        top: How many of the most frequent tokens to list.
        n: Length of the n-grams whose repetition is counted.

    Returns:
        unique_tokens, entropy_bits, top_share (0 to 1), top_tokens (id, count, share),
        tokens_per_document (min, quartiles, max over documents that have tokens) and
        repeated_<n>grams (share, 0 to 1).
    """
    kept = run.where(run.kept)
    counts = np.bincount(kept.ids) if len(kept.ids) else np.zeros(0, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")[: min(top, int((counts > 0).sum()))]
    total = max(int(counts.sum()), 1)
    share = counts[counts > 0] / total
    lengths = np.bincount(kept.document, minlength=n_documents)
    lengths = lengths[lengths > 0] if len(kept.ids) else np.zeros(1, dtype=np.int64)
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])
    return {
        "unique_tokens": int((counts > 0).sum()),
        "entropy_bits": float(-(share * np.log2(share)).sum()) + 0.0,
        "top_share": float(share.max()) if len(share) else 0.0,
        "top_tokens": [
            {
                "token": int(token),
                "count": int(counts[token]),
                "share": counts[token].item() / total,
            }
            for token in order
        ],
        "tokens_per_document": dict(
            zip(("min", "q25", "median", "q75", "max"), map(float, quantiles), strict=True)
        ),
        f"repeated_{n}grams": share_of_repeated_ngrams(run, n),
    }


def share_of_repeated_ngrams(run: TokenRun, n: int = 13) -> float:
    """Share of n-grams that already occurred earlier: 1 - distinct / all, from 0 to below 1."""
    total = _count_ngrams(run, n)
    if not total:
        return 0.0
    parts = _parts(total)
    distinct = sum(len(_distinct_hashes(run, n, part, parts)) for part in range(parts))
    return 1 - distinct / total


def ngrams_in(train: TokenRun, held_out: TokenRun, n: int) -> Iterator[tuple[np.ndarray, ...]]:
    """For each chunk of held-out n-grams: their first positions in the run, and which are shared.

    Args:
        train: The text to look in.
        held_out: The text to look for.
        n: Tokens in an n-gram.

    Returns:
        Pairs (position, shared); every held-out n-gram is in exactly one.
    """
    parts = _parts(_count_ngrams(train, n))
    for part in range(parts):
        known = _distinct_hashes(train, n, part, parts)
        for position, hashes in ngram_hashes(held_out, n):
            mine = hashes % np.uint64(parts) == part
            yield position[mine], _is_in(hashes[mine], known)


def ngram_hashes(run: TokenRun, n: int) -> Iterator[tuple[np.ndarray, UInt64[np.ndarray, " n"]]]:
    """Hashes of the n-grams of kept tokens that lie within one document, a chunk at a time.

    hash = mix(sum_k (id_k + 1) * m^(n - 1 - k) mod 2^64), where mix scatters the bits.
    """
    for start in range(0, max(len(run.ids) - n + 1, 0), _CHUNK):
        stop = min(start + _CHUNK, len(run.ids) - n + 1)
        chosen = start + np.flatnonzero(_whole(run, n, start, stop))
        hashes = hash_columns([run.ids[start + k : stop + k] for k in range(n)])
        yield chosen, hashes[chosen - start]


def hash_columns(columns: Sequence[Int[np.ndarray, " row"]]) -> UInt64[np.ndarray, " row"]:
    """One 64-bit hash for each row of a table given by its columns."""
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashes = hashes * _MULTIPLIER + column.astype(np.uint64) + np.uint64(1)
    hashes ^= hashes >> np.uint64(32)  # the high bits depend on all ids, the low ones do not
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    return hashes


def _whole(run: TokenRun, n: int, start: int, stop: int) -> Bool[np.ndarray, " position"]:
    """Which n-grams starting in [start, stop) are all kept and of one document."""
    inside = run.document[start:stop] == run.document[start + n - 1 : stop + n - 1]
    unkept = np.cumsum(~run.kept[start : stop + n - 1], dtype=np.int64)
    unkept = np.concatenate([[0], unkept])
    return inside & (unkept[n:] == unkept[:-n])


def _count_ngrams(run: TokenRun, n: int) -> int:
    starts = range(0, max(len(run.ids) - n + 1, 0), _CHUNK)
    last = len(run.ids) - n + 1
    return sum(int(_whole(run, n, start, min(start + _CHUNK, last)).sum()) for start in starts)


def _parts(n_hashes: int) -> int:
    return max(1, -(-n_hashes // _HASHES_AT_ONCE))


def _distinct_hashes(run: TokenRun, n: int, part: int, parts: int) -> UInt64[np.ndarray, " n"]:
    found = [hashes[hashes % np.uint64(parts) == part] for _, hashes in ngram_hashes(run, n)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64)


def _is_in(
    hashes: UInt64[np.ndarray, " n"], known: UInt64[np.ndarray, " m"]
) -> Bool[np.ndarray, " n"]:
    if not len(known):
        return np.zeros(len(hashes), dtype=bool)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[place] == hashes
