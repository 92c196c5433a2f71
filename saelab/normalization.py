"""Input normalization: one scale for all inputs, a named and saved part of a dictionary.

Hyper-parameters such as a learning rate, a penalty or a threshold mean something only once the
size of the input is known, so a dictionary multiplies what it reads by a scale and divides what
it writes by another. Both scales are powers of two. Multiplying by a power of two loses no bits,
so folding the scale into the weights, or taking it out again, changes no output at all: not to
1e-5, but to the last bit. The price is that inputs have the target size only within a factor of
the square root of two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError

__all__ = ["Normalization", "fit_scale"]

_POWERS = {"W_enc": (1, 0), "W_dec": (0, -1), "b_dec": (0, -1), "W_skip": (1, -1)}
"""Powers of scale_in and scale_out that folding multiplies a weight by; (0, 0) for all others."""


@final
@dataclass(frozen=True, kw_only=True)
class Normalization:
    """x_normalized = x * scale_in; reconstruction = normalized reconstruction / scale_out."""

    scale_in: float = 1.0
    """Multiplies what the dictionary reads; a power of two."""
    scale_out: float = 1.0
    """Divides what the dictionary writes; a power of two, equal to scale_in in an autoencoder."""

    def __post_init__(self) -> None:
        for name, scale in (("scale_in", self.scale_in), ("scale_out", self.scale_out)):
            if not (0 < scale < math.inf and math.frexp(scale)[0] == 0.5):
                raise ConfigError(
                    f"Normalization({name}={scale!r}) is not a power of two; only powers of two "
                    "can be folded into weights without changing any output."
                )

    @classmethod
    def fit(
        cls, inputs: Float[Tensor, "token d_in"], outputs: Float[Tensor, "token d_out"] | None
    ) -> "Normalization":
        """Scales that bring a sample to unit variance per dimension, on average.

        Args:
            inputs: What the dictionary will read; at least two rows.
            outputs: What it will reconstruct, or None if that is the input.
        """
        scale_in = fit_scale(inputs)
        return cls(scale_in=scale_in, scale_out=scale_in if outputs is None else fit_scale(outputs))

    def folded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that compute the same without scales, bit for bit; latents keep their size.

        >>> Normalization(scale_in=2.0, scale_out=4.0).folded({"W_skip": torch.ones(1)})
        {'W_skip': tensor([0.5000])}
        """
        return {name: weight * self._factor(name) for name, weight in weights.items()}

    def unfolded(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `folded`, to the last bit."""
        return {name: weight / self._factor(name) for name, weight in weights.items()}

    def _factor(self, name: str) -> float:
        power_in, power_out = _POWERS.get(name, (0, 0))
        return self.scale_in**power_in * self.scale_out**power_out

    def to_json(self) -> dict[str, float]:
        """For the dictionary's file."""
        return {"scale_in": self.scale_in, "scale_out": self.scale_out}


def fit_scale(sample: Float[Tensor, "token width"]) -> float:
    """The power of two nearest to 1 / sqrt(mean variance of a coordinate).

    Raises:
        DataError: The sample is constant, or is not finite.

    >>> fit_scale(torch.tensor([[0.0], [8.0]]))
    0.25
    """
    deviation = torch.sqrt(sample.double().var(0, correction=0).mean()).item()
    if not 0 < deviation < math.inf:
        raise DataError(
            f"Cannot normalize activations whose standard deviation is {deviation}: the sample "
            f"of {len(sample)} rows is constant or not finite."
        )
    return 2.0 ** round(-math.log2(deviation))
