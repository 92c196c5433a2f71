"""Which latents occur in the same chunks of text, and how strongly?

A latent occurs in a chunk if it fires on any of its tokens. With n_i chunks for latent i and n_ij
for both of two, of N in all,

    phi             (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j)), plus 1 so that it is
                    not negative
    jaccard         n_ij / (n_i + n_j - n_ij)
    dice            2 n_ij / (n_i + n_j)
    overlap         n_ij / min(n_i, n_j)
    hypergeometric  -log P(X >= n_ij) for X of n_j draws from N chunks of which n_i are marked

Nothing dense is made. phi is not zero for latents that never met, but it is a sparse matrix less
u u^T with u_i = sqrt(n_i / (N - n_i)), and multiplies vectors as that. The last leaves out pairs
that never met, whose -log P is 0.

Source: Li et al. 2024, "The geometry of concepts", which uses chunks of 256 tokens and
calls a latent active above 1.
"""

from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["AFFINITIES", "Affinity", "AffinityKind", "ChunkCounts", "affinity", "chunks_of"]

AffinityKind = Literal["phi", "jaccard", "dice", "overlap", "hypergeometric"]
AFFINITIES: tuple[AffinityKind, ...] = get_args(AffinityKind)


def chunks_of(rows: Int[Tensor, " token"], chunk_tokens: int) -> Int[Tensor, " token"]:
    """Cut runs of tokens into chunks of equal length.

    Args:
        rows: Which document or context each token belongs to; tokens of one follow each other.
        chunk_tokens: Tokens in a chunk.

    Returns:
        The chunk of each token, counted from 0; -1 in what is left over at the end of a run.

    >>> chunks_of(torch.tensor([7, 7, 7, 5, 5]), 2).tolist()
    [0, 0, -1, 1, 1]
    """
    if chunk_tokens < 1:
        raise ConfigError(f"chunk_tokens={chunk_tokens} must be at least 1.")
    _, lengths = torch.unique_consecutive(rows, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    within = torch.arange(len(rows)) - starts.repeat_interleave(lengths)
    whole = lengths // chunk_tokens
    first = (whole.cumsum(0) - whole).repeat_interleave(lengths)
    kept = within < (whole * chunk_tokens).repeat_interleave(lengths)
    return torch.where(kept, first + within // chunk_tokens, -1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkCounts:
    """In which chunks latents occur, and how often two do together."""

    occurs: Any
    """scipy csr_matrix [chunk, latent] of ones, int64."""
    together: Any
    """scipy csr_matrix [latent, latent] int64, symmetric, without its diagonal."""

    @classmethod
    def of(
        cls, codes: SparseCodes, chunks: Int[Tensor, " token"], above: float = 0.0
    ) -> "ChunkCounts":
        """Count.

        Args:
            codes: Latents of tokens.
            chunks: The chunk of each token, from 0; -1 for tokens to leave out.
            above: A latent fires where |value| is more than this.

        Raises:
            ShapeError: Not one chunk per token.
            DataError: No chunk is left.
        """
        from scipy.sparse import csr_matrix

        if len(chunks) != len(codes):
            raise ShapeError(f"{len(codes)} tokens but {len(chunks)} chunk numbers.")
        n_chunks = int(chunks.max()) + 1 if len(chunks) else 0
        if n_chunks < 2:
            raise DataError(
                f"{n_chunks} chunks: co-occurrence needs many. Use more tokens or shorter chunks."
            )
        chunk = chunks[codes.tokens.cpu()]
        kept = (chunk >= 0) & (codes.values.abs().cpu() > above)
        place = torch.unique(chunk[kept] * codes.d_sae + codes.indices.cpu()[kept])
        at = ((place // codes.d_sae).numpy(), (place % codes.d_sae).numpy())
        ones = np.ones(len(place), dtype=np.int64)
        occurs = csr_matrix((ones, at), shape=(n_chunks, codes.d_sae))
        together = (occurs.T @ occurs).tocsr()
        together.setdiag(0)
        together.eliminate_zeros()
        return cls(occurs=occurs, together=together)

    @property
    def n_chunks(self) -> int:
        """Chunks counted."""
        return self.occurs.shape[0]

    @property
    def counts(self) -> np.ndarray:
        """Chunks in which each latent occurs."""
        return np.asarray(self.occurs.sum(0)).ravel()

    def between(self, low: int, share: float = 1.0) -> np.ndarray:
        """Latents that occur in at least `low` chunks, at most `share` of them, and not in all.

        A latent of every chunk, or of none, has no phi.
        """
        counts = self.counts
        most = min(share * self.n_chunks, self.n_chunks - 1)
        return np.flatnonzero((counts >= max(1, low)) & (counts <= most))

    def of_latents(self, latents: np.ndarray) -> "ChunkCounts":
        """The same of some latents, in that order."""
        together = self.together[latents][:, latents].tocsr()
        return ChunkCounts(occurs=self.occurs[:, latents].tocsr(), together=together)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Affinity:
    """A symmetric affinity: a sparse matrix, plus 1, less u u^T, with a diagonal of zero."""

    kind: AffinityKind
    """Which."""
    sparse: Any
    """scipy csr_matrix of float64, with a diagonal of zero."""
    u: np.ndarray | None
    """For phi, whose rank-one part and shift are not in `sparse`."""

    def __len__(self) -> int:
        """Number of latents."""
        return self.sparse.shape[0]

    def times(self, vectors: np.ndarray) -> np.ndarray:
        """The product with a vector or the columns of a matrix."""
        product = self.sparse @ vectors
        if self.u is None:
            return product
        diagonal = 1 - self.u**2
        own = diagonal * vectors if vectors.ndim == 1 else diagonal[:, None] * vectors
        sums = vectors.sum(0)
        spread = np.outer(self.u, self.u @ vectors).reshape(product.shape)
        return product + sums - spread - own

    def dense(self) -> Float[Tensor, "latent other"]:
        """The matrix, for small dictionaries and for checks."""
        return torch.from_numpy(self.times(np.eye(len(self))))


def affinity(counts: ChunkCounts, kind: AffinityKind = "phi") -> Affinity:
    """How strongly latents occur together.

    Args:
        counts: Of latents that occur in some chunks and not in all: `counts.between`.
        kind: One of AFFINITIES.

    Raises:
        ConfigError: No such affinity.
        DataError: A latent occurs in no chunk or in all of them.
    """
    from scipy.sparse import csr_matrix

    if kind not in AFFINITIES:
        raise ConfigError(f"affinity {kind!r} is not one of {', '.join(AFFINITIES)}.")
    n, n_i = counts.n_chunks, counts.counts.astype(np.float64)
    if np.any((n_i < 1) | (n_i >= n)):
        raise DataError(
            "A latent occurs in no chunk or in all of them, so it goes with none more than with "
            "another. Leave it out: counts.of_latents(counts.between(5))."
        )
    pairs = counts.together.tocoo()
    one, other, both = n_i[pairs.row], n_i[pairs.col], pairs.data.astype(np.float64)
    values = _values(kind, both, one, other, n)
    sparse = csr_matrix((values, (pairs.row, pairs.col)), shape=counts.together.shape)
    u = np.sqrt(n_i / (n - n_i)) if kind == "phi" else None
    return Affinity(kind=kind, sparse=sparse, u=u)


def _values(
    kind: AffinityKind, both: np.ndarray, one: np.ndarray, other: np.ndarray, n: int
) -> np.ndarray:
    if kind == "jaccard":
        return both / (one + other - both)
    if kind == "dice":
        return 2 * both / (one + other)
    if kind == "overlap":
        return both / np.minimum(one, other)
    if kind == "phi":
        return n * both / np.sqrt(one * (n - one) * other * (n - other))
    return -_log_tail(both, one, other, n)


def _log_tail(k: np.ndarray, marked: np.ndarray, drawn: np.ndarray, n: int) -> np.ndarray:
    """log P(X >= k), k of 1 or more, for a hypergeometric X: scipy's takes a minute for a million.

    The tail on the other side of the mean from k is the larger one; the smaller is a sum of terms
    that fall from the first on, and gives the larger.
    """
    from scipy.special import gammaln

    def log_choose(top: np.ndarray | int, bottom: np.ndarray) -> np.ndarray:
        return gammaln(top + 1.0) - gammaln(bottom + 1) - gammaln(top - bottom + 1)

    upper = k > marked * drawn / n
    first = np.where(upper, k, k - 1)
    possible = first >= np.maximum(0, marked + drawn - n)
    start = np.where(possible, first, np.maximum(0, marked + drawn - n))
    log_first = (
        log_choose(marked, start) + log_choose(n - marked, drawn - start) - log_choose(n, drawn)
    )
    total, term, at = np.ones_like(k), np.ones_like(k), start.copy()
    going = np.arange(len(k))
    while len(going):
        x, i, j = at[going], marked[going], drawn[going]
        up = (i - x) * (j - x) / ((x + 1) * (n - i - j + x + 1))
        down = x * (n - i - j + x) / np.maximum((i - x + 1) * (j - x + 1), 1)
        ratio = np.where(upper[going], up, down)
        term[going] *= ratio
        total[going] += term[going]
        at[going] += np.where(upper[going], 1, -1)
        going = going[term[going] > 1e-17 * total[going]]
    found = log_first + np.log(total)
    below = np.where(possible, np.exp(np.minimum(found, 0)), 0)
    return np.minimum(np.where(upper, found, np.log1p(-np.minimum(below, 1 - 1e-16))), 0)
