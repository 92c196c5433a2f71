"""Gated: one copy of the encoder decides which latents are active, another how strongly.

    pi = W_gate (x - b_dec) + b_gate
    f = [pi > 0] ReLU(exp(r) W_gate (x - b_dec) + b_mag)
    loss = (|x - x_hat|^2 + l1 sum_i ReLU(pi_i)
            + |x - stop(W_dec) ReLU(pi) - stop(b_dec)|^2) / variance

Rajamanoharan, Conmy, Smith, Lieberum, Varma, Kramar, Shah, Nanda 2024, "Improving dictionary
learning with gated sparse autoencoders". The penalty is on the gate, so latents are not shrunk. The
saved dictionary is a JumpReLU. Different: the parameters are exp(r) W_gate and the JumpReLU's
threshold, which say the same, and Adam keeps its usual momentum.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import Gated
from saelab.objectives import GateL1, GateReconstruction, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["GatedRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class GatedRecipe(Recipe):
    """A Gated dictionary."""

    l1: float = 6.8
    """Weight of the penalty on gates. L0 is near 32 with it (docs/training.md)."""

    def activation(self) -> Gated:
        """Those whose gate is open."""
        return Gated()

    def terms(self) -> tuple[Reconstruction, GateL1, GateReconstruction]:
        """Squared error, how far gates are open, and what gates alone would reconstruct."""
        return Reconstruction(), GateL1(coefficient=self.l1), GateReconstruction()
