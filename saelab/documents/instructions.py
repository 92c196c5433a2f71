"""Which latents belong to one kind of instruction, which to all, and does training move them?

An end is *specific to a document* if it fires on at least a threshold of its tokens, and belongs to
a category if it is specific to at least `coverage` of the category's documents.

    generality = |ends of every category| / |ends of any|        unique = of exactly one category

With few documents a category, some ends are unique by chance; `null_unique` counts them after the
categories were shuffled among documents.

Source: SPARCOM (HexaInst), which asks this of neurons and experts; there an end must be specific to
all documents of a category (coverage=1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from saelab.documents.codes import DocumentCodes
from saelab.errors import ConfigError, DataError

__all__ = ["CategoryEnds", "category_ends", "overlap"]

End = tuple[int, int]
"""A latent and the sign of one of its ends."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryEnds:
    """Ends by category."""

    ends: dict[str, frozenset[End]]
    """(latent, sign) of each category."""
    unique: dict[str, frozenset[End]]
    """Those of no other category."""
    general: frozenset[End]
    """Those of every category."""
    generality: float
    """|general| / |ends of any category|; 0 if there are none."""
    null_unique: dict[str, float]
    """Mean number of unique ends of each category after shuffling categories."""


def category_ends(
    documents: DocumentCodes,
    categories: Sequence[str],
    *,
    threshold: float = 0.5,
    coverage: float = 1.0,
    draws: int = 20,
    seed: int = 0,
) -> CategoryEnds:
    """Ends that belong to categories of documents.

    Args:
        documents: Instructions, say.
        categories: Of each.
        threshold: Share of a document's tokens an end must fire on.
        coverage: Share of a category's documents it must be specific to.
        draws: Shuffles of the null; 0 for none.
        seed: Of the shuffles.

    Raises:
        ConfigError: A share is not above 0 and at most 1.
        DataError: Not one category a document, or fewer than two.
    """
    if not (0 < threshold <= 1 and 0 < coverage <= 1):
        raise ConfigError(
            f"threshold={threshold} and coverage={coverage} must be above 0 and at most 1."
        )
    names = sorted(set(categories))
    if len(categories) != len(documents) or len(names) < 2:
        raise DataError(
            f"{len(categories)} categories of {len(names)} kinds for {len(documents)} documents: "
            "each document needs one, of at least two kinds."
        )
    number = torch.tensor([names.index(one) for one in categories])
    pooled = documents.pooled("share")
    specific = pooled.values >= threshold - 1e-7  # shares are ratios in single precision
    document, end = pooled.tokens[specific], pooled.indices[specific]
    belongs = _belongs(document, end, number, len(names), documents.n_ends, coverage)
    generator = np.random.default_rng(seed)
    null = np.zeros(len(names))
    for _ in range(draws):
        shuffled = torch.from_numpy(generator.permutation(number.numpy()))
        table = _belongs(document, end, shuffled, len(names), documents.n_ends, coverage)
        null += (table & (table.sum(0) == 1)).sum(1).numpy() / draws
    alone, every = belongs & (belongs.sum(0) == 1), belongs.all(0)
    any_of = int(belongs.any(0).sum())
    return CategoryEnds(
        ends={name: _named(documents, belongs[i]) for i, name in enumerate(names)},
        unique={name: _named(documents, alone[i]) for i, name in enumerate(names)},
        general=_named(documents, every),
        generality=int(every.sum()) / any_of if any_of else 0.0,
        null_unique={name: float(null[i]) for i, name in enumerate(names)},
    )


def overlap(before: frozenset[End], after: frozenset[End]) -> float:
    """Jaccard index of a category's ends before and after training; 1 if both are empty.

    >>> overlap(frozenset({(1, 1), (2, 1)}), frozenset({(2, 1), (3, 1)}))
    0.3333333333333333
    """
    union = before | after
    return len(before & after) / len(union) if union else 1.0


def _belongs(
    document: Tensor, end: Tensor, category: Tensor, n: int, n_ends: int, coverage: float
) -> Tensor:
    """[category, end] whether enough of a category's documents are specific to an end."""
    hits = torch.bincount(category[document] * n_ends + end, minlength=n * n_ends)
    sizes = torch.bincount(category, minlength=n)
    return hits.reshape(n, n_ends) >= (coverage * sizes[:, None] - 1e-6).clamp_min(1)


def _named(documents: DocumentCodes, chosen: Tensor) -> frozenset[End]:
    return frozenset(documents.latent_of(int(end)) for end in chosen.nonzero().squeeze(1))
