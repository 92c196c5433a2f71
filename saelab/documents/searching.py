"""Which documents have this property? Weighted latents as a query, with the words that answer it.

    search = DocumentSearch(documents)
    search.find({(812, 1): 1.0, (77, 1): 0.5, (903, 1): -1.0})      # (latent, sign): weight

A value counts relative to the largest its end has in the collection, so that a weight means the
same for a loud latent and a quiet one. A negative weight is "and not": the other end of a signed
latent is a property of its own, asked for as (latent, -1). Which latents stand for a property is
for labels (`atlas.search`) or for examples (`typical`) to say.

Source: property-based retrieval in Jiang et al. 2025 (Interpretable Embeddings with Sparse
Autoencoders); the scaling is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.documents.codes import DocumentCodes, DocumentPooling
from saelab.documents.index import InvertedIndex
from saelab.documents.texts import Snippet
from saelab.errors import ConfigError
from saelab.sparse_codes import SparseCodes

__all__ = ["DocumentSearch", "FoundDocument", "Part", "typical"]

End = tuple[int, int]
"""A latent and the sign of one of its ends."""


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """What one end adds to a document's score."""

    latent: int
    """Latent."""
    sign: int
    """Its end."""
    added: float
    """Weight times relative value; negative where the query asks for its absence."""
    snippet: Snippet | None
    """The words around its peak, if text was kept."""


@final
@dataclass(frozen=True, kw_only=True)
class FoundDocument:
    """An answer."""

    document: int
    """Its number."""
    name: str
    """Its name."""
    score: float
    """Sum of the parts."""
    parts: tuple[Part, ...]
    """The ends of the query that fire in it, those that add most first."""


@final
class DocumentSearch:
    """Searches of one collection.

    Args:
        documents: What is searched.
        how: "share" and "mean" ask how much of a document has the property, "peak" how clearly some
            token of it has.
    """

    def __init__(self, documents: DocumentCodes, how: DocumentPooling = "peak") -> None:
        self.documents, self.how = documents, how
        pooled = documents.pooled(how)
        largest = torch.zeros(documents.n_ends)
        largest.scatter_reduce_(0, pooled.indices, pooled.values, "amax")
        self.codes = SparseCodes(
            pooled.offsets, pooled.indices, pooled.values / largest[pooled.indices], pooled.d_sae
        )
        """Values relative to the largest of each end: above 0, at most 1."""
        self.index = InvertedIndex.of(self.codes)
        self._unit: tuple[SparseCodes, InvertedIndex] | None = None

    def find(
        self, wanted: Mapping[End, float], n: int = 10, around: int = 10
    ) -> list[FoundDocument]:
        """The n documents that have most of a property; none with a score of 0 or less.

        Args:
            wanted: Weight of each (latent, sign); negative for absence.
            n: Documents at most.
            around: Tokens of a snippet on both sides.

        Raises:
            ConfigError: Nothing is wanted, everything is to be absent, or an end does not exist.
        """
        if not any(weight > 0 for weight in wanted.values()):
            raise ConfigError(
                "The query has no positive weight, so no document scores above 0. Ask for "
                "something to be there."
            )
        ends = {self.documents.end(*end): float(weight) for end, weight in wanted.items()}
        hits = self.index.search(_query(ends, self.documents.n_ends), n)
        return [
            self._found(document, score, ends, around)
            for document, score in zip(
                hits.documents[0].tolist(), hits.scores[0].tolist(), strict=True
            )
            if document >= 0
        ]

    def like(self, document: int, n: int = 10) -> list[tuple[int, float]]:
        """Documents that hold the same ends, by the cosine of relative values, itself left out.

        Returns:
            Document and cosine, above 0 and at most 1, the most alike first.
        """
        if self._unit is None:
            square = torch.zeros(len(self.documents))
            square.index_add_(0, self.codes.tokens, self.codes.values.square())
            values = self.codes.values / square.sqrt()[self.codes.tokens]
            codes = self.codes
            unit = SparseCodes(codes.offsets, codes.indices, values, codes.d_sae)
            self._unit = unit, InvertedIndex.of(unit)
        codes, index = self._unit
        hits = index.search(codes[document], n + 1)
        told = zip(hits.documents[0].tolist(), hits.scores[0].tolist(), strict=True)
        return [(other, score) for other, score in told if other not in (-1, document)][:n]

    def _found(
        self, document: int, score: float, ends: Mapping[int, float], around: int
    ) -> FoundDocument:
        parts = []
        for end, weight in ends.items():
            pair = self.documents.pair(document, end)
            if pair is not None and weight:
                latent, sign = self.documents.latent_of(end)
                snippet = self.documents.snippet(document, end, around)
                added = weight * float(self.codes.values[pair])
                parts.append(Part(latent=latent, sign=sign, added=added, snippet=snippet))
        parts.sort(key=lambda part: -part.added)
        name = self.documents.name(document)
        return FoundDocument(document=document, name=name, score=score, parts=tuple(parts))


def typical(
    documents: DocumentCodes, examples: Bool[Tensor, " document"], n: int = 8
) -> dict[End, float]:
    """A query from examples: the ends that are in them and not in the other documents.

    Args:
        documents: Examples and others; the others say what is ordinary.
        examples: Which are examples.
        n: Ends at most.

    Returns:
        Weight of each (latent, sign): how much larger a share of the examples has it than of the
        others. Chosen by looking at the examples: it is a query, and no test of a difference.

    Raises:
        ConfigError: There is no example, or nothing else.
    """
    sizes = int(examples.sum()), int((~examples).sum())
    if min(sizes) < 1:
        raise ConfigError(f"{sizes[0]} examples and {sizes[1]} others; a query needs both.")
    inside, ends = examples[documents.documents], documents.ends.long()
    hits = [torch.bincount(ends[side], minlength=documents.n_ends) for side in (inside, ~inside)]
    excess = hits[0] / sizes[0] - hits[1] / sizes[1]
    best = excess.argsort(descending=True, stable=True)[:n].tolist()
    return {documents.latent_of(end): float(excess[end]) for end in best if excess[end] > 0}


def _query(ends: Mapping[int, float], width: int) -> SparseCodes:
    at = torch.tensor(list(ends), dtype=torch.long)
    return SparseCodes.from_pairs(
        torch.zeros_like(at), at, torch.tensor(list(ends.values())), 1, width
    )
