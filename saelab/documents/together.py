"""Which latents appear in the same documents more than length and frequency explain?

    NPMI_jk = log(P_jk / (P_j P_k)) / -log P_jk        1 always together, 0 chance, -1 never

over documents, an end being in a document or not. A pair of high NPMI whose latents mean different
things says something about the texts; one whose decoder directions are alike says something about
the dictionary, so the cosine is told too.

Long documents hold more of everything, which puts all NPMIs above 0. So the chance of a pair's
count is judged within strata of like length (`chance.binomial_bound`, an upper bound of p, with
Benjamini-Hochberg over all pairs), and the same search is repeated on documents in which every
latent has been moved by a random step among documents of like length: its frequency and the lengths
stay, and every pair of latents is broken.

Source: NPMI as in Jiang et al. 2025 (Interpretable Embeddings with Sparse Autoencoders).
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from saelab.documents.chance import binomial_bound
from saelab.documents.codes import DocumentCodes
from saelab.documents.strata import length_strata
from saelab.errors import ConfigError, DataError

__all__ = ["Pair", "PairConfig", "Pairs", "npmi", "pairs_together"]


@final
@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which pairs of ends are looked at."""

    q: float = 0.05
    """Expected share of false ones among the pairs told."""
    least_documents: int = 5
    """Ends in fewer documents are left out."""
    most_share: float = 0.5
    """Ends in a larger share of documents are left out: they are with everything."""
    least_both: int = 3
    """Pairs together in fewer documents are not told."""
    n_strata: int = 5
    """Strata of like length; 1 for none."""
    most_cosine: float = 1.0
    """Pairs whose decoder directions are nearer than this are not told, if directions are given."""
    at_once: int = 512
    """Ends whose pairs are counted at once."""

    def __post_init__(self) -> None:
        if not 0 < self.q < 1 or not 0 < self.most_share <= 1:
            raise ConfigError(
                f"q={self.q} must be between 0 and 1, most_share={self.most_share} above 0 and at "
                "most 1."
            )
        if min(self.least_documents, self.least_both, self.n_strata, self.at_once) < 1:
            raise ConfigError(
                "least_documents, least_both, n_strata and at_once must be at least 1."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two ends that are in the same documents."""

    latent: int
    """One latent."""
    sign: int
    """Its end."""
    other: int
    """The other latent, a larger one."""
    other_sign: int
    """Its end."""
    n_both: int
    """Documents with both."""
    n_one: int
    """Documents with the first."""
    n_other: int
    """Documents with the second."""
    expected: float
    """Documents with both that their frequencies and the lengths explain."""
    npmi: float
    """From -1 to 1."""
    cosine: float | None
    """Of the decoder directions, turned to the two ends; None if they were not given."""
    q: float
    """At most the adjusted p value."""


@final
@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs that are together, and what the same search finds in broken documents."""

    found: tuple[Pair, ...]
    """The largest NPMI first."""
    n_tested: int
    """All pairs of ends that are in enough documents and not in too many."""
    null_found: int
    """Pairs found after every latent was moved among documents of like length: should be 0."""
    null_npmi: float
    """The largest NPMI there, of pairs with `least_both` documents; 0 if there is none."""


def npmi(both: NDArray[Any], one: NDArray[Any], other: NDArray[Any], n: int) -> NDArray[Any]:
    """Normalized pointwise mutual information of two kinds of documents, from counts.

    Returns:
        From -1 (never together, by convention where n_jk = 0) to 1 (always, also where both are in
        every document).

    >>> npmi(np.array([2, 1, 0]), np.array([2, 2, 2]), np.array([2, 5, 2]), 10).round(6).tolist()
    [1.0, 0.0, -1.0]
    """
    joint, a, b = (np.asarray(x, dtype=np.float64) / n for x in (both, one, other))
    if np.any(a <= 0) or np.any(b <= 0):
        raise DataError("NPMI is not defined for a latent that is in no document.")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(joint / (a * b)) / -np.log(joint)
    value = np.where(joint == 0, -1.0, value)
    return np.where(joint >= 1, 1.0, np.clip(value, -1, 1))


def pairs_together(
    documents: DocumentCodes,
    *,
    config: PairConfig | None = None,
    directions: Float[Tensor, "d_sae d"] | None = None,
    seed: int = 0,
) -> Pairs:
    """Pairs of ends that are in the same documents beyond chance.

    Args:
        documents: One a source: passages of one text share its subject, and every pair would be
            found. `one_per_group` picks one of each.
        config: Which pairs are looked at.
        directions: Decoder directions, for their cosine.
        seed: Of the broken documents.

    Raises:
        DataError: Several documents are of one source, or no end is in enough of them.
    """
    config = config or PairConfig()
    if len(torch.unique(documents.groups)) < len(documents):
        raise DataError(
            f"The {len(documents)} documents are passages of "
            f"{len(torch.unique(documents.groups))} texts, which share subjects. Pass "
            "documents.one_per_group(), or read whole texts (unit='document')."
        )
    firing = np.asarray(documents.firing())
    kept = np.flatnonzero(
        (firing >= config.least_documents) & (firing <= config.most_share * len(documents))
    )
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} ends are in at least {config.least_documents} and at most "
            f"{config.most_share:.0%} of {len(documents)} documents; a pair needs two."
        )
    stratum = length_strata(documents.n_tokens, config.n_strata)
    unit = None if directions is None else torch.nn.functional.normalize(directions.float(), dim=1)
    matrix = _matrix(documents, kept)
    n_tested = len(kept) * (len(kept) - 1) // 2
    table = _search(matrix, stratum, config, n_tested)
    pairs = [_pair(documents, kept, row, unit) for row in zip(*table.found, strict=True)]
    moved = _moved(matrix, stratum, np.random.default_rng(seed))
    null = _search(moved, stratum, config, n_tested)
    far = [
        pair
        for pair in pairs
        if pair.latent != pair.other and (pair.cosine is None or pair.cosine <= config.most_cosine)
    ]
    return Pairs(
        found=tuple(sorted(far, key=lambda p: (-p.npmi, p.q, p.latent, p.other))),
        n_tested=n_tested,
        null_found=len(null.found[0]),
        null_npmi=null.largest,
    )


