"""BatchTopK: k latents per token on average, more on hard tokens and fewer on easy ones.

    training:  f = z where z is among the k * B largest positive entries of the batch, else 0
    inference: f = z where z > threshold, the mean of the batches' weakest kept entry
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Bussmann, Leask, Nanda 2024, "BatchTopK sparse autoencoders". The saved dictionary is a JumpReLU
with one threshold. Different: inputs are scaled as a whole, not normalized token by token.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import BatchTopK
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["BatchTopKRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class BatchTopKRecipe(Recipe):
    """A BatchTopK dictionary."""

    k: float = 32.0
    """Latents per token, on average over a batch; may be fractional."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> BatchTopK:
        """The k * B largest of a batch; a threshold at inference."""
        return BatchTopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)
