"""What is a document to a dictionary? The latents that fire in it: how strongly, how often, where.

An *end* is one side of a latent: end i is latent i where it is positive, end d_sae + i the same
latent where it is negative. An unsigned dictionary has d_sae ends. All that is said of documents
here is said of ends, so that a positive and a negative firing never cancel, and turning a latent
around swaps its two ends and changes nothing else.

    peak    largest |value| over the document's tokens; grows with the document's length
    mean    mean |value| over tokens, silent ones included
    share   share of tokens on which the end fires

Axes: document is a row, pair is one (document, end) that fires.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.documents.texts import Snippet, Texts
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["DocumentCodes", "DocumentPooling"]

DocumentPooling = Literal["peak", "mean", "share"]
"""How a document's tokens become one number an end."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentCodes:
    """Documents as rows of firing ends; what every question of this folder is asked of.

    >>> codes = SparseCodes.from_dense(torch.tensor([[-1.0, 0.0], [3.0, 2.0]]))
    >>> documents = DocumentCodes.of_tokens(codes, torch.tensor([0, 0]), signed=True)
    >>> documents.pooled("peak").dense().tolist(), documents.signed("peak").dense().tolist()
    ([[3.0, 2.0, 1.0, 0.0]], [[3.0, 2.0]])
    """

    d_sae: int
    """Latents of the dictionary."""
    two_ended: bool
    """Whether latents can be negative; then there are 2 * d_sae ends."""
    n_tokens: Int[Tensor, " document"]
    """Tokens that counted; at least 1."""
    offsets: Int[Tensor, " document_plus_one"]
    """Where each document's pairs start, and after the last document where they end."""
    ends: Int[Tensor, " pair"]
    """Which end, ascending within a document."""
    peaks: Float[Tensor, " pair"]
    """Its largest |value|; above 0."""
    totals: Float[Tensor, " pair"]
    """Its |value| summed over tokens."""
    counts: Int[Tensor, " pair"]
    """On how many tokens it fires."""
    places: Int[Tensor, " pair"]
    """Token of the peak (the first, if several), counted in the document's text."""
    groups: Int[Tensor, " document"]
    """Which source each document is a part of: passages of one text are not independent."""
    names: Sequence[str] = ()
    """Of each document; may be empty."""
    fields: Sequence[Mapping[str, Any]] = ()
    """What else is known of each document (year, genre); may be empty."""
    texts: Texts | None = None
    """What the documents say; None if it was not kept."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The model, the dictionary, the corpus and the settings that made them; JSON-able."""

    def __post_init__(self) -> None:
        n, pairs = len(self.n_tokens), len(self.ends)
        lengths = {len(one) for one in (self.peaks, self.totals, self.counts, self.places)}
        rows = {len(self.offsets) - 1, len(self.groups)} | {
            len(known) for known in (self.names, self.fields, self.texts or ()) if len(known)
        }
        if lengths != {pairs} or rows != {n}:
            raise ShapeError(
                f"{n} documents with rows of {sorted(rows)}, {pairs} pairs with values of "
                f"{sorted(lengths)}: all must agree."
            )

    @classmethod
    def of_tokens(
        cls,
        codes: SparseCodes,
        document: Int[Tensor, " token"],
        *,
        signed: bool,
        groups: Int[Tensor, " document"] | None = None,
        names: Sequence[str] = (),
    ) -> "DocumentCodes":
        """Pool the codes of tokens.

        Args:
            codes: Of the tokens that count, document by document.
            document: Of each token: 0, 1, ... in order, none left out.
            signed: Whether the dictionary's latents can be negative.
            groups: Source of each document; by default each is its own.
            names: Of the documents.

        Raises:
            DataError: A document has no token, or a latent of an unsigned dictionary is negative.
        """
        from saelab.documents.pooling import pooled_tokens  # which builds on the fields above

        return pooled_tokens(codes, document, signed=signed, groups=groups, names=names)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.n_tokens)

    @property
    def n_ends(self) -> int:
        """d_sae, or twice as many where latents can be negative."""
        return self.d_sae * (2 if self.two_ended else 1)

    @property
    def documents(self) -> Int[Tensor, " pair"]:
        """The document of each pair."""
        rows = torch.arange(len(self))
        return rows.repeat_interleave(self.offsets.diff(), output_size=len(self.ends))

    def end(self, latent: int, sign: int = 1) -> int:
        """The end of a latent: its positive one, or with sign -1 its negative one.

        Raises:
            ConfigError: There is no such latent, or it is never negative.
        """
        sides = (1, -1) if self.two_ended else (1,)
        if not 0 <= latent < self.d_sae or sign not in sides:
            raise ConfigError(
                f"There is no end ({latent}, {sign}): latents are 0 to {self.d_sae - 1}, signs "
                f"{' or '.join(map(str, sides))}."
            )
        return latent + (self.d_sae if sign < 0 else 0)

    def latent_of(self, end: int) -> tuple[int, int]:
        """Latent and sign of an end: the inverse of `end`."""
        return end % self.d_sae, -1 if end >= self.d_sae else 1

    def pooled(self, how: DocumentPooling) -> SparseCodes:
        """One row a document, one column an end; every value is above 0."""
        if how not in get_args(DocumentPooling):
            known = ", ".join(get_args(DocumentPooling))
            raise ConfigError(f"There is no pooling '{how}' of documents. Known: {known}.")
        values = {"peak": self.peaks, "mean": self.totals, "share": self.counts.float()}[how]
        if how != "peak":
            values = values / self.n_tokens[self.documents]
        return SparseCodes(self.offsets, self.ends.long(), values, self.n_ends)

    def signed(self, how: DocumentPooling) -> SparseCodes:
        """One column a latent, the ends joined: the peak of largest size with its sign.

        `mean` and `share` give the positive end less the negative one, which may cancel.
        """
        pooled, document = self.pooled(how), self.documents
        sign = torch.where(self.ends.long() >= self.d_sae, -1.0, 1.0)
        key = document * self.d_sae + self.ends.long() % self.d_sae
        found, inverse = torch.unique(key, return_inverse=True)
        values = torch.zeros(len(found)).index_add_(0, inverse, sign * pooled.values)
        if how == "peak":
            ends = torch.zeros(2, len(found)).index_put_(
                ((sign < 0).long(), inverse), pooled.values
            )
            values = torch.where(ends[0] >= ends[1], ends[0], -ends[1])
        return SparseCodes.from_pairs(
            found // self.d_sae, found % self.d_sae, values, len(self), self.d_sae
        )

    def firing(self) -> Int[Tensor, " end"]:
        """In how many documents each end fires."""
        return torch.bincount(self.ends.long(), minlength=self.n_ends)

    def rows(self, chosen: Int[Tensor, " chosen"] | Bool[Tensor, " document"]) -> "DocumentCodes":
        """Some of the documents, in the order asked for."""
        if chosen.dtype == torch.bool:
            if len(chosen) != len(self):
                raise ShapeError(f"A mask of {len(chosen)} for {len(self)} documents.")
            chosen = chosen.nonzero().squeeze(1)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise DataError(f"Documents are numbered 0 to {len(self) - 1}.")
        sizes = self.offsets.diff()[chosen]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(sizes)
        pairs = self.offsets[chosen].repeat_interleave(sizes) + within
        picked = chosen.tolist()
        return replace(
            self,
            n_tokens=self.n_tokens[chosen],
            offsets=offsets,
            ends=self.ends[pairs],
            peaks=self.peaks[pairs],
            totals=self.totals[pairs],
            counts=self.counts[pairs],
            places=self.places[pairs],
            groups=self.groups[chosen],
            names=[self.names[i] for i in picked] if self.names else (),
            fields=[self.fields[i] for i in picked] if self.fields else (),
            texts=None if self.texts is None else self.texts.rows(chosen),
        )

    def one_per_group(self, seed: int = 0) -> "DocumentCodes":
        """A random document of each source, so that the documents are independent."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        _, inverse = torch.unique(self.groups, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1 if len(self) else 0,), len(self))
        first.scatter_reduce_(0, inverse[order], torch.arange(len(self)), "amin")
        return self.rows(order[first].sort().values)

    def pair(self, document: int, end: int) -> int | None:
        """Where the pair of a document and an end is; None if the end is silent in it."""
        start, stop = int(self.offsets[document]), int(self.offsets[document + 1])
        place = start + int(torch.searchsorted(self.ends[start:stop].contiguous(), end))
        return place if place < stop and int(self.ends[place]) == end else None

    def snippet(self, document: int, end: int, around: int = 10) -> Snippet | None:
        """The words around an end's peak in a document; None if it is silent or text is missing."""
        pair = self.pair(document, end)
        if pair is None or self.texts is None:
            return None
        return self.texts.window(document, int(self.places[pair]), around)

    def name(self, document: int) -> str:
        """A document's name, or its number where it has none."""
        return self.names[document] if self.names else f"document {document}"
