"""How is a document found by the latents it holds, without looking at the others?

For each latent a posting list: the documents that hold it, and how strongly. A query's scores

    score(d) = sum over the query's latents j of weight_j * value_dj

touch only the lists of those latents, so a search costs the sum of their lengths and not documents
times width. A latent that is in every document has a list as long as the collection: `longest` says
how bad the worst is. Values and weights may be negative; nothing is skipped, so scores are those of
the dense product.
"""

import itertools
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["Hits", "InvertedIndex"]


@final
@dataclass(frozen=True, eq=False)
class Hits:
    """What searches found: one row a query, best first."""

    documents: Int[Tensor, "query n"]
    """Documents; -1 after the last with a score above 0."""
    scores: Float[Tensor, "query n"]
    """Their scores; 0 there."""


@final
@dataclass(frozen=True, eq=False)
class InvertedIndex:
    """Posting lists of a collection.

    >>> codes = SparseCodes.from_dense(torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, 1.0]]))
    >>> hits = InvertedIndex.of(codes).search(codes[:1], 2)
    >>> hits.documents.tolist(), hits.scores.tolist()
    ([[1, 0]], [[2.0, 1.0]])
    """

    starts: NDArray[Any]
    """[latent + 1] where each latent's list starts, and after the last where it ends."""
    documents: NDArray[Any]
    """Documents of each list, ascending."""
    values: NDArray[Any]
    """Value of each."""
    n_documents: int
    """Documents in the collection."""

    @classmethod
    def of(cls, codes: SparseCodes) -> "InvertedIndex":
        """Index documents, one a row."""
        latent = codes.indices.cpu().numpy()
        order = np.argsort(latent, kind="stable")
        starts = np.zeros(codes.d_sae + 1, dtype=np.int64)
        np.cumsum(np.bincount(latent, minlength=codes.d_sae), out=starts[1:])
        documents = codes.tokens.cpu().numpy().astype(np.int32)[order]
        values = codes.values.float().cpu().numpy()[order]
        return cls(starts, documents, values, codes.n_tokens)

    @property
    def width(self) -> int:
        """Latents there are, with or without a document."""
        return len(self.starts) - 1

    @property
    def longest(self) -> int:
        """Length of the longest list: what one latent can cost a search."""
        return int(np.diff(self.starts).max(initial=0))

    def search(self, queries: SparseCodes, n: int = 10) -> Hits:
        """The n documents with the highest score above 0; among equals, the smaller number first.

        Args:
            queries: Weight of each latent, one query a row.
            n: Documents at most.

        Raises:
            ShapeError: Queries are of another width.
            ConfigError: n is not positive.
        """
        if queries.d_sae != self.width:
            raise ShapeError(
                f"Queries of width {queries.d_sae} for an index of width {self.width}."
            )
        if n < 1:
            raise ConfigError(f"n={n} documents were asked for; ask for at least 1.")
        found = np.full((len(queries), n), -1, dtype=np.int64)
        scores = np.zeros((len(queries), n))
        board = np.zeros(self.n_documents)
        offsets = queries.offsets.cpu().numpy()
        latents = queries.indices.cpu().numpy()
        weights = queries.values.double().cpu().numpy()
        for row, (first, last) in enumerate(itertools.pairwise(offsets)):
            best, score = self._one(latents[first:last], weights[first:last], n, board)
            found[row, : len(best)], scores[row, : len(best)] = best, score
        return Hits(torch.from_numpy(found), torch.from_numpy(scores).float())

    def _one(
        self, latents: NDArray[Any], weights: NDArray[Any], n: int, board: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The best documents of one query; `board` is all zeros before and after."""
        lists = []
        for latent, weight in zip(latents, weights, strict=True):
            at = slice(self.starts[latent], self.starts[latent + 1])
            documents = self.documents[at]
            board[documents] += weight * self.values[at]  # no document is in a list twice
            lists.append(documents)
        if not lists:
            return np.empty(0, np.int64), np.empty(0)
        if sum(map(len, lists)) > len(board) // 2:  # the lists are longer than the collection
            touched = np.flatnonzero(board > 0)
            score = board[touched]
            board[:] = 0.0
        else:
            touched = np.concatenate(lists)
            score = board[touched]
            board[touched] = 0.0
        kept = score > 0
        touched, score = touched[kept], score[kept]
        # A document is in at most len(lists) of them, so the n best are among so many entries.
        most = n * len(lists)
        if len(score) > most:
            edge = np.partition(score, len(score) - most)[len(score) - most]
            near = score >= edge
            touched, score = touched[near], score[near]
        touched, first = np.unique(touched, return_index=True)
        score = score[first]
        order = np.lexsort((touched, -score))[:n]
        return touched[order], score[order]
