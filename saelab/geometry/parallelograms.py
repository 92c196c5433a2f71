"""Which four latents come nearest to a parallelogram, and would four of a Gaussian cloud?

For differences d_b - d_a and d_d - d_c of neighboring directions that share no latent,

    cosine  of the two differences: 1 is parallel
    gap     |(d_b - d_a) - (d_d - d_c)| / mean length of the two: 0 closes, sqrt(2) is unrelated

A dictionary of thousands of latents has millions of such quadruples, and the best of millions is
good in noise too. So the whole distribution of each difference's best partner stands beside that
of a Gaussian cloud of the same covariance, and the best four beside its best four.

Source: Li et al. 2024, "The geometry of concepts", for the parallelograms.
"""

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.geometry.clouds import matched_gaussian
from saelab.geometry.nulls import AgainstNull, checked_directions
from saelab.geometry.parallels import difference_cosines, neighbor_pairs

__all__ = ["Parallelogram", "Parallelograms", "parallelograms"]

N_BINS = 50
_LOOKED_AT = 50_000
"""Quadruples that are looked at for the best ones, those of the largest |cosine|."""


@final
@dataclass(frozen=True, kw_only=True)
class Parallelogram:
    """Four latents: from a to b as from c to d."""

    corners: tuple[int, int, int, int]
    """a, b, c, d, as rows of the directions that were given."""
    cosine: float
    """Of d_b - d_a and d_d - d_c, 0 to 1."""
    gap: float
    """Length of the difference of the two differences over their mean length, 0 to 2."""
    places: tuple[tuple[float, float], ...]
    """Of a, b, c and d in the plane that fits the four best, turned so that b - a + d - c points
    to the right."""
    plane: float
    """Share of their squared spread that lies in that plane, 0 to 1."""


