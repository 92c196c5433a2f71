"""JumpReLU: every latent learns the threshold above which it counts.

    f = z where z > threshold, else 0                  z = W_enc (x - b_dec) + b_enc
    loss = |x - x_hat|^2 / variance + price (L0 - target) + 1/32 AuxK
    threshold <- threshold * (L0 / target)^0.05        after each step

Rajamanoharan, Lieberum, Sonnerat, Conmy, Varma, Kramar, Nanda 2024, "Jumping ahead: improving
reconstruction fidelity with JumpReLU sparse autoencoders". Different: the target is met by a common
factor of all thresholds instead of a quadratic penalty, and the price of a latent is what one at
its threshold gains; thresholds start where the target is met; the window is half a threshold wide,
because the budget is a thousand times smaller than the paper's; dead latents are revived by AuxK;
b_dec is subtracted from the input and Adam keeps its usual momentum.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import JumpReLU
from saelab.objectives import AuxK, Reconstruction, TargetL0
from saelab.recipes.base import Recipe

__all__ = ["JumpReLURecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class JumpReLURecipe(Recipe):
    """A JumpReLU dictionary with a target L0."""

    k: float = 32.0
    """Active latents per token aimed at, on average."""
    bandwidth: float | None = None
    """Width of the window around a threshold; None for half the mean threshold."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> JumpReLU:
        """Those above the threshold that each latent learns."""
        return JumpReLU(bandwidth=self.bandwidth)

    def terms(self) -> tuple[Reconstruction, TargetL0, AuxK]:
        """Squared error, the distance of L0 from its target, and AuxK."""
        return Reconstruction(), TargetL0(target=self.k), AuxK(coefficient=self.auxk)
