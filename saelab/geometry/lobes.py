"""Do latents that occur together lie together? Lobes of co-occurrence against decoder geometry.

    1. spectral clustering of latents by co-occurrence (saelab.geometry.affinities), and again by
       the angle of their decoder directions
    2. adjusted mutual information of the two clusterings; 0 is chance, 1 is equality
    3. logistic regression of the lobe on the direction, balanced accuracy on held-out latents

A test with thousands of latents has a z-score in the hundreds for an effect that few would see.
Read the value and its excess; z only says that it is not chance.

Source: Li et al. 2024, "The geometry of concepts", whose code has, at two clusters of a Gemma 2
dictionary, an AMI of 0.06 that is 954 standard deviations above its null.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError, ShapeError
from saelab.geometry.affinities import AffinityKind, ChunkCounts, affinity
from saelab.geometry.clustering import angular_clusters, spectral_clusters
from saelab.geometry.nulls import AgainstNull, checked_directions

__all__ = [
    "LobeTest",
    "agreement",
    "dominant_lobes",
    "lobe_prediction",
    "spatial_modularity",
]


def agreement(
    one: Int[Tensor, " latent"],
    other: Int[Tensor, " latent"],
    *,
    n_null: int = 100,
    seed: int = 0,
) -> AgainstNull:
    """Adjusted mutual information of two clusterings; null: labels of one shuffled.

        AMI = (MI - E[MI]) / (mean of the two entropies - E[MI])

    Shuffling keeps the cluster sizes and so the expectation, which is computed once.

    Raises:
        ShapeError: They are not of the same latents.
        DataError: One of them has a single cluster, which nothing can agree with.

    Source: Vinh, Epps and Bailey 2010.
    """
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    if len(one) != len(other):
        raise ShapeError(f"Clusterings of {len(one)} and of {len(other)} latents.")
    a = torch.unique(one.cpu(), return_inverse=True)[1]
    b = torch.unique(other.cpu(), return_inverse=True)[1]
    n_a, n_b, n = int(a.max()) + 1, int(b.max()) + 1, len(a)
    if min(n_a, n_b) < 2:
        raise DataError("A clustering of one cluster agrees with nothing.")
    table = contingency_matrix(a.numpy(), b.numpy(), sparse=True).astype(np.int64)
    expected = float(expected_mutual_information(table, n))
    middle = (_entropy(torch.bincount(a)) + _entropy(torch.bincount(b))) / 2

    def adjusted(labels: Tensor) -> float:
        both = torch.bincount(a * n_b + labels, minlength=n_a * n_b)
        mutual = 2 * middle - _entropy(both)
        return (mutual - expected) / (middle - expected)

    generator = torch.Generator().manual_seed(seed)
    draws = [adjusted(b[torch.randperm(n, generator=generator)]) for _ in range(n_null)]
    return AgainstNull(value=adjusted(b), draws=tuple(draws), null="labels shuffled")


def _entropy(counts: Tensor) -> float:
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log()).sum())


def lobe_prediction(
    directions: Float[Tensor, "latent d"],
    lobes: Int[Tensor, " latent"],
    *,
    held_out: float = 0.2,
    n_null: int = 20,
    seed: int = 0,
) -> AgainstNull:
    """Balanced accuracy of telling a latent's lobe from its direction, by logistic regression.

    Mean over lobes of the share of held-out latents that are recognised: 1 / lobes by chance,
    however unequal the lobes. Null: lobes shuffled, the same division.

    Args:
        directions: Decoder rows; those of a signed dictionary `oriented` first.
        lobes: Of each.
        held_out: Share of every lobe that is measured on.
        n_null: Fits with shuffled lobes.
        seed: Of the division and the shuffles.

    Raises:
        DataError: A lobe has fewer than five latents.
    """
    unit = checked_directions(directions, 10).cpu().numpy()
    x = unit * math.sqrt(unit.shape[1])
    y = torch.unique(lobes.cpu(), return_inverse=True)[1].numpy()
    if len(x) != len(y):
        raise ShapeError(f"{len(x)} directions but {len(y)} lobes.")
    sizes = np.bincount(y)
    if len(sizes) < 2 or sizes.min() < 5:
        raise DataError(
            f"Lobes of {', '.join(map(str, sorted(sizes)[:5]))} latents and up: at least two, of "
            "five each, are needed. Ask for fewer lobes, or leave the small ones out."
        )
    rng = np.random.default_rng(seed)
    test = np.zeros(len(y), dtype=bool)
    for lobe in range(len(sizes)):
        members = rng.permutation(np.flatnonzero(y == lobe))
        test[members[: max(1, round(held_out * len(members)))]] = True

    def accuracy(labels: np.ndarray) -> float:
        return _balanced_accuracy(x[~test], labels[~test], x[test], labels[test])

    draws = []
    for _ in range(n_null):
        shuffled = y.copy()
        # Within either side, so that every lobe is in both as it was.
        for side in (test, ~test):
            shuffled[side] = rng.permutation(y[side])
        draws.append(accuracy(shuffled))
    return AgainstNull(value=accuracy(y), draws=tuple(draws), null="lobes shuffled")


def _balanced_accuracy(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> float:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    with warnings.catch_warnings():
        # Shuffled labels need not converge, and what is measured is on other latents anyway.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=1000, class_weight="balanced", tol=1e-3).fit(x, y)
    return float(balanced_accuracy_score(y_test, fitted.predict(x_test)))


def dominant_lobes(counts: ChunkCounts, lobes: Int[Tensor, " latent"]) -> Int[Tensor, " chunk"]:
    """For each chunk, the lobe with the largest share of its latents active there.

    Returns:
        A lobe; -1 for a chunk where no latent occurs.
    """
    labels = lobes.cpu().numpy()
    member = np.eye(int(labels.max()) + 1)[labels]
    shares = np.asarray(counts.occurs @ member) / member.sum(0)
    best = np.where(shares.sum(1) > 0, shares.argmax(1), -1)
    return torch.from_numpy(best)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LobeTest:
    """Whether co-occurrence follows geometry, at one number of lobes."""

    kind: str
    """Affinity of co-occurrence."""
    n_lobes: int
    """Clusters asked for, of either kind."""
    latents: Int[Tensor, " latent"]
    """Which latents of the dictionary were clustered."""
    lobes: Int[Tensor, " latent"]
    """Their lobe by co-occurrence, the largest 0."""
    regions: Int[Tensor, " latent"]
    """Their cluster by angle."""
    ami: AgainstNull
    """Adjusted mutual information of the two; null: labels shuffled."""
    ami_random: AgainstNull
    """The same value; null: random directions in place of the decoder's."""
    accuracy: AgainstNull | None
    """Balanced accuracy of the lobe by logistic regression; None with a lobe of under five."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without the labels."""
        return {
            "kind": self.kind,
            "n_lobes": self.n_lobes,
            "n_latents": len(self.latents),
            "sizes": torch.bincount(self.lobes).tolist(),
            "ami": self.ami.to_json(),
            "ami_random": self.ami_random.to_json(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
        }

    def __str__(self) -> str:
        """Some lines."""
        sizes = ", ".join(map(str, torch.bincount(self.lobes).tolist()[:8]))
        lines = [
            f"{self.n_lobes} lobes of {len(self.latents):,} latents by {self.kind}; sizes {sizes}",
            f"  AMI with geometry {self.ami}",
            f"  AMI with geometry {self.ami_random}",
        ]
        if self.accuracy is not None:
            lines.append(f"  balanced accuracy from directions {self.accuracy}")
        return "\n".join(lines)


def spatial_modularity(
    counts: ChunkCounts,
    directions: Float[Tensor, "latent d"],
    n_lobes: int = 2,
    *,
    kind: AffinityKind = "phi",
    signed: bool = False,
    least_chunks: int = 5,
    most_share: float = 0.5,
    n_null: int = 100,
    n_fits: int = 10,
    n_random: int = 3,
    seed: int = 0,
) -> LobeTest:
    """Cluster by co-occurrence and by geometry, and compare.

    Args:
        counts: Of all latents of the dictionary.
        directions: Decoder rows; those of a signed dictionary `oriented` first.
        n_lobes: Clusters of either kind.
        kind: Affinity of co-occurrence.
        signed: Compare lines instead of arrows.
        least_chunks: Latents of fewer chunks are left out: their counts are chance.
        most_share: Latents of a larger share of the chunks are left out: they go with everything.
        n_null: Shuffles for the AMI.
        n_fits: Logistic regressions with shuffled lobes.
        n_random: Clusterings of random directions.
        seed: Of everything.
    """
    if counts.occurs.shape[1] != len(directions):
        raise ShapeError(
            f"Counts of {counts.occurs.shape[1]} latents but {len(directions)} directions."
        )
    kept = counts.between(least_chunks, most_share)
    if len(kept) < 2 * n_lobes:
        raise DataError(
            f"{len(kept)} latents occur in {least_chunks} chunks to {most_share:.0%} of them; "
            f"{n_lobes} lobes need more. Use more text, or another range."
        )
    latents = torch.from_numpy(kept)
    unit = checked_directions(directions[latents])
    lobes = spectral_clusters(affinity(counts.of_latents(kept), kind), n_lobes, seed)
    regions = angular_clusters(unit, n_lobes, signed=signed, seed=seed)
    ami = agreement(lobes, regions, n_null=n_null, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(n_random):
        noise = torch.randn(unit.shape, generator=generator)
        random = angular_clusters(noise, n_lobes, signed=signed, seed=seed)
        draws.append(agreement(lobes, random, n_null=1).value)
    accuracy = None
    if int(torch.bincount(lobes).min()) >= 5:
        accuracy = lobe_prediction(unit, lobes, n_null=n_fits, seed=seed)
    return LobeTest(
        kind=kind,
        n_lobes=n_lobes,
        latents=latents,
        lobes=lobes,
        regions=regions,
        ami=ami,
        ami_random=AgainstNull(value=ami.value, draws=tuple(draws), null="random directions"),
        accuracy=accuracy,
    )
