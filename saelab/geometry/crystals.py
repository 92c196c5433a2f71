"""Do pairs of one relation differ by one vector? Silhouettes and parallelograms.

king - man and queen - woman are nearly parallel if a relation is a direction. Two ways to ask,
each with what chance gives; function_vectors and parallels hold two more:

    separate_relations   silhouette of differences by relation: raw, by principal components, and
                         after shrinkage discriminant analysis, on pairs it was not fitted to
    parallel_differences cosine and closing gap of two differences of one relation

Discriminant analysis finds directions along which noise separates: with fewer pairs than
dimensions, pure noise looks separated on the pairs it was fitted to and not on others. Only the
held-out number means anything. Two differences that share a word have a cosine of 1/2 by that
alone: say which words they are of, and such pairs are not compared.

Source: Li et al. 2024, "The geometry of concepts: sparse autoencoder feature structure". Its code
measures the silhouette on the fitted pairs.
"""

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.geometry.nulls import AgainstNull, check_finite

__all__ = [
    "ParallelDifferences",
    "RelationSeparation",
    "parallel_differences",
    "separate_relations",
]

TRAPEZOID = 1.25
"""Ratio of lengths from which on two parallel differences are called a trapezoid."""


@final
@dataclass(frozen=True, kw_only=True)
class RelationSeparation:
    """Silhouettes by relation, -1 to 1; all but `in_sample` on the held-out pairs."""

    n_pairs: int
    """Pairs of words in all."""
    n_relations: int
    """Relations they belong to."""
    raw: float
    """Of the differences as they are."""
    principal: float
    """Of as many principal components, fitted on the other pairs."""
    held_out: AgainstNull
    """After shrinkage discriminant analysis of the other pairs; null: relations shuffled."""
    in_sample: float
    """On the pairs the analysis was fitted to: optimistic, shown so that it is not mistaken."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "held_out": self.held_out.to_json()}

    def __str__(self) -> str:
        """Four lines."""
        return "\n".join(
            [
                f"{self.n_pairs} pairs of {self.n_relations} relations, silhouette by relation",
                f"  raw {self.raw:.3f}, principal components {self.principal:.3f}",
                f"  discriminant analysis, held-out pairs {self.held_out}",
                f"  on the pairs it was fitted to {self.in_sample:.3f} (do not read)",
            ]
        )


def separate_relations(
    differences: Float[Tensor, "pair d"],
    relations: Int[Tensor, " pair"],
    *,
    groups: Int[Tensor, " pair"] | None = None,
    held_out: float = 0.5,
    n_components: int | None = None,
    n_null: int = 10,
    seed: int = 0,
) -> RelationSeparation:
    """How well linear discriminant analysis separates relations it has not seen the pairs of.

    The within-relation covariance is shrunk towards a multiple of the identity as by Ledoit and
    Wolf: without that it cannot be inverted where there are fewer pairs than dimensions.

    Args:
        differences: h(b) - h(a) for each pair.
        relations: Which relation each belongs to.
        groups: Pairs that must not be divided, for instance because they share a word.
        held_out: Share of each relation's pairs (or groups) to measure on.
        n_components: Discriminant directions kept; one less than the relations by default.
        n_null: Fits with shuffled relations.
        seed: Of the division and the shuffles.

    Raises:
        ConfigError: Fewer than two relations, or a setting out of range.
        DataError: A relation has fewer than two pairs on one side of the division.

    Source: Li et al. 2024, with held-out pairs and shrinkage added.
    """
    names, labels = torch.unique(relations, return_inverse=True)
    most = len(names) - 1
    n_components = most if n_components is None else n_components
    if not 1 <= n_components <= most:
        raise ConfigError(
            f"n_components={n_components} with {len(names)} relations: discriminant analysis has "
            f"1 to {most} directions."
        )
    if not 0 < held_out < 1 or n_null < 1:
        raise ConfigError(f"held_out={held_out} must be in (0, 1) and n_null={n_null} at least 1.")
    check_finite(differences)
    x, y = differences.detach().cpu().double().numpy(), labels.cpu().numpy()
    rng = np.random.default_rng(seed)
    test = _divided(y, None if groups is None else groups.cpu().numpy(), held_out, rng)
    fitted = _discriminant(x[~test], y[~test], n_components)
    center = x[~test].mean(0)
    axes = np.linalg.svd(x[~test] - center, full_matrices=False)[2][:n_components]
    draws = []
    for _ in range(n_null):
        shuffled = y.copy()
        for side in (test, ~test):
            shuffled[side] = rng.permutation(y[side])
        other = _discriminant(x[~test], shuffled[~test], n_components)
        draws.append(_silhouette(x[test] @ other, shuffled[test]))
    return RelationSeparation(
        n_pairs=len(x),
        n_relations=len(names),
        raw=_silhouette(x[test], y[test]),
        principal=_silhouette((x[test] - center) @ axes.T, y[test]),
        held_out=AgainstNull(
            value=_silhouette(x[test] @ fitted, y[test]),
            draws=tuple(draws),
            null="relations shuffled",
        ),
        in_sample=_silhouette(x[~test] @ fitted, y[~test]),
    )


def _divided(
    y: np.ndarray, groups: np.ndarray | None, held_out: float, rng: np.random.Generator
) -> np.ndarray:
    """Which pairs are held out: a share of each relation's groups."""
    units = np.arange(len(y)) if groups is None else groups
    test, settled = np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        # A group with pairs of several relations is where the first of them put it.
        some = rng.permutation(np.unique(units[(y == label) & ~settled]))
        test |= np.isin(units, some[: round(held_out * len(some))])
        settled |= np.isin(units, some)
    for side, name in ((test, "held-out"), (~test, "fitted")):
        fewest = np.bincount(y[side], minlength=y.max() + 1).min()
        if fewest < 2:
            raise DataError(
                f"A relation has {fewest} {name} pairs; at least 2 are needed on either side. "
                "Collect more pairs, or change held_out or the groups."
            )
    return test


