"""Feature Choice: after a phase of Mutual Choice, every latent chooses its tokens.

    training:  f = z where z is among the m_i largest positive entries of its latent, else 0;
               the m_i sum to k * B, so that no latent can die
    inference: f = z where z > threshold_i, the mean of the batches' weakest kept entry of latent i
    loss = |x - x_hat|^2 / variance + 1/32 AuxZipf

Ayonrinde 2024, "Adaptive sparse allocation with Mutual Choice and Feature Choice sparse
autoencoders". How long the phases are is ours: no code was published. A batch must hold at least
d_sae / k tokens, so that each latent gets one; 4 times that is better. A latent that is truly rarer
than one token in a batch is made to fire on noise.
"""

from dataclasses import dataclass
from typing import Literal, final

from saelab.activation_functions import Choice
from saelab.objectives import AuxZipf, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["FeatureChoiceRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class FeatureChoiceRecipe(Recipe):
    """A Feature Choice dictionary."""

    k: float = 32.0
    """Latents per token, on average over a batch; may be fractional."""
    mutual: float = 0.9
    """Share of the budget trained with Mutual Choice first, from 0 up to 1."""
    budgets: Literal["uniform", "zipf"] = "uniform"
    """The same number of tokens for every latent, or by rank along a fitted Zipf curve."""
    aux_zipf: float = 1 / 32
    """Weight of the AuxZipf term."""

    def activation(self) -> Choice:
        """The k * B largest of a batch, later m_i of each latent; thresholds at inference."""
        phases = [(self.mutual, "mutual"), (1 - self.mutual, "feature")]
        return Choice(self.k, [phase for phase in phases if phase[0] > 0], self.budgets)

    def terms(self) -> tuple[Reconstruction, AuxZipf]:
        """Squared error, and AuxZipf."""
        return Reconstruction(), AuxZipf(coefficient=self.aux_zipf)
