"""One band of latents, cut into tails: how often, how strongly and where each side fires.

A tail is a latent's positive side, or its negative one in a signed dictionary; tails are numbered
latent * sides + side within the band. All pairs of a band are worked on at once, sorted by tail.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.atlas.codes import Pairs
from saelab.atlas.corpus import Corpus, priorities

__all__ = ["Chosen", "TailPairs", "choose_examples", "ranks_within"]


@final
@dataclass(frozen=True, eq=False)
class TailPairs:
    """The pairs of a band, sorted by tail and then by token."""

    first: int
    """First latent of the band."""
    n_latents: int
    """Latents in the band."""
    sides: int
    """1, or 2 in a signed dictionary."""
    tail: Int[Tensor, " pair"]
    """Which tail."""
    token: Int[Tensor, " pair"]
    """Place of the token."""
    strength: Float[Tensor, " pair"]
    """|activation|."""
    pairs: Pairs
    """The same pairs sorted by latent and token, latents counted from the band's first."""

    @classmethod
    def of(cls, pairs: Pairs, first: int, stop: int, sides: int) -> "TailPairs":
        """Cut the pairs of latents `first` to `stop - 1` into tails."""
        local = pairs.latent - first
        tail = local * sides + ((pairs.value < 0).long() if sides == 2 else 0)
        order = torch.argsort(tail, stable=True)
        return cls(
            first,
            stop - first,
            sides,
            tail[order],
            pairs.token[order],
            pairs.value[order].abs(),
            Pairs(local, pairs.token, pairs.value),
        )

    @property
    def n_tails(self) -> int:
        """Tails in the band, silent ones included."""
        return self.n_latents * self.sides

    def count(self) -> Int[Tensor, " tail"]:
        """Tokens on which each fires."""
        return torch.bincount(self.tail, minlength=self.n_tails)

    def max(self) -> Float[Tensor, " tail"]:
        """Largest |activation|; 0 if silent."""
        return torch.zeros(self.n_tails).scatter_reduce_(0, self.tail, self.strength, "amax")

    def sum(self) -> Float[Tensor, " tail"]:
        """Sum of |activation|, float64."""
        weights = self.strength.double().numpy()
        found = np.bincount(self.tail.numpy(), weights=weights, minlength=self.n_tails)
        return torch.from_numpy(found.astype(np.float64))  # of nothing, numpy counts whole

    def bins(self, n_bins: int) -> Int[Tensor, " pair"]:
        """Which equal-width part of its tail's range each |activation| is in.

        Parts run from 0, excluded, to the tail's maximum, included.
        """
        share = self.strength.double() / self.max().double()[self.tail]
        return (share * n_bins).long().clamp_max(n_bins - 1)

    def histogram(self, n_bins: int) -> Int[Tensor, "tail bin"]:
        """Tokens per equal-width part; rows add up to `count`."""
        flat = self.tail * n_bins + self.bins(n_bins)
        return torch.bincount(flat, minlength=self.n_tails * n_bins).reshape(-1, n_bins)

    def positions(self, length: int, n_parts: int) -> Int[Tensor, "tail part"]:
        """Tokens per equal part of the row."""
        part = self.token % length * n_parts // length
        flat = self.tail * n_parts + part
        return torch.bincount(flat, minlength=self.n_tails * n_parts).reshape(-1, n_parts)

    def by_strength(self) -> np.ndarray:
        """Order of the pairs by tail, then strongest first, then earliest token."""
        return np.lexsort((self.token.numpy(), -self.strength.numpy(), self.tail.numpy()))

    def values_at(
        self, latent: Int[Tensor, " example"], place: Int[Tensor, "example window"]
    ) -> Float[Tensor, "example window"]:
        """Signed activations of latents (counted from the band's first) at places; 0 if silent."""
        if not len(self.pairs.token):
            return torch.zeros(place.shape)
        span = int(max(self.pairs.token.max(), place.max() if place.numel() else 0)) + 1
        keys = self.pairs.latent * span + self.pairs.token
        wanted = latent[:, None] * span + place
        found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[found] == wanted, self.pairs.value[found], 0.0)


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """Pairs that become examples, sorted by tail; -1 stands for null."""

    pair: Int[Tensor, " example"]
    """Which pair of the band."""
    top_rank: Int[Tensor, " example"]
    """Rank among the strongest, one per row."""
    interval: Int[Tensor, " example"]
    """Equal-width part of the pair."""
    interval_rank: Int[Tensor, " example"]
    """Order of the draw from it."""
    quantile: Int[Tensor, " example"]
    """Equal-count part of the pair, weakest first."""
    quantile_rank: Int[Tensor, " example"]
    """Order of the draw from it."""
    quantile_edges: Float[Tensor, "tail quantile_plus_one"]
    """Least strength in each, then the maximum."""


