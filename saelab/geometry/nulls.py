"""How far is a number from what chance gives? One value beside the same number under a null.

A z-score grows with the sample and says nothing about size: what matters is `excess`, the value
less the null's mean, in the value's own units; z and p only say whether that can be chance. The p
value counts the null draws that are at least as large, the value among them, so 100 draws never
give less than 1/101.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError

__all__ = ["AgainstNull", "check_finite", "checked_directions", "shuffled_coordinates"]


@final
@dataclass(frozen=True, kw_only=True)
class AgainstNull:
    """A number, and what it would be if there were nothing to find.

    >>> print(AgainstNull(value=0.5, draws=(0.0, 0.1, 0.2), null="labels shuffled"))
    0.500 (labels shuffled, 3 draws: 0.100 ± 0.100; excess +0.400, z +4, p 0.25)
    """

    value: float
    """The number, of the data."""
    draws: tuple[float, ...]
    """The same number, of each draw of the null."""
    null: str
    """What was done to the data to make the null."""

    def __post_init__(self) -> None:
        if not self.draws:
            raise ConfigError(f"The null '{self.null}' has no draws; ask for at least one.")

    @property
    def mean(self) -> float:
        """Mean of the null."""
        return sum(self.draws) / len(self.draws)

    @property
    def spread(self) -> float:
        """Standard deviation of the null, with n - 1; 0 for a single draw."""
        if len(self.draws) < 2:
            return 0.0
        squares = sum((draw - self.mean) ** 2 for draw in self.draws)
        return math.sqrt(squares / (len(self.draws) - 1))

    @property
    def excess(self) -> float:
        """Value less mean of the null: the size of the effect, in units of the value."""
        return self.value - self.mean

    @property
    def z(self) -> float | None:
        """Excess in standard deviations of the null; None where the null does not vary."""
        return self.excess / self.spread if self.spread > 0 else None

    @property
    def p(self) -> float:
        """(1 + draws that are at least the value) / (1 + draws): one-sided, above 0, at most 1."""
        return (1 + sum(draw >= self.value for draw in self.draws)) / (1 + len(self.draws))

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the value, the null's name, mean, spread and draws, and the comparison."""
        return {
            "value": self.value,
            "null": self.null,
            "null_mean": self.mean,
            "null_spread": self.spread,
            "draws": list(self.draws),
            "excess": self.excess,
            "z": self.z,
            "p": self.p,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AgainstNull":
        """From what `to_json` gave; mean, spread, z and p are computed again.

        >>> one = AgainstNull(value=0.5, draws=(0.0, 0.1), null="labels shuffled")
        >>> AgainstNull.from_json(one.to_json()) == one
        True
        """
        draws = tuple(float(draw) for draw in value["draws"])
        return cls(value=float(value["value"]), draws=draws, null=str(value["null"]))

    def __str__(self) -> str:
        """One line: value, null, effect size, and then its significance."""
        z = "" if self.z is None else f", z {self.z:+.3g}"
        draws = f"{len(self.draws)} draw{'s' if len(self.draws) > 1 else ''}"
        return (
            f"{self.value:.3f} ({self.null}, {draws}: {self.mean:.3f} ± {self.spread:.3f}; "
            f"excess {self.excess:+.3f}{z}, p {self.p:.2g})"
        )


def checked_directions(
    directions: Float[Tensor, "latent d"], least: int = 2, what: str = "directions"
) -> Float[Tensor, "latent d"]:
    """The same as unit rows in float32, detached.

    Raises:
        ShapeError: Fewer than `least` rows.
        DataError: A row is zero, NaN or infinite: it has no direction.
    """
    if len(directions) < least:
        raise ShapeError(f"At least {least} {what} are needed; there are {len(directions)}.")
    rows = directions.detach().float()
    lengths = rows.norm(dim=1)
    bad = ~torch.isfinite(lengths) | (lengths == 0)
    if bool(bad.any()):
        raise DataError(
            f"{int(bad.sum())} of {len(rows)} {what} are zero, NaN or infinite, the first in row "
            f"{int(bad.nonzero()[0])}. Leave them out: they point nowhere."
        )
    return rows / lengths[:, None]


def shuffled_coordinates(
    directions: Float[Tensor, "latent d"], generator: torch.Generator
) -> Float[Tensor, "latent d"]:
    """The same cloud in an unrelated frame: coordinates permuted, with random signs.

    Every cosine within the cloud stays what it was; those with anything outside become those of
    chance.
    """
    d = directions.shape[1]
    signs = torch.randint(0, 2, (d,), generator=generator) * 2.0 - 1
    order = torch.randperm(d, generator=generator)
    return directions[:, order.to(directions.device)] * signs.to(directions)


def check_finite(*tensors: Float[Tensor, "_ d"]) -> None:
    """Refuse activations that cannot be compared.

    Raises:
        ShapeError: Fewer than two rows.
        DataError: One is NaN or infinite.
    """
    if any(len(tensor) < 2 for tensor in tensors):
        raise ShapeError("At least two rows of activations are needed to compare them.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise DataError("An activation is NaN or infinite.")