@final
@dataclass(frozen=True, kw_only=True)
class Parallelograms:
    """The best quadruples, and how good the best partner of every difference is."""

    n_differences: int
    """Differences of neighbors that were looked at."""
    best: tuple[Parallelogram, ...]
    """The largest cosines, the first one first; no latent is in two of them."""
    largest: AgainstNull
    """The largest cosine; null: the largest of Gaussian clouds of the same covariance."""
    typical: AgainstNull
    """Mean over differences of the largest |cosine| with another; the same null."""
    counts: tuple[int, ...]
    """Differences per equal bin, from 0 to 1, of their largest |cosine| with another."""
    null_counts: tuple[float, ...]
    """The same, mean of the null's draws."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        nulls = {"largest": self.largest.to_json(), "typical": self.typical.to_json()}
        return {**asdict(self), **nulls}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Parallelograms":
        """From what `to_json` gave."""
        best = tuple(
            Parallelogram(
                corners=tuple(one["corners"]),
                cosine=float(one["cosine"]),
                gap=float(one["gap"]),
                places=tuple((float(x), float(y)) for x, y in one["places"]),
                plane=float(one["plane"]),
            )
            for one in value["best"]
        )
        return cls(
            n_differences=int(value["n_differences"]),
            best=best,
            largest=AgainstNull.from_json(value["largest"]),
            typical=AgainstNull.from_json(value["typical"]),
            counts=tuple(map(int, value["counts"])),
            null_counts=tuple(map(float, value["null_counts"])),
        )

    def __str__(self) -> str:
        """Two lines."""
        return (
            f"{self.n_differences:,} differences; largest |cosine| of two {self.largest}\n"
            f"  of each with its best partner, mean {self.typical}"
        )


def parallelograms(
    directions: Float[Tensor, "latent d"],
    *,
    n_neighbors: int = 3,
    max_differences: int = 4000,
    n_best: int = 24,
    n_null: int = 3,
    seed: int = 0,
) -> Parallelograms:
    """Look for the four latents that come nearest to a parallelogram.

    Args:
        directions: Decoder rows; those of a signed dictionary `oriented` first.
        n_neighbors: Neighbors of each latent that make a difference.
        max_differences: More than this are thinned out at random; work grows with its square.
        n_best: Quadruples to keep.
        n_null: Gaussian clouds.
        seed: Of the thinning and the clouds.

    Raises:
        ConfigError: A setting is below 1.

    >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) @ torch.eye(2, 3)
    >>> found = parallelograms(corners + torch.tensor([0.0, 0.0, 9.0]), n_neighbors=1, n_null=1)
    >>> found.best[0].cosine > 0.99
    True
    """
    if min(n_neighbors, n_best, n_null) < 1:
        raise ConfigError(
            f"n_neighbors={n_neighbors}, n_best={n_best} and n_null={n_null} must be at least 1."
        )
    unit = checked_directions(directions, n_neighbors + 2).cpu()
    generator = torch.Generator().manual_seed(seed)
    pairs = neighbor_pairs(unit, n_neighbors, max_differences, generator)
    cosines = difference_cosines(unit, pairs)
    partner = cosines.abs().amax(1)
    nulls = []
    for _ in range(n_null):
        cloud = checked_directions(matched_gaussian(unit, len(unit), generator))
        others = neighbor_pairs(cloud, n_neighbors, max_differences, generator)
        nulls.append(difference_cosines(cloud, others).abs().amax(1))
    name = "Gaussian cloud of the same covariance"
    return Parallelograms(
        n_differences=len(pairs),
        best=_best(unit, pairs, cosines, n_best),
        largest=AgainstNull(
            value=float(partner.max()), draws=tuple(float(one.max()) for one in nulls), null=name
        ),
        typical=AgainstNull(
            value=float(partner.mean()), draws=tuple(float(one.mean()) for one in nulls), null=name
        ),
        counts=tuple(int(n) for n in _histogram(partner)),
        null_counts=tuple(torch.stack([_histogram(one) for one in nulls]).mean(0).tolist()),
    )


def _histogram(values: Tensor) -> Float[Tensor, " bin"]:
    return torch.histc(values.clamp(0, 1), N_BINS, 0, 1)


def _best(
    unit: Tensor, pairs: Int[Tensor, "pair two"], cosines: Tensor, n_best: int
) -> tuple[Parallelogram, ...]:
    """Greedily by |cosine|, without using a latent twice: else all would be one with variants."""
    size, place = cosines.abs().triu(1).flatten().topk(min(_LOOKED_AT, cosines.numel()))
    used: set[int] = set()
    found: list[Parallelogram] = []
    for parallel, at in zip(size.tolist(), place.tolist(), strict=True):
        row, other = divmod(at, len(pairs))
        corners = [*pairs[row].tolist(), *pairs[other].tolist()]
        if parallel <= 0 or used & set(corners):
            continue
        used |= set(corners)
        if float(cosines[row, other]) < 0:  # the other difference the other way round
            corners[2:] = corners[:1:-1]
        a, b, c, d = (unit[corner] for corner in corners)
        one, two = b - a, d - c
        length = float(one.norm() + two.norm()) / 2
        places, plane = _plane(unit[corners])
        found.append(
            Parallelogram(
                corners=(corners[0], corners[1], corners[2], corners[3]),
                cosine=parallel,
                gap=float((one - two).norm()) / length,
                places=places,
                plane=plane,
            )
        )
        if len(found) == n_best:
            break
    return tuple(found)


def _plane(four: Float[Tensor, "four d"]) -> tuple[tuple[tuple[float, float], ...], float]:
    centered = (four - four.mean(0)).double()
    _, sizes, axes = torch.linalg.svd(centered, full_matrices=False)
    places = centered @ axes[:2].T
    across = places[1] - places[0] + places[3] - places[2]
    x, y = (across / across.norm().clamp_min(1e-12)).tolist()
    turned = places @ torch.tensor([[x, -y], [y, x]], dtype=torch.float64)
    share = float(sizes[:2].square().sum() / sizes.square().sum().clamp_min(1e-30))
    return tuple((float(a), float(b)) for a, b in turned.tolist()), share
