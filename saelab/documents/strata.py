"""How do two sets of documents differ within strata of like length? Counts, effects and scores.

Nothing here decides what is a discovery; `comparing` does.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.documents.chance import grouped_p
from saelab.documents.codes import DocumentCodes
from saelab.errors import DataError

__all__ = ["StratumCounts", "effects", "grouped_scores_p", "length_strata"]


def length_strata(n_tokens: Int[Tensor, " document"], n_strata: int) -> Int[Tensor, " document"]:
    """The stratum of each document, by quantiles of length; equal lengths are never parted.

    >>> length_strata(torch.tensor([5, 5, 5, 9]), 2).tolist()
    [0, 0, 0, 1]
    """
    levels = torch.linspace(0, 1, n_strata + 1, dtype=torch.float64)[1:-1]
    edges = torch.quantile(n_tokens.double(), levels) if len(levels) else levels
    _, stratum = torch.unique(
        torch.bucketize(n_tokens.double(), edges.unique()), return_inverse=True
    )
    return stratum


@final
@dataclass(eq=False)
class StratumCounts:
    """Documents by stratum, only strata with both sets."""

    hits: NDArray[Any]
    """[stratum, end] documents of A in which it fires."""
    totals: NDArray[Any]
    """[stratum, end] documents in which it fires."""
    in_a: NDArray[Any]
    """[stratum] documents of A."""
    sizes: NDArray[Any]
    """[stratum] documents."""
    used: Bool[Tensor, " document"]
    """Which documents are in these strata."""

    @classmethod
    def of(
        cls,
        documents: DocumentCodes,
        in_a: Bool[Tensor, " document"],
        stratum: Int[Tensor, " document"],
    ) -> "StratumCounts":
        """Count; refuses sets that share no stratum."""
        n, ends = int(stratum.max()) + 1, documents.n_ends
        of_pair = documents.documents
        key = stratum[of_pair] * ends + documents.ends.long()
        totals = torch.bincount(key, minlength=n * ends).reshape(n, ends)
        hits = torch.bincount(key[in_a[of_pair]], minlength=n * ends).reshape(n, ends)
        sizes = torch.bincount(stratum, minlength=n)
        a = torch.bincount(stratum[in_a], minlength=n)
        both = (a > 0) & (a < sizes)
        if not bool(both.any()):
            raise DataError(
                "The two sets have no document of like length, so length and content cannot be "
                "told apart. Read both with the same unit='passage' and length."
            )
        return cls(
            hits[both].numpy(), totals[both].numpy(), a[both].numpy(), sizes[both].numpy(),
            both[stratum],
        )  # fmt: skip


def effects(
    documents: DocumentCodes, in_a: Tensor, counts: StratumCounts
) -> dict[str, NDArray[Any]]:
    """How large each difference is; none of it is a test."""
    n, n_a = counts.sizes[:, None].astype(float), counts.in_a[:, None].astype(float)
    n_b, a = n - n_a, counts.hits.astype(float)
    b = counts.totals - a
    weight = (n_a * n_b / n).sum(0)
    up = ((a + 0.5) * (n_b - b + 0.5) / (n + 2)).sum(0)
    down = ((b + 0.5) * (n_a - a + 0.5) / (n + 2)).sum(0)
    found = {
        "difference": ((a * n_b - b * n_a) / n).sum(0) / weight,
        "odds_ratio": up / down,
    }
    of_pair, ends = documents.documents, documents.ends.long()
    for name, side in (("a", in_a), ("b", ~in_a)):
        chosen = side[of_pair]
        fires = torch.bincount(ends[chosen], minlength=documents.n_ends)
        tokens = torch.zeros(documents.n_ends, dtype=torch.float64)
        tokens.index_add_(0, ends[chosen], documents.counts[chosen].double())
        found[f"share_{name}"] = (fires / int(side.sum())).numpy()
        found[f"tokens_{name}"] = (tokens / int(documents.n_tokens[side].sum())).numpy()
    return found


def grouped_scores_p(
    documents: DocumentCodes, in_a: Tensor, stratum: Tensor, used: Tensor, tested: NDArray[Any]
) -> NDArray[Any]:
    """p values with whole sources as units, some columns at a time."""
    from scipy.sparse import csr_matrix

    n = len(documents)
    groups, number = torch.unique(documents.groups[used], return_inverse=True)
    group = torch.zeros(n, dtype=torch.long)
    group[used] = number
    pooled = documents.pooled("share")
    parts = (np.ones(len(pooled.values)), pooled.indices.numpy(), pooled.offsets.numpy())
    fires = csr_matrix(parts, shape=(n, documents.n_ends))[used.numpy()].tocsc()
    side, layer = in_a[used].double(), stratum[used]
    _, layer = torch.unique(layer, return_inverse=True)
    n_strata = int(layer.max()) + 1
    sizes = torch.bincount(layer).double()
    weight = side - (torch.zeros_like(sizes).index_add_(0, layer, side) / sizes)[layer]
    rows, where = np.arange(len(side)), number.numpy()
    to_group = csr_matrix((weight.numpy(), (where, rows)), shape=(len(groups), len(side)))
    to_stratum = csr_matrix(
        (1 / sizes[layer].numpy(), (layer.numpy(), rows)), shape=(n_strata, len(side))
    )
    by_stratum: Any = to_group @ csr_matrix(np.eye(n_strata)[layer.numpy()])
    spread = by_stratum.toarray()
    columns = np.flatnonzero(tested)
    step = max(1, 4_000_000 // len(groups))
    found = []
    for start in range(0, len(columns), step):
        some = fires[:, columns[start : start + step]]
        mine: Any = to_group @ some
        usual: Any = to_stratum @ some
        scores = mine.toarray() - spread @ usual.toarray()
        found.append(grouped_p(scores, len(groups), n_strata)[1])
    return np.concatenate(found) if found else np.empty(0)