@dataclass(eq=False)
class _Table:
    """Columns j, k, both, n_j, n_k, expected, npmi and q of the pairs found; the largest NPMI."""

    found: tuple[NDArray[Any], ...]
    largest: float


def _matrix(documents: DocumentCodes, kept: NDArray[Any]) -> Any:
    """[document, kept end] of ones."""
    from scipy.sparse import csr_matrix

    parts = (np.ones(len(documents.ends)), documents.ends.numpy(), documents.offsets.numpy())
    whole = csr_matrix(parts, shape=(len(documents), documents.n_ends))
    return whole.tocsc()[:, kept].tocsr()


def _search(matrix: Any, stratum: Tensor, config: PairConfig, n_tested: int) -> _Table:
    """All pairs that Benjamini-Hochberg leaves, a block of columns at a time."""
    from scipy.sparse import csr_matrix

    n, width = matrix.shape
    layer = stratum.numpy()
    layers = csr_matrix((np.ones(n), (layer, np.arange(n))))
    per_layer = (layers @ matrix).toarray()
    sizes, counts = np.bincount(layer).astype(float), per_layer.sum(0)
    columns = matrix.T.tocsr()
    parts, largest = [], 0.0
    for start in range(0, width, config.at_once):
        both = (columns[start : start + config.at_once] @ matrix).tocoo()
        j, k, n_both = both.row + start, both.col, both.data
        kept = (j < k) & (n_both >= config.least_both)
        j, k, n_both = j[kept], k[kept], n_both[kept]
        expected = (per_layer[:, j] * per_layer[:, k] / sizes[:, None]).sum(0)
        most = np.minimum(per_layer[:, j], per_layer[:, k]).sum(0)
        p = binomial_bound(n_both, expected, most)
        value = npmi(n_both, counts[j], counts[k], n)
        largest = max(largest, float(value.max(initial=0.0)))
        likely = p <= config.q  # no adjusted value is below its own p
        parts.append([c[likely] for c in (j, k, n_both, counts[j], counts[k], expected, value, p)])
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    p = joined.pop()
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n_tested / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    told = q <= config.q
    return _Table(tuple(column[told] for column in (*joined, q)), largest)


def _moved(matrix: Any, stratum: Tensor, generator: np.random.Generator) -> Any:
    """Each column moved, within each stratum, around a random circle of its documents."""
    from scipy.sparse import csr_matrix

    n, width = matrix.shape
    layer = stratum.numpy()
    order = np.lexsort((generator.random(n), layer))  # a circle for each stratum
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    sizes = np.bincount(layer)
    starts = np.cumsum(sizes) - sizes
    row, column = matrix.nonzero()
    own = layer[row]
    step = generator.integers(0, sizes[:, None], size=(len(sizes), width))[own, column]
    place = starts[own] + (rank[row] - starts[own] + step) % sizes[own]
    return csr_matrix((np.ones(len(row)), (order[place], column)), shape=(n, width))


def _pair(
    documents: DocumentCodes, kept: NDArray[Any], row: tuple[Any, ...], unit: Tensor | None
) -> Pair:
    j, k, both, one, other, expected, value, q = row
    first, second = sorted(
        (*documents.latent_of(int(kept[int(i)])), float(count))
        for i, count in ((j, one), (k, other))
    )
    cosine = None
    if unit is not None:
        cosine = first[1] * second[1] * float(unit[first[0]] @ unit[second[0]])
    return Pair(
        latent=first[0],
        sign=first[1],
        other=second[0],
        other_sign=second[1],
        n_both=int(both),
        n_one=int(first[2]),
        n_other=int(second[2]),
        expected=float(expected),
        npmi=float(value),
        cosine=cosine,
        q=float(q),
    )
