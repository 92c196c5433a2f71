"""How often should the latent of each rank fire, if frequencies fall off as words' do?

    expected(rank) = first * ((1 + shift) / (rank + shift))^exponent,  rank = 1, 2, ...

The Zipf-Mandelbrot curve, fitted to the more frequent latents: those below it at the end are
used less than the rest of the dictionary suggests.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ZipfCurve", "fit_zipf"]

_SHIFTS = tuple(0.0 if step < 0 else 2.0**step for step in range(-1, 16))


@final
@dataclass(frozen=True, kw_only=True)
class ZipfCurve:
    """A fitted curve.

    >>> ZipfCurve(first=0.5, shift=1.0, exponent=1.0).expected(3).tolist()
    [0.5, 0.3333333333333333, 0.25]
    """

    first: float
    """Density expected at rank 1."""
    shift: float
    """Added to every rank: flattens the most frequent end."""
    exponent: float
    """How fast frequencies fall, 0 or more."""

    def expected(self, n: int) -> Float[Tensor, " rank"]:
        """Density expected at ranks 1 to n."""
        ranks = torch.arange(1, n + 1, dtype=torch.float64)
        return self.first * ((1 + self.shift) / (ranks + self.shift)).pow(self.exponent)


def fit_zipf(density: Float[Tensor, " latent"], share: float = 0.8) -> ZipfCurve | None:
    """Fit log density against log(rank + shift) by least squares; the shift is searched on a grid.

    Args:
        density: How often each latent fires, 0 to 1, in any order.
        share: Only this share of the ranks, the most frequent, is fitted.

    Returns:
        The curve, or None if fewer than three of those latents fire at all.

    >>> curve = fit_zipf(0.2 / torch.arange(1, 101).double())
    >>> round(curve.first, 6), curve.shift, round(curve.exponent, 6)
    (0.2, 0.0, 1.0)
    """
    ranked = density.double().cpu().sort(descending=True).values[: int(share * len(density))]
    ranked = ranked[ranked > 0]
    if len(ranked) < 3:
        return None
    ranks = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    shifts = torch.tensor(_SHIFTS, dtype=torch.float64)
    x = (ranks + shifts.unsqueeze(1)).log()
    y = ranked.log()
    off_x, off_y = x - x.mean(1, keepdim=True), y - y.mean()
    slope = (off_x @ off_y / off_x.square().sum(1)).clamp(max=0)
    error = (off_y - slope.unsqueeze(1) * off_x).square().sum(1)
    best = int(error.argmin())
    first = y.mean() + slope[best] * (x[best, 0] - x[best].mean())
    return ZipfCurve(
        first=float(first.exp()), shift=float(shifts[best]), exponent=float(-slope[best])
    )