def _discriminant(x: np.ndarray, y: np.ndarray, n_components: int) -> np.ndarray:
    """Directions of largest between-relation variance where the shrunk within-variance is 1."""
    from sklearn.covariance import ledoit_wolf

    means = np.stack([x[y == label].mean(0) for label in np.unique(y)])
    # One covariance of all relations together: of a relation's few pairs, shrinking would leave
    # little but the identity, and with it the distractors.
    within, _ = ledoit_wolf(x - means[y], assume_centered=True)
    values, axes = np.linalg.eigh(within)
    # Differences that do not vary at all within relations would otherwise be divided by zero.
    whiten = axes / np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    centered = (means - means.mean(0)) * np.sqrt(np.bincount(y))[:, None]
    return whiten @ np.linalg.svd(centered @ whiten, full_matrices=False)[2][:n_components].T


def _silhouette(x: np.ndarray, y: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(x, y))


@final
@dataclass(frozen=True, kw_only=True)
class ParallelDifferences:
    """Two differences of one relation, over all pairs of pairs that share no word."""

    n_quadruples: int
    """Pairs of pairs compared."""
    cosine: AgainstNull
    """Mean of cos(b - a, d - c), -1 to 1; null: relations shuffled."""
    gap: float
    """Mean of |(b - a) - (d - c)| / mean length of the two; sqrt(2) for unrelated differences."""
    parallelograms: float
    """Share with cosine of at least `bar` and lengths within a factor of 1.25."""
    trapezoids: float
    """Share with cosine of at least `bar` and lengths further apart."""
    bar: float
    """Cosine from which on two differences count as parallel."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "cosine": self.cosine.to_json()}

    def __str__(self) -> str:
        """Two lines."""
        return (
            f"{self.n_quadruples:,} quadruples, mean cosine {self.cosine}\n"
            f"  closing gap {self.gap:.3f}; cosine >= {self.bar}: parallelograms "
            f"{self.parallelograms:.1%}, trapezoids {self.trapezoids:.1%}"
        )


def parallel_differences(
    sources: Float[Tensor, "pair d"],
    targets: Float[Tensor, "pair d"],
    relations: Int[Tensor, " pair"],
    *,
    words: Int[Tensor, "pair two"] | None = None,
    bar: float = 0.8,
    n_null: int = 100,
    seed: int = 0,
) -> ParallelDifferences:
    """How parallel the differences of one relation are.

    Args:
        sources: h(a) of each pair.
        targets: h(b).
        relations: Which relation each pair belongs to.
        words: Ids of a and b, so that quadruples that share a word are left out.
        bar: Cosine from which on two differences count as parallel.
        n_null: Shuffles of the relations.
        seed: Of the shuffles.

    Raises:
        DataError: No relation has two pairs that share no word.

    >>> a = torch.eye(4)[:2]
    >>> round(parallel_differences(a, a + 1, torch.tensor([0, 0])).cosine.value, 6)
    1.0
    """
    differences = targets.detach().double() - sources.detach().double()
    check_finite(differences)
    lengths = differences.norm(dim=1)
    if not bool((lengths > 0).all()):
        raise DataError("A pair has the same activation twice, so their difference is zero.")
    n = len(differences)
    first, second = torch.triu_indices(n, n, 1)
    if words is not None:
        met = (words[first][:, :, None] == words[second][:, None, :]).flatten(1).any(1)
        first, second = first[~met], second[~met]
    unit = differences / lengths[:, None]
    cosines = (unit @ unit.T)[first, second]
    same = relations[first] == relations[second]
    if not bool(same.any()):
        raise DataError("No relation has two pairs that share no word: nothing to compare.")
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(n_null):
        shuffled = relations[torch.randperm(n, generator=generator)]
        draws.append(float(cosines[shuffled[first] == shuffled[second]].mean()))
    cosine = cosines[same]
    one, other = lengths[first[same]], lengths[second[same]]
    gaps = (one.square() + other.square() - 2 * one * other * cosine).clamp_min(0).sqrt()
    unequal = torch.maximum(one, other) > TRAPEZOID * torch.minimum(one, other)
    return ParallelDifferences(
        n_quadruples=int(same.sum()),
        cosine=AgainstNull(
            value=float(cosine.mean()), draws=tuple(draws), null="relations shuffled"
        ),
        gap=float((2 * gaps / (one + other)).mean()),
        parallelograms=float(((cosine >= bar) & ~unequal).double().mean()),
        trapezoids=float(((cosine >= bar) & unequal).double().mean()),
        bar=bar,
    )