def choose_examples(tails: TailPairs, corpus: Corpus, config: Any) -> Chosen:
    """The strongest pairs, and random ones from every interval and quantile.

    Args:
        tails: The band.
        corpus: Where its tokens are.
        config: An `AtlasConfig`.
    """
    tail = tails.tail.numpy()
    order = tails.by_strength()
    count = tails.count().numpy()
    rank = np.empty(len(tail), dtype=np.int64)
    rank[order] = ranks_within(tail[order])
    ascending = count[tail] - 1 - rank
    quantile = ascending * config.quantiles // np.maximum(count[tail], 1)
    interval = tails.bins(config.intervals).numpy()
    priority = priorities(tails.token, config.seed)
    top_rank = _top(tails, order, rank, corpus.length, config.top)
    drawn = [
        _drawn(tail * n + part, priority, each)
        for n, part, each in (
            (config.intervals, interval, config.per_interval),
            (config.quantiles, quantile, config.per_quantile),
        )
    ]
    chosen = np.flatnonzero((top_rank >= 0) | (drawn[0] >= 0) | (drawn[1] >= 0))
    columns = (chosen, top_rank[chosen], interval[chosen], drawn[0][chosen])
    pair, top, in_interval, interval_rank = (torch.from_numpy(column) for column in columns)
    return Chosen(
        pair,
        top,
        in_interval,
        interval_rank,
        torch.from_numpy(quantile[chosen]),
        torch.from_numpy(drawn[1][chosen]),
        _quantile_edges(tails, order, count, config.quantiles),
    )


def ranks_within(group: np.ndarray) -> np.ndarray:
    """Place of each item in its run of equal values.

    >>> ranks_within(np.array([4, 4, 7, 7, 7])).tolist()
    [0, 1, 0, 1, 2]
    """
    place = np.arange(len(group))
    starts = np.ones(len(group), dtype=bool)
    starts[1:] = group[1:] != group[:-1]
    return place - np.maximum.accumulate(np.where(starts, place, 0))


def _top(tails: TailPairs, order: np.ndarray, rank: np.ndarray, length: int, n: int) -> np.ndarray:
    """Rank of each pair among the strongest of its tail, one per row; -1 if not among them."""
    found = np.full(len(order), -1, dtype=np.int64)
    # n rows of `length` tokens are certain to be among this many of the strongest
    near = order[rank[order] < n * length]
    row = tails.token.numpy()[near] // length
    key = tails.tail.numpy()[near] * (int(row.max(initial=0)) + 1) + row
    best = near[np.sort(np.unique(key, return_index=True)[1])]
    place = ranks_within(tails.tail.numpy()[best])
    found[best[place < n]] = place[place < n]
    return found


def _drawn(group: np.ndarray, priority: np.ndarray, n: int) -> np.ndarray:
    """Order in which each pair is drawn from its group; -1 if it is not among the first n."""
    order = np.lexsort((priority, group))
    place = ranks_within(group[order])
    found = np.full(len(group), -1, dtype=np.int64)
    found[order[place < n]] = place[place < n]
    return found


def _quantile_edges(
    tails: TailPairs, order: np.ndarray, count: np.ndarray, n: int
) -> Float[Tensor, "tail quantile_plus_one"]:
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    # quantile q begins with the ascending rank a where a * n // count first reaches q
    ascending = -(-np.arange(n)[None] * count[:, None] // n)
    ascending = np.minimum(ascending, np.maximum(count[:, None] - 1, 0))
    place = starts[:, None] + np.maximum(count[:, None] - 1 - ascending, 0)
    strength = tails.strength.numpy()[order]
    edges = np.zeros((len(count), n + 1), dtype=np.float32)
    alive = count > 0
    edges[alive, :n] = strength[place[alive]]
    edges[:, n] = tails.max().numpy()
    return torch.from_numpy(edges)
