"""Least squares of errors on activations, and how much of them it gives."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Fit", "r2"]

RCOND = 1e-9
"""Singular values below this share of the largest are left out of a fit."""


@final
class Fit:
    """Least squares of any number of targets on one set of activations, factored once.

    As the published code has it: singular values below RCOND of the largest are left out.
    """

    def __init__(self, x: Float[Tensor, "token d"], *, constant: bool) -> None:
        self.mean = x.mean(0) if constant else torch.zeros_like(x[0])
        self.constant = constant
        self.q, triangle = torch.linalg.qr(x - self.mean)
        self.inverse = torch.linalg.pinv(triangle, rtol=RCOND)

    def predict(
        self, y: Float[Tensor, "token out"], at: Float[Tensor, "other d"]
    ) -> Float[Tensor, "other out"]:
        """Fit y, and read the fit off at other activations."""
        offset = y.mean(0) if self.constant else torch.zeros_like(y[0])
        return (at - self.mean) @ (self.inverse @ (self.q.T @ (y - offset))) + offset


def r2(y: Float[Tensor, "token d"], predicted: Float[Tensor, "token d"]) -> float:
    """1 - sum of squares left / sum of squares about the mean, all dimensions together."""
    spread = (y - y.mean(0)).square().sum()
    return float(1 - (y - predicted).square().sum() / spread)
