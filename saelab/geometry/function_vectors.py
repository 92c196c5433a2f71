"""Is a relation a vector: does a source and the relation's vector make the target?"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.geometry.nulls import AgainstNull, check_finite

__all__ = ["FunctionVectors", "function_vectors"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FunctionVectors:
    """One vector a relation, and whether adding it finds the target of a pair left out."""

    vectors: Float[Tensor, "relation d"]
    """Mean difference of each relation, over all its pairs."""
    relations: tuple[int, ...]
    """Which relation each row is of."""
    accuracy: AgainstNull
    """Share of pairs whose nearest candidate is the target; null: the vector of other relations."""
    without: float
    """The same share with no vector added: a target next to its source is found by that alone."""

    def __str__(self) -> str:
        """One line."""
        return f"target found {self.accuracy}; without a vector {self.without:.3f}"


def function_vectors(
    sources: Float[Tensor, "pair d"],
    targets: Float[Tensor, "pair d"],
    relations: Int[Tensor, " pair"],
    *,
    n_null: int = 20,
    seed: int = 0,
) -> FunctionVectors:
    """Does a source and the mean difference of its relation's other pairs make the target?

    The pair asked about never enters its own mean. Candidates are the targets of all pairs; the
    nearest by Euclidean distance is the answer.

    Args:
        sources: h(a) of each pair.
        targets: h(b); pairs with one target count as found by any of them.
        relations: Which relation each pair belongs to.
        n_null: Draws in which each relation takes the vector of another.
        seed: Of those.

    Raises:
        DataError: Fewer than two relations, or one with fewer than two pairs.

    Source: Todd et al. 2023, "Function vectors in large language models", for the idea; the
    vectors there are sums of attention heads' outputs.
    """
    a, b = sources.detach().double(), targets.detach().double()
    check_finite(a, b)
    names, labels = torch.unique(relations, return_inverse=True)
    counts = torch.bincount(labels).double()
    if len(names) < 2 or float(counts.min()) < 2:
        raise DataError(
            f"{len(names)} relations, the smallest of {int(counts.min())} pairs: at least two "
            "relations of two pairs are needed."
        )
    sums = torch.zeros(len(names), a.shape[1], dtype=a.dtype).index_add_(0, labels, b - a)
    left = (sums[labels] - (b - a)) / (counts[labels] - 1)[:, None]
    answer = torch.unique(b, dim=0, return_inverse=True)[1]

    def found(vectors: Tensor) -> float:
        nearest = torch.cdist(a + vectors, b).argmin(1)
        return float((answer[nearest] == answer).double().mean())

    generator = torch.Generator().manual_seed(seed)
    means = sums / counts[:, None]
    draws = []
    for _ in range(n_null):
        step = int(torch.randint(1, len(names), (), generator=generator))
        order = torch.randperm(len(names), generator=generator)
        other = torch.empty_like(order)
        other[order] = order.roll(step)
        draws.append(found(means[other[labels]]))
    return FunctionVectors(
        vectors=means.to(sources.dtype),
        relations=tuple(names.tolist()),
        accuracy=AgainstNull(value=found(left), draws=tuple(draws), null="another relation's"),
        without=found(torch.zeros_like(a)),
    )
