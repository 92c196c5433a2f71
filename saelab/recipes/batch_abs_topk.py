"""BatchAbsTopK: signed latents with a budget shared over the batch.

    training:  f = z where |z| is among the k * B largest of the batch, else 0
    inference: f = z where |z| > threshold
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Zhu, Khalili, Zhu 2026, "AbsTopK: rethinking sparse autoencoders for bidirectional features", whose
code selects over the batch.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import BatchAbsTopK
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["SignedBudgetRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class SignedBudgetRecipe(Recipe):
    """A BatchAbsTopK dictionary."""

    k: float = 32.0
    """Latents per token, on average over a batch; may be fractional."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> BatchAbsTopK:
        """The k * B of largest size of a batch; a threshold at inference."""
        return BatchAbsTopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)
