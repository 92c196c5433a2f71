"""Mutual Choice: tokens and latents choose each other, k active latents per token on average.

    training:  f = z where z is among the k * B largest positive entries of the batch, else 0
    inference: f = z where z > threshold, the mean of the batches' weakest kept entry
    loss = |x - x_hat|^2 / variance + 1/32 AuxZipf

Ayonrinde 2024, "Adaptive sparse allocation with Mutual Choice and Feature Choice sparse
autoencoders". The selection is BatchTopK's; AuxZipf extends AuxK from dead latents to those that
fire much less than a Zipf curve expects. Its weights are ours: no code was published.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import Choice
from saelab.objectives import AuxZipf, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["MutualChoiceRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class MutualChoiceRecipe(Recipe):
    """A Mutual Choice dictionary."""

    k: float = 32.0
    """Latents per token, on average over a batch; may be fractional."""
    aux_zipf: float = 1 / 32
    """Weight of the AuxZipf term."""

    def activation(self) -> Choice:
        """The k * B largest of a batch; a threshold at inference."""
        return Choice(self.k, phases=((1.0, "mutual"),))

    def terms(self) -> tuple[Reconstruction, AuxZipf]:
        """Squared error, and AuxZipf."""
        return Reconstruction(), AuxZipf(coefficient=self.aux_zipf)
