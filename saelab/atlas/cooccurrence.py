"""Which latents fire on the same tokens?

The codes of the measured tokens, or of a random sample of them, are one sparse 0/1 matrix F, a
column per tail: in a signed dictionary the two sides of a latent are two columns. FᵀF is made a
few columns at a time. For column i it has at most the sum of l0 over the tokens where i fires, so
the columns made at once are chosen to stay within a number known beforehand.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from saelab.atlas.codes import CodeShards
from saelab.atlas.corpus import Corpus, priorities
from saelab.atlas.tail_pairs import ranks_within

__all__ = ["FiringMatrix", "association"]

LEAST_BOTH = 2
"""Latents that met less often than this are not listed."""


@final
@dataclass(frozen=True, eq=False)
class FiringMatrix:
    """Which tails fire on which of the counted tokens."""

    matrix: Any
    """scipy csr_matrix [token, tail] of ones, int32."""
    transposed: Any
    """The same, [tail, token]."""
    sides: int
    """1, or 2 in a signed dictionary."""

    @classmethod
    def of(
        cls, shards: CodeShards, corpus: Corpus, sides: int, n_tokens: int, seed: int
    ) -> "FiringMatrix":
        """Read the codes of all measured tokens, or of a random `n_tokens` of them."""
        from scipy.sparse import csr_matrix

        measured = corpus.measured.nonzero().squeeze(1)
        if len(measured) > n_tokens:
            chosen = np.argpartition(priorities(measured, seed), n_tokens)[:n_tokens]
            measured = measured[torch.from_numpy(np.sort(chosen))]
        number = torch.full((len(corpus.ids),), -1)
        number[measured] = torch.arange(len(measured))
        rows, columns = [], []
        for shard in range(len(shards)):
            pairs = shards.pairs(0, shards.d_sae, [shard])
            kept = number[pairs.token] >= 0
            tail = pairs.latent * sides + ((pairs.value < 0).long() if sides == 2 else 0)
            rows.append(number[pairs.token][kept].to(torch.int32))
            columns.append(tail[kept].to(torch.int32))
        at = (torch.cat(rows).numpy(), torch.cat(columns).numpy())
        ones = np.ones(len(at[0]), dtype=np.int32)
        matrix = csr_matrix((ones, at), shape=(len(measured), shards.d_sae * sides))
        return cls(matrix, matrix.T.tocsr(), sides)

    @property
    def n_tokens(self) -> int:
        """Tokens counted."""
        return self.matrix.shape[0]

    @property
    def counts(self) -> np.ndarray:
        """Counted tokens on which each tail fires."""
        return np.diff(self.transposed.indptr).astype(np.int64)

    def columns(self, first: int, stop: int, n: int, at_once: int) -> dict[str, np.ndarray]:
        """The columns of `cooccurrence` for the tails of latents `first` to `stop - 1`.

        Args:
            first: First latent.
            stop: The latent after the last.
            n: How many to list per tail.
            at_once: Entries of FᵀF made at once, at most (or one column's).
        """
        l0 = np.diff(self.matrix.indptr).astype(np.int64)
        low, high = first * self.sides, stop * self.sides
        work = np.asarray(self.transposed[low:high] @ l0)
        counts = self.counts
        parts = []
        start = low
        while start < high:
            done = np.searchsorted(np.cumsum(work[start - low :]), at_once, "right")
            end = min(high, start + max(1, int(done)))
            parts.append(self._some(start, end, counts, n))
            start = end
        names = ("tail", "rank", "other", "n_both", "phi", "jaccard", "npmi")
        joined = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
        tail, other = joined.pop("tail"), joined.pop("other")
        sign, other_sign = (np.where(one % self.sides, -1, 1) for one in (tail, other))
        latents = {"latent": tail // self.sides, "other": other // self.sides}
        return {**joined, **latents, "sign": sign, "other_sign": other_sign}

    def _some(self, start: int, end: int, counts: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        both = (self.transposed[start:end] @ self.matrix).tocoo()
        tail, other, n_both = both.row + start, both.col, both.data.astype(np.int64)
        kept = (tail // self.sides != other // self.sides) & (n_both >= LEAST_BOTH)
        tail, other, n_both = tail[kept], other[kept], n_both[kept]
        phi, jaccard, npmi = association(n_both, counts[tail], counts[other], self.n_tokens)
        order = np.lexsort((other, -phi, tail))
        rank = ranks_within(tail[order])
        order = order[(rank < n) & (phi[order] > 0)]
        found = (tail, other, n_both, phi, jaccard, npmi)
        tail, other, n_both, phi, jaccard, npmi = (column[order] for column in found)
        return tail, ranks_within(tail), other, n_both, phi, jaccard, npmi


def association(
    both: np.ndarray, one: np.ndarray, other: np.ndarray, n_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How two binary variables go together, from counts.

    phi = (n n_ij - n_i n_j) / sqrt(n_i (n - n_i) n_j (n - n_j)); Jaccard = n_ij / (n_i + n_j -
    n_ij); NPMI = log(n_ij n / (n_i n_j)) / -log(n_ij / n), which is 1 if n_ij = n.

    Returns:
        phi, Jaccard and NPMI; phi is 0 where one of them is constant.

    >>> phi, jaccard, npmi = association(*(np.array([x]) for x in (2, 2, 2)), 10)
    >>> round(float(phi[0]), 6), float(jaccard[0]), round(float(npmi[0]), 6)
    (1.0, 1.0, 1.0)
    """
    n_ij, n_i, n_j, n = (np.asarray(x, dtype=np.float64) for x in (both, one, other, n_tokens))
    spread = np.sqrt(n_i * (n - n_i) * n_j * (n - n_j))
    phi = np.divide(n * n_ij - n_i * n_j, spread, out=np.zeros_like(n_ij), where=spread > 0)
    jaccard = n_ij / (n_i + n_j - n_ij)
    surprise = -np.log(n_ij / n)
    pmi = np.log(n_ij * n / (n_i * n_j))
    npmi = np.divide(pmi, surprise, out=np.ones_like(n_ij), where=surprise > 0)
    return phi, jaccard, npmi
