"""What would a dictionary be that knew the attributes? One vector for every value of every one.

    a-hat(p) = a-bar + sum over attributes of u_{attribute = value of p}

mean    u_{i = v} = mean of a where attribute i is v, minus a-bar; right where attributes are
        independent of each other
mse     least squares on the one-hot values, of smallest length where they are not unique
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError

__all__ = ["METHODS", "SupervisedDictionary", "fit_supervised"]

METHODS = ("mean", "mse")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedDictionary:
    """A vector for every value of every attribute."""

    mean: Float[Tensor, " d"]
    """a-bar."""
    vectors: dict[str, Float[Tensor, "_ d"]]
    """Attribute -> a row per value; zero for values that were never seen."""
    method: str
    """How it was fitted."""

    def reconstruct(
        self, attributes: Mapping[str, Int[Tensor, " example"]]
    ) -> Float[Tensor, "example d"]:
        """a-hat."""
        parts = [self.vectors[name][attributes[name]] for name in self.vectors]
        return self.mean + torch.stack(parts).sum(0)

    def exchange(
        self, attribute: str, old: Int[Tensor, " example"], new: Int[Tensor, " example"]
    ) -> Float[Tensor, "example d"]:
        """What to add so that one attribute changes: u_new - u_old."""
        vectors = self.vectors[attribute]
        return vectors[new] - vectors[old]


def fit_supervised(
    x: Float[Tensor, "example d"],
    attributes: Mapping[str, Int[Tensor, " _"]],
    method: str = "mse",
    sizes: Mapping[str, int] | None = None,
) -> SupervisedDictionary:
    """Fit a vector per value.

    Args:
        x: Activations, in the model's units.
        attributes: The value of every attribute on every example: 0, 1, ...
        method: "mean" or "mse"; the second is right where attributes go along with each other.
        sizes: How many values each has; as many as are seen if not given.

    Raises:
        ConfigError: There is no attribute, or no such method.
        ShapeError: There is not one value per example.
    """
    if method not in METHODS or not attributes:
        raise ConfigError(f"method={method!r} must be 'mean' or 'mse', with an attribute at least.")
    for name, values in attributes.items():
        if len(values) != len(x):
            raise ShapeError(f"{len(x)} examples need as many values of {name}; {len(values)}.")
    counts = dict(sizes or {name: int(values.max()) + 1 for name, values in attributes.items()})
    mean = x.double().mean(0)
    centered = x.double() - mean
    ones = [
        torch.nn.functional.one_hot(values.long(), counts[name]).double()
        for name, values in attributes.items()
    ]
    if method == "mean":
        found = [hot.T @ centered / hot.sum(0).clamp_min(1)[:, None] for hot in ones]
    else:
        hot = torch.cat(ones, dim=1)
        solved = torch.linalg.lstsq(hot, centered, driver="gelsd").solution
        found = list(solved.split([counts[name] for name in attributes]))
    return SupervisedDictionary(
        mean=mean.float(),
        vectors={name: part.float() for name, part in zip(attributes, found, strict=True)},
        method=method,
    )
