"""How do tokens become documents? Firings of one end in one document are joined, in any order.

    peak = max |f|,  total = sum |f|,  count = number of firings,  place = first token of the peak

Each of the four can be joined in parts: a document that is read in several rows of tokens, or in
several batches, gives the same as one that is read at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.documents.codes import DocumentCodes
from saelab.documents.texts import Texts
from saelab.errors import DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["Firings", "assembled", "cat", "firings_of", "joined", "pooled_tokens"]


class Firings(NamedTuple):
    """Ends that fire in documents, each perhaps several times."""

    document: Int[Tensor, " firing"]
    end: Int[Tensor, " firing"]
    peak: Float[Tensor, " firing"]
    total: Float[Tensor, " firing"]
    fires: Int[Tensor, " firing"]
    place: Int[Tensor, " firing"]


def firings_of(
    codes: SparseCodes,
    document: Int[Tensor, " token"],
    place: Int[Tensor, " token"],
    *,
    signed: bool,
) -> Firings:
    """Every pair of tokens' codes as a firing.

    Raises:
        DataError: A latent of an unsigned dictionary is negative, or a value is not finite.
    """
    values, latent = codes.values.float(), codes.indices.long()
    if not bool(torch.isfinite(values).all()):
        raise DataError("A latent is NaN or infinite, so documents cannot be pooled.")
    negative = values < 0
    if not signed and bool(negative.any()):
        raise DataError(
            f"{int(negative.sum())} latents are negative, but the dictionary is said to be "
            "unsigned. Pass signed=True to keep the two ends of a latent apart."
        )
    size, token = values.abs(), codes.tokens.long()
    end = latent + codes.d_sae * negative
    ones = torch.ones_like(latent)
    return Firings(document[token].long(), end, size, size, ones, place[token].long())


def joined(firings: Firings, n_ends: int) -> Firings:
    """One firing for each document and end, sorted by both."""
    key, inverse = torch.unique(firings.document * n_ends + firings.end, return_inverse=True)
    peak = firings.peak.new_zeros(len(key)).scatter_reduce_(0, inverse, firings.peak, "amax")
    # In double precision the order of the parts does not show in single precision.
    total = torch.zeros(len(key), dtype=torch.float64)
    total.index_add_(0, inverse, firings.total.double())
    count = firings.fires.new_zeros(len(key)).index_add_(0, inverse, firings.fires)
    highest = firings.peak == peak[inverse]
    last = torch.iinfo(torch.int64).max
    place = torch.full((len(key),), last).scatter_reduce_(
        0, inverse[highest], firings.place[highest], "amin"
    )
    return Firings(key // n_ends, key % n_ends, peak, total.float(), count, place)


def pooled_tokens(
    codes: SparseCodes,
    document: Int[Tensor, " token"],
    *,
    signed: bool,
    groups: Int[Tensor, " document"] | None = None,
    names: Sequence[str] = (),
) -> DocumentCodes:
    """Documents of tokens; see `DocumentCodes.of_tokens`."""
    if document.shape != (codes.n_tokens,):
        raise ShapeError(
            f"document must be [{codes.n_tokens}], one a token; found {list(document.shape)}."
        )
    steps = document.diff()
    bad = bool((steps < 0).any()) or bool((steps > 1).any())
    if not len(document) or int(document[0]) != 0 or bad:
        raise DataError(
            "Tokens must come document by document, 0, 1, 2, ...; leave out documents without a "
            "token that counts."
        )
    sizes = torch.bincount(document)
    place = torch.arange(len(document)) - (sizes.cumsum(0) - sizes)[document]
    firings = joined(
        firings_of(codes, document, place, signed=signed), codes.d_sae * (2 if signed else 1)
    )
    return assembled(firings, sizes, codes.d_sae, signed=signed, groups=groups, names=names)


def assembled(
    firings: Firings,
    n_tokens: Int[Tensor, " document"],
    d_sae: int,
    *,
    signed: bool,
    groups: Int[Tensor, " document"] | None = None,
    names: Sequence[str] = (),
) -> DocumentCodes:
    """Joined firings as documents."""
    n = len(n_tokens)
    per_document = torch.bincount(firings.document, minlength=n)
    return DocumentCodes(
        d_sae=d_sae,
        two_ended=signed,
        n_tokens=n_tokens.long(),
        offsets=torch.cat([per_document.new_zeros(1), per_document.cumsum(0)]),
        ends=firings.end.to(torch.int32),
        peaks=firings.peak,
        totals=firings.total,
        counts=firings.fires.to(torch.int32),
        places=firings.place.to(torch.int32),
        groups=torch.arange(n) if groups is None else groups.long(),
        names=names,
    )


def cat(parts: Sequence[DocumentCodes], *, same_sources: bool = False) -> DocumentCodes:
    """Several collections as one.

    Args:
        parts: Of one dictionary.
        same_sources: Whether equal groups of two parts are the same source; by default no source
            is in two parts.

    Raises:
        DataError: They are of different dictionaries, or there are none.
    """
    if not parts:
        raise DataError("There are no documents to join.")
    first = parts[0]
    for part in parts[1:]:
        known = [p.about.get("dictionary") for p in (first, part)]
        differ = None not in known and known[0] != known[1]
        if (part.d_sae, part.two_ended) != (first.d_sae, first.two_ended) or differ:
            raise DataError(
                f"Documents of different dictionaries ({first.n_ends} and {part.n_ends} ends) "
                "cannot be compared. Read both with the same dictionary."
            )
    shift, groups = 0, []
    for part in parts:
        groups.append(part.groups + shift)
        if not same_sources and len(part):
            shift = int(groups[-1].max()) + 1
    pairs = torch.cat([part.offsets.diff() for part in parts])
    texts = [part.texts for part in parts if part.texts is not None]
    return DocumentCodes(
        d_sae=first.d_sae,
        two_ended=first.two_ended,
        n_tokens=torch.cat([part.n_tokens for part in parts]),
        offsets=torch.cat([pairs.new_zeros(1), pairs.cumsum(0)]),
        ends=torch.cat([part.ends for part in parts]),
        peaks=torch.cat([part.peaks for part in parts]),
        totals=torch.cat([part.totals for part in parts]),
        counts=torch.cat([part.counts for part in parts]),
        places=torch.cat([part.places for part in parts]),
        groups=torch.cat(groups),
        names=_all([part.names for part in parts], [len(part) for part in parts]),
        fields=_all([part.fields for part in parts], [len(part) for part in parts]),
        texts=Texts.cat(texts) if len(texts) == len(parts) else None,
        about=first.about,
    )


def _all(lists: Sequence[Sequence], sizes: Sequence[int]) -> Sequence:
    """All lists in one, or none where one is missing."""
    if any(len(one) != size for one, size in zip(lists, sizes, strict=True)):
        return ()
    return [item for one in lists for item in one]
