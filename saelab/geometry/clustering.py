"""Which latents belong together? Spectral clustering by co-occurrence or by angle.

    W v = lambda D v,  D the row sums of the affinity W; k-means on the k leading eigenvectors

W is only ever multiplied with vectors, so a sparse affinity stays sparse.

Source: Shi and Malik 2000; angles 1 - arccos(cos) / pi as in Li et al. 2024.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.geometry.affinities import Affinity
from saelab.geometry.nulls import checked_directions

__all__ = ["angular_clusters", "spectral_clusters"]

MAX_ANGULAR = 16_384
"""Latents whose angles are held as one matrix: 1 GiB."""


def spectral_clusters(affinity: Affinity, n_clusters: int, seed: int = 0) -> Int[Tensor, " latent"]:
    """Cluster latents by the leading eigenvectors of their normalized affinity.

    Args:
        affinity: Symmetric and not negative.
        n_clusters: At least 2, fewer than latents.
        seed: Of the eigenvector start and of k-means.

    Returns:
        A cluster for each latent, numbered by size, the largest 0.

    Raises:
        DataError: A latent has no affinity with any other.
    """
    return _clusters(affinity.times, len(affinity), n_clusters, seed)


def angular_clusters(
    directions: Float[Tensor, "latent d"],
    n_clusters: int,
    *,
    signed: bool = False,
    seed: int = 0,
) -> Int[Tensor, " latent"]:
    """The same by the angle of directions, 1 - arccos(cos) / pi; of lines where `signed`.

    Raises:
        ConfigError: More latents than fit in memory as one matrix.
    """
    unit = checked_directions(directions, 3).cpu()
    if len(unit) > MAX_ANGULAR:
        raise ConfigError(
            f"{len(unit):,} latents make a matrix of angles of {len(unit) ** 2 * 4 / 2**30:.1f} "
            f"GiB. Pass {MAX_ANGULAR:,} of them at most."
        )
    cosines = (unit @ unit.T).clamp_(-1, 1)
    if signed:
        cosines.abs_()
    similar = cosines.arccos_().mul_(-(2 if signed else 1) / math.pi).add_(1)
    similar.fill_diagonal_(0)

    def times(vectors: np.ndarray) -> np.ndarray:
        # The table is in float32, which is plenty for angles and half the memory.
        return (similar @ torch.from_numpy(np.ascontiguousarray(vectors)).float()).double().numpy()

    return _clusters(times, len(unit), n_clusters, seed)


def _clusters(
    times: Callable[[np.ndarray], np.ndarray], n: int, n_clusters: int, seed: int
) -> Tensor:
    from scipy.sparse.linalg import LinearOperator, eigsh
    from sklearn.cluster import KMeans

    if not 2 <= n_clusters <= n - 2:
        raise ConfigError(f"n_clusters={n_clusters} of {n} latents: it must be 2 to {n - 2}.")
    degree = times(np.ones(n))
    if not np.all(degree > 0):
        raise DataError(
            f"{int((degree <= 0).sum())} of {n} latents have no affinity with any other. Leave "
            "them out."
        )
    root = np.sqrt(degree)

    def normalized(vectors: np.ndarray) -> np.ndarray:
        vectors = vectors.reshape(n, -1)
        return times(vectors / root[:, None]) / root[:, None]

    operator = LinearOperator((n, n), matvec=normalized, matmat=normalized, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(seed).standard_normal(n)
    tolerance: Any = 1e-6  # typed as int by mistake
    _, vectors = eigsh(operator, k=n_clusters, which="LA", v0=start, tol=tolerance)
    means = KMeans(n_clusters, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
    return _by_size(torch.from_numpy(means.fit_predict(vectors / root[:, None])).long())


def _by_size(labels: Tensor) -> Tensor:
    counts = torch.bincount(labels)
    rank = torch.empty_like(counts)
    rank[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts))
    return rank[labels]
