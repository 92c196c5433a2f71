"""Are there crystals in a dictionary? Groups of parallel differences between its directions.

    1. pairs: each latent with its nearest neighbors
    2. differences d_i - d_j, of length 1
    3. classes: the difference with most parallel partners leads; those with |cosine| >= bar to it,
       sharing no latent with it or among themselves, are its class; repeat on what is left

Differences that share a latent are parallel by construction (two random ones have a cosine of
1/2), so a class that may share latents exists in any cloud. The null is a Gaussian cloud with the
same covariance, put through the same steps.
"""

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.geometry.clouds import matched_gaussian
from saelab.geometry.matching import neighbors
from saelab.geometry.nulls import AgainstNull, checked_directions

__all__ = [
    "DifferenceClasses",
    "difference_classes",
    "difference_cosines",
    "neighbor_pairs",
]


@final
@dataclass(frozen=True, kw_only=True)
class DifferenceClasses:
    """Parallel classes of a dictionary's differences."""

    n_differences: int
    """Differences of neighbors that were looked at."""
    classes: tuple[tuple[tuple[int, int], ...], ...]
    """For each class its pairs (i, j), oriented alike: W_dec[i] - W_dec[j]; largest class first."""
    share: AgainstNull
    """Share of the differences that are in a class; null: Gaussian cloud, same covariance."""
    best_cosine: AgainstNull
    """Mean largest |cosine| of a difference with one that shares no latent; the same null."""
    bar: float
    """|cosine| with the leader from which on a difference belongs to its class."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        nulls = {"share": self.share.to_json(), "best_cosine": self.best_cosine.to_json()}
        return {**asdict(self), **nulls}

    def __str__(self) -> str:
        """Three lines."""
        largest = len(self.classes[0]) if self.classes else 0
        return "\n".join(
            [
                f"{self.n_differences:,} differences: {len(self.classes)} parallel classes at "
                f"|cosine| >= {self.bar}, the largest of {largest}",
                f"  share in a class {self.share}",
                f"  best |cosine| {self.best_cosine}",
            ]
        )


def difference_classes(
    directions: Float[Tensor, "latent d"],
    *,
    n_neighbors: int = 3,
    max_differences: int = 4000,
    bar: float = 0.7,
    least: int = 3,
    n_null: int = 3,
    seed: int = 0,
) -> DifferenceClasses:
    """Look for parallel differences among a dictionary's directions.

    Args:
        directions: Decoder rows. Those of a signed dictionary first need an orientation
            (`saelab.geometry.oriented`), because d_i - d_j is not the same when d_j is flipped.
        n_neighbors: Neighbors of each latent that make a difference.
        max_differences: More than this are thinned out at random; work grows with its square.
        bar: |cosine| from which on two differences are parallel.
        least: Differences a class must have.
        n_null: Gaussian clouds.
        seed: Of the thinning and the clouds.

    Raises:
        ConfigError: A setting out of range.
    """
    if not 0 < bar < 1 or least < 2 or n_null < 1:
        raise ConfigError(
            f"bar={bar} must be in (0, 1), least={least} at least 2 and n_null={n_null} at least 1."
        )
    unit = checked_directions(directions, n_neighbors + 2)
    generator = torch.Generator().manual_seed(seed)

    def look(cloud: Tensor) -> tuple[list[list[tuple[int, int]]], int, float, float]:
        pairs = neighbor_pairs(cloud, n_neighbors, max_differences, generator)
        classes, best = _classes(cloud, pairs, bar, least)
        members = sum(map(len, classes))
        return classes, len(pairs), members / max(1, len(pairs)), best

    classes, n_pairs, share, best = look(unit)
    nulls = [
        look(checked_directions(matched_gaussian(unit, len(unit), generator)))[2:]
        for _ in range(n_null)
    ]
    name = "Gaussian cloud of the same covariance"
    return DifferenceClasses(
        n_differences=n_pairs,
        classes=tuple(tuple(one) for one in classes),
        share=AgainstNull(value=share, draws=tuple(one for one, _ in nulls), null=name),
        best_cosine=AgainstNull(value=best, draws=tuple(one for _, one in nulls), null=name),
        bar=bar,
    )


def neighbor_pairs(
    unit: Float[Tensor, "latent d"], n_neighbors: int, most: int, generator: torch.Generator
) -> Int[Tensor, "pair two"]:
    """Each latent with its nearest ones, every pair once, thinned out at random to `most`."""
    near, _ = neighbors(unit, n=n_neighbors)
    pairs = torch.stack(
        [torch.arange(len(unit)).repeat_interleave(n_neighbors), near.flatten()], dim=1
    )
    pairs = torch.unique(pairs.sort(dim=1).values, dim=0)
    if len(pairs) > most:
        pairs = pairs[torch.randperm(len(pairs), generator=generator)[:most].sort().values]
    return pairs


def difference_cosines(
    unit: Float[Tensor, "latent d"], pairs: Int[Tensor, "pair two"]
) -> Float[Tensor, "pair pair"]:
    """Cosine of every two differences; 0 for two that share a latent, and with itself."""
    differences = unit[pairs[:, 0]] - unit[pairs[:, 1]]
    lengths = differences.norm(dim=1, keepdim=True)
    # Two equal directions have no difference; it stays zero and is parallel to nothing.
    cosines = differences / torch.where(lengths > 1e-6, lengths, torch.inf)
    cosines = cosines @ cosines.T
    first, second = pairs.unbind(1)
    for one in (first, second):
        for other in (first, second):
            cosines.masked_fill_(one[:, None] == other[None, :], 0)
    return cosines


def _classes(
    unit: Tensor, pairs: Tensor, bar: float, least: int
) -> tuple[list[list[tuple[int, int]]], float]:
    cosines = difference_cosines(unit, pairs)
    size = cosines.abs()
    best = float(size.amax(1).mean())
    parallel = size >= bar
    free = parallel.any(1)
    classes: list[list[tuple[int, int]]] = []
    while True:
        count = (parallel & free[None, :]).sum(1) * free
        leader = int(count.argmax())
        if int(count[leader]) + 1 < least:
            break
        order = size[leader].masked_fill(~(parallel[leader] & free), -1).argsort(descending=True)
        used = set(pairs[leader].tolist())
        members = [tuple(pairs[leader].tolist())]
        taken = [leader]
        for place in order[: int(count[leader])].tolist():
            one, other = pairs[place].tolist()
            if one in used or other in used:
                continue
            used |= {one, other}
            members.append((one, other) if float(cosines[leader, place]) > 0 else (other, one))
            taken.append(place)
        free[leader] = False
        if len(members) >= least:
            free[taken] = False
            classes.append(members)
    return sorted(classes, key=len, reverse=True), best
