"""What is in one set of texts and not in another? Latents, with their rate of false discoveries.

    comparison = compare(read_documents(model, sae, a), read_documents(model, sae, b))
    for found in comparison.discoveries()[:10]:
        print(found.latent, found.sign, found.share_a, found.share_b, found.q)

What is compared is the share of documents in which an end fires. It grows with the documents'
length, so documents are compared within strata of like length; and it grows with nothing else only
if what is compared was not chosen by looking, so every end that fires often enough in both together
is tested and the discoveries are those that survive Benjamini-Hochberg. Two halves of one set
(`halves`) should differ in nothing: look at that first.

Source: dataset diffing in Jiang et al. 2025 (Interpretable Embeddings with Sparse Autoencoders),
which ranks by the difference of shares; the tests and the strata are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from saelab.documents.chance import benjamini_hochberg, stratified_p
from saelab.documents.codes import DocumentCodes
from saelab.documents.pooling import cat
from saelab.documents.strata import StratumCounts, effects, grouped_scores_p, length_strata
from saelab.documents.texts import Snippet
from saelab.errors import ConfigError, DataError

__all__ = ["CompareConfig", "Comparison", "Difference", "compare", "compare_parts", "halves"]


@final
@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which differences are tested and which are told."""

    q: float = 0.05
    """Expected share of false ones among the discoveries."""
    least_difference: float = 0.03
    """Discoveries with a smaller difference of shares are not told: real, and of no use."""
    least_documents: int = 5
    """Ends that fire in fewer documents of both sets together are not tested: they cannot differ
    enough."""
    n_strata: int = 5
    """Strata of like length, by quantiles of the documents' tokens; 1 for none."""

    def __post_init__(self) -> None:
        if not 0 < self.q < 1 or not 0 <= self.least_difference < 1:
            raise ConfigError(
                f"q={self.q} must be between 0 and 1, least_difference={self.least_difference} "
                "from 0 to below 1."
            )
        if self.least_documents < 1 or self.n_strata < 1:
            raise ConfigError(
                f"least_documents={self.least_documents} and n_strata={self.n_strata} must be at "
                "least 1."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """One end in the two sets."""

    latent: int
    """Latent."""
    sign: int
    """Its positive end (1) or negative end (-1)."""
    share_a: float
    """Share of documents of A in which it fires."""
    share_b: float
    """The same of B."""
    difference: float
    """share_a - share_b within strata of like length, by Mantel and Haenszel's weights."""
    odds_ratio: float
    """Mantel and Haenszel's, 0.5 added to each count: above 1 where A has more."""
    tokens_a: float
    """Share of A's tokens on which it fires."""
    tokens_b: float
    """The same of B."""
    p: float
    """Two-sided."""
    q: float
    """p adjusted for all tests (Benjamini-Hochberg)."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Every tested end of two sets; arrays are [end], NaN where an end was not tested."""

    documents: DocumentCodes
    """Both sets; A's documents are those of `in_a`."""
    in_a: Bool[Tensor, " document"]
    """Which documents are A's; the others are B's."""
    config: CompareConfig
    """What was asked."""
    columns: dict[str, NDArray[Any]]
    """Fields of `Difference` by name, from share_a to q."""
    n_tested: int
    """Tests that were made: what q is adjusted for."""
    n_used: int
    """Documents in strata with documents of both sets; the others say nothing."""
    lengths: tuple[tuple[int, int, int, int], ...]
    """Of each stratum: fewest and most tokens, documents of A and of B."""
    grouped: bool
    """Whether texts and not passages were the units of the test."""

    def at(self, end: int) -> Difference:
        """One end."""
        latent, sign = self.documents.latent_of(end)
        values = {name: float(column[end]) for name, column in self.columns.items()}
        return Difference(latent=latent, sign=sign, **values)

    def discoveries(self) -> list[Difference]:
        """Ends with q and difference beyond the config's limits, the largest differences first."""
        size = np.abs(self.columns["difference"])
        with np.errstate(invalid="ignore"):
            kept = (self.columns["q"] <= self.config.q) & (size >= self.config.least_difference)
        found = np.flatnonzero(kept)
        return [self.at(int(end)) for end in found[np.argsort(-size[found], kind="stable")]]

    def largest(self, n: int) -> list[Difference]:
        """The n largest differences whether or not chance explains them."""
        size = np.nan_to_num(np.abs(self.columns["difference"]), nan=-1.0)
        order = np.argsort(-size, kind="stable")[:n]
        return [self.at(int(end)) for end in order if size[end] >= 0]

    def examples(
        self, found: Difference, n: int = 3, around: int = 10
    ) -> list[tuple[int, float, Snippet | None]]:
        """Documents in which an end is strongest, of the set that has more of it, one a source.

        Returns:
            Document, peak and the words around it, strongest first.
        """
        codes, end = self.documents, self.documents.end(found.latent, found.sign)
        pairs = (codes.ends == end).nonzero().squeeze(1)
        document = codes.documents[pairs]
        of_side = self.in_a[document] == (found.difference >= 0)
        pairs, document = pairs[of_side], document[of_side]
        order = codes.peaks[pairs].argsort(descending=True, stable=True)
        told: dict[int, tuple[int, float, Snippet | None]] = {}
        for i in order.tolist():
            at, group = int(document[i]), int(codes.groups[document[i]])
            if group not in told and len(told) < n:
                told[group] = (at, float(codes.peaks[pairs[i]]), codes.snippet(at, end, around))
        return list(told.values())


def compare(a: DocumentCodes, b: DocumentCodes, config: CompareConfig | None = None) -> Comparison:
    """Compare two sets of documents, end by end.

    Args:
        a: One set.
        b: The other, read with the same dictionary.
        config: What is tested and told.

    Raises:
        DataError: They are of different dictionaries, or share no length.
    """
    both = cat([a, b])
    return compare_parts(both, torch.arange(len(both)) < len(a), config)


def compare_parts(
    documents: DocumentCodes,
    in_a: Bool[Tensor, " document"],
    config: CompareConfig | None = None,
) -> Comparison:
    """Compare some documents with the others.

    Args:
        documents: Both sets.
        in_a: Which are A's.
        config: What is tested and told.

    Raises:
        DataError: A set is empty, they share no stratum of length, or a set is a single text in
            many passages: what it has need not be what its kind has.
    """
    config = config or CompareConfig()
    _check_sides(documents, in_a)
    stratum = length_strata(documents.n_tokens, config.n_strata)
    grouped = len(torch.unique(documents.groups)) < len(documents)
    counts = StratumCounts.of(documents, in_a, stratum)
    tested = np.asarray(documents.firing()) >= config.least_documents
    columns = {name: np.full(documents.n_ends, np.nan) for name in _COLUMNS}
    for name, values in effects(documents, in_a, counts).items():
        columns[name] = values
    p = np.full(documents.n_ends, np.nan)
    if grouped:
        p[tested] = grouped_scores_p(documents, in_a, stratum, counts.used, tested)
    else:
        hits, totals = counts.hits[:, tested], counts.totals[:, tested]
        p[tested] = stratified_p(hits, totals, counts.in_a, counts.sizes)
    columns["p"] = p
    columns["q"][tested] = benjamini_hochberg(p[tested])
    for name in columns:
        columns[name] = np.where(tested, columns[name], np.nan)
    return Comparison(
        documents=documents,
        in_a=in_a,
        config=config,
        columns=columns,
        n_tested=int(tested.sum()),
        n_used=int(counts.sizes.sum()),
        lengths=_lengths(documents, in_a, stratum),
        grouped=grouped,
    )


def halves(documents: DocumentCodes, seed: int = 0) -> Bool[Tensor, " document"]:
    """A random half of the sources, as `in_a`: whatever differs between the halves is chance."""
    sources, inverse = torch.unique(documents.groups, return_inverse=True)
    if len(sources) < 2:
        raise DataError("There is one source, which cannot be divided into halves.")
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed))
    return (order < len(sources) // 2)[inverse]


_COLUMNS = (
    "share_a", "share_b", "difference", "odds_ratio", "tokens_a", "tokens_b", "p", "q",
)  # fmt: skip


def _check_sides(documents: DocumentCodes, in_a: Tensor) -> None:
    sizes = int(in_a.sum()), int((~in_a).sum())
    if min(sizes) < 2:
        raise DataError(f"The sets have {sizes[0]} and {sizes[1]} documents; each needs two.")
    sources = [len(torch.unique(documents.groups[side])) for side in (in_a, ~in_a)]
    if min(sources) < 2:
        raise DataError(
            f"The sets have {sources[0]} and {sources[1]} sources: with one text on a side, the "
            "text cannot be told from its kind. Give at least two (chapters will do)."
        )


def _lengths(
    documents: DocumentCodes, in_a: Tensor, stratum: Tensor
) -> tuple[tuple[int, int, int, int], ...]:
    told: Sequence[tuple[int, int, int, int]] = [
        (
            int(documents.n_tokens[stratum == s].min()),
            int(documents.n_tokens[stratum == s].max()),
            int(in_a[stratum == s].sum()),
            int((~in_a)[stratum == s].sum()),
        )
        for s in range(int(stratum.max()) + 1)
    ]
    return tuple(told)
