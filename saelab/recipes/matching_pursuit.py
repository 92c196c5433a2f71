"""Matching pursuit: latents are chosen one at a time, each by what the ones before left over.

    r = x - b_dec;  k times: i = argmax d_i r, f_i += d_i r, r <- r - (d_i r) d_i
    x_hat = W_dec f + b_dec        loss = |x - x_hat|^2 / variance

Costa, Fel, Lubana, Tolooshams, Ba 2025, "From flat to hierarchical: extracting sparse
representations with matching pursuit". Followed: encoder and decoder are one matrix, directions of
norm 1, exactly k choices, latents that are not negative. Different: codes are constants for the
gradient, where the authors also differentiate through the choices' values; no term revives dead
latents.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import MatchingPursuit
from saelab.objectives import Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore

__all__ = ["MatchingPursuitRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class MatchingPursuitRecipe(Recipe):
    """A matching pursuit dictionary."""

    k: int = 32
    """Choices per token."""

    def activation(self) -> MatchingPursuit:
        """k greedy choices."""
        return MatchingPursuit(self.k)

    def terms(self) -> tuple[Reconstruction]:
        """Squared error."""
        return (Reconstruction(),)

    def dictionary(self, store: ActivationStore) -> SAE:
        """Encoder and decoder are one matrix."""
        activation, hook = self.activation(), store.hook
        return SAE(store.d_in, self.d_sae, activation, hook=hook, tied=True, seed=self.seed)
