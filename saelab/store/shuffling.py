"""In which order are stored rows served?

An epoch visits the chunks (shards) of a store in a seeded order. Consecutive chunks are gathered
into windows of about `window_tokens` rows, and the rows of a window are served in a seeded order.
The order is a function of (sizes, seed, window_tokens) alone, so one integer, the number of rows
served so far, is all a reader has to remember.

Shards are random samples of token rows already (`saelab.harvesting`), so a window of a few shards
mixes about as well as a shuffle of everything; `saelab.store.mixing` measures how well.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["Window", "load_ahead", "sampled", "seeded_permutation", "windows"]

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def seeded_permutation(n: int, *key: str | int) -> Int[Tensor, " n"]:
    """A permutation of 0..n-1 that depends on `n` and the key alone.

    >>> seeded_permutation(4, "rows", 0).sort().values.tolist()
    [0, 1, 2, 3]
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(n, generator=generator)


@final
@dataclass(frozen=True)
class Window:
    """Chunks that are held in memory together, and the order their rows are served in."""

    chunks: tuple[int, ...]
    """Chunks, one after the other."""
    size: int
    """Rows in them."""
    key: tuple[int, int, int]
    """(seed, epoch, index of the window in the epoch): what the order is seeded by; the epoch is
    -1 for a sample."""
    skip: int = 0
    """Rows of the order that were served before."""

    def order(self) -> Int[Tensor, " served"]:
        """Which of the window's rows are served, in order."""
        return seeded_permutation(self.size, "window", *self.key)[self.skip :]


def windows(
    sizes: Sequence[int], *, seed: int, window_tokens: int, cursor: int = 0
) -> Iterator[Window]:
    """Windows from the one that holds served row `cursor` on, epoch after epoch, for ever.

    Args:
        sizes: Rows in each chunk; their sum is at least 1.
        seed: Seeds the order of chunks and of rows.
        window_tokens: A window takes chunks until it has this many rows.
        cursor: Rows served before.
    """
    epoch, offset = divmod(cursor, sum(sizes))
    while True:
        for index, chunks in enumerate(_epoch(sizes, seed, epoch, window_tokens)):
            size = sum(sizes[chunk] for chunk in chunks)
            if offset < size:
                yield Window(chunks, size, (seed, epoch, index), offset)
            offset = max(0, offset - size)
        epoch += 1


def _epoch(
    sizes: Sequence[int], seed: int, epoch: int, window_tokens: int
) -> Iterator[tuple[int, ...]]:
    held: list[int] = []
    rows = 0
    for chunk in seeded_permutation(len(sizes), "chunks", seed, epoch).tolist():
        if sizes[chunk]:
            held.append(chunk)
            rows += sizes[chunk]
        if rows >= window_tokens:
            yield tuple(held)
            held, rows = [], 0
    if held:
        yield tuple(held)


def sampled(sizes: Sequence[int], *, seed: int, rows: int, least_chunks: int) -> Window:
    """One window over random chunks, with at least so many rows and chunks if there are."""
    chosen: list[int] = []
    held = 0
    for chunk in seeded_permutation(len(sizes), "sample", seed).tolist():
        if len(chosen) >= least_chunks and held >= rows:
            break
        chosen.append(chunk)
        held += sizes[chunk]
    return Window(tuple(chosen), held, (seed, -1, 0))


def load_ahead(
    items: Iterator[Item], load: Callable[[Item], Loaded], *, in_background: bool
) -> Iterator[Loaded]:
    """Load items one after the other, the next one while the caller works on this one.

    At most two loaded items are alive at once, provided the caller drops one before it asks for
    the next.
    """
    if not in_background:
        yield from map(load, items)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="saelab-window")
    try:
        coming = pool.submit(load, next(items))
        for item in items:
            loaded = [coming.result()]
            coming = pool.submit(load, item)
            yield loaded.pop()
        yield coming.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
