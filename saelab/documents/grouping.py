"""Which kinds of documents are there, along the concepts one asks about and no others?

Only the columns of chosen ends are looked at, so that texts about one subject in different tones
can be grouped by tone. Rows are scaled to length 1 (what matters is which concepts, not how many)
and divided by k-means; a document with none of the concepts is in no cluster.

k-means always finds clusters. Whether there are any says the silhouette

    s = (distance to the nearest other cluster - distance within) / the larger of the two

beside that of documents whose columns were shuffled one by one: the same concepts, each as frequent
as before, and none together with another on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.documents.codes import DocumentCodes, DocumentPooling
from saelab.errors import ConfigError, DataError
from saelab.geometry.nulls import AgainstNull

__all__ = ["DocumentClusters", "cluster_documents"]

MOST_COMPARED = 2000
"""Documents drawn for a silhouette, whose cost grows with their square."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DocumentClusters:
    """Documents by the concepts they hold."""

    labels: Int[Tensor, " document"]
    """Cluster of each document, the largest 0; -1 where none of the concepts is."""
    sizes: tuple[int, ...]
    """Documents of each cluster."""
    silhouette: AgainstNull
    """From -1 to 1: how far apart the clusters are, and what shuffled columns give."""
    profiles: tuple[tuple[tuple[int, int, float], ...], ...]
    """For each cluster (latent, sign, mean less that of all clustered documents) of every chosen
    end, the largest first: what makes it different."""


def cluster_documents(
    documents: DocumentCodes,
    ends: Sequence[tuple[int, int]],
    n_clusters: int,
    *,
    how: DocumentPooling = "share",
    draws: int = 3,
    seed: int = 0,
) -> DocumentClusters:
    """Group documents along some ends only.

    Args:
        documents: All of them; those without any of the ends are left out.
        ends: (latent, sign) of each concept.
        n_clusters: How many kinds.
        how: Pooling. Columns are scaled to the same mean square, so loud concepts do not decide.
        draws: Of the null.
        seed: Of k-means, of the null and of the documents drawn for silhouettes.

    Raises:
        ConfigError: Fewer than two ends, one named twice, or fewer than two clusters or draws of 1.
        DataError: Fewer documents hold a concept than there are clusters.
    """
    chosen = [documents.end(*one) for one in ends]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or n_clusters < 2 or draws < 1:
        raise ConfigError(
            f"{len(set(chosen))} different ends of {len(chosen)}, {n_clusters} clusters, {draws} "
            "draws: clustering needs two ends, each once, two clusters and a draw."
        )
    x = _columns(documents, chosen, how)
    held = np.flatnonzero(x.any(1))
    if len(held) <= n_clusters:
        raise DataError(
            f"{len(held)} documents hold one of the {len(chosen)} ends, too few for {n_clusters} "
            "clusters. Choose more frequent ends."
        )
    x = x[held]
    generator = np.random.default_rng(seed)
    found = _divided(x, n_clusters, seed)
    value = _silhouette(x, found, generator)
    null = []
    for _ in range(draws):
        shuffled = np.stack([generator.permutation(column) for column in x.T], 1)
        shuffled = shuffled[shuffled.any(1)]
        null.append(_silhouette(shuffled, _divided(shuffled, n_clusters, seed), generator))
    labels = torch.full((len(documents),), -1)
    labels[torch.from_numpy(held)] = torch.from_numpy(found).long()
    return DocumentClusters(
        labels=labels,
        sizes=tuple(np.bincount(found, minlength=n_clusters).tolist()),
        silhouette=AgainstNull(value=value, draws=tuple(null), null="columns shuffled"),
        profiles=tuple(_profile(x, found == one, ends) for one in range(n_clusters)),
    )


def _columns(documents: DocumentCodes, chosen: Sequence[int], how: DocumentPooling) -> NDArray[Any]:
    """[document, chosen end], every column of mean square 1 unless it is empty."""
    pooled = documents.pooled(how)
    place = torch.full((documents.n_ends,), -1)
    place[torch.tensor(chosen)] = torch.arange(len(chosen))
    column = place[pooled.indices]
    kept = column >= 0
    x = torch.zeros(len(documents), len(chosen))
    x[pooled.tokens[kept], column[kept]] = pooled.values[kept]
    size = x.square().mean(0).sqrt()
    return (x / torch.where(size > 0, size, 1.0)).double().numpy()


def _unit(x: NDArray[Any]) -> NDArray[Any]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _divided(x: NDArray[Any], n_clusters: int, seed: int) -> NDArray[Any]:
    """Clusters by size."""
    from sklearn.cluster import KMeans

    means = KMeans(n_clusters, n_init=5, random_state=seed)  # pyright: ignore[reportArgumentType]
    found = means.fit_predict(_unit(x))
    sizes = np.bincount(found, minlength=n_clusters)
    rank = np.empty(n_clusters, dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(n_clusters)
    return rank[found]


def _silhouette(x: NDArray[Any], found: NDArray[Any], generator: np.random.Generator) -> float:
    """Mean silhouette of at most MOST_COMPARED documents; 0 if they are all of one cluster."""
    from sklearn.metrics import silhouette_score

    if len(x) > MOST_COMPARED:
        drawn = generator.choice(len(x), MOST_COMPARED, replace=False)
        x, found = x[drawn], found[drawn]
    if not 2 <= len(np.unique(found)) < len(found):
        return 0.0
    return float(silhouette_score(_unit(x), found))


def _profile(
    x: NDArray[Any], inside: NDArray[Any], ends: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int, float], ...]:
    excess = x[inside].mean(0) - x.mean(0) if inside.any() else np.zeros(x.shape[1])
    order = np.argsort(-excess, kind="stable")
    return tuple((*ends[i], float(excess[i])) for i in order)
