"""Sparse coding: latents minimize the squared error plus a price, the dictionary follows.

    f = argmin 1/2 |x - b_dec - f D|^2 + sum_i penalty_lam(f_i)      by proximal gradient steps
    D <- D - lr * gradient of |x - b_dec - f D|^2, rows of norm 1     with f held fixed

Olshausen and Field 1996, "Emergence of simple-cell receptive field properties by learning a sparse
code for natural images"; Rentzeperis, Calatroni, Perrinet and Prandi 2023, "Beyond l1 sparse coding
in V1", compare the penalties: at the same number of active latents, those that
shrink less reconstruct better (hard, then half, then soft). Different: activations instead of
whitened image patches, latents that are not negative, Adam, and a price that follows the number of
active latents so that every penalty can be asked for the same.
"""

from dataclasses import dataclass
from typing import Literal, final

from saelab.activation_functions import SparseCoding
from saelab.objectives import Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore

__all__ = ["SparseCodingRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class SparseCodingRecipe(Recipe):
    """A sparse coding dictionary."""

    penalty: Literal["soft", "half", "log", "hard", "cel0"] = "hard"
    """What a latent costs."""
    k: float = 32.0
    """Mean number of active latents aimed at."""
    steps: int = 30
    """Proximal gradient steps per batch."""

    def activation(self) -> SparseCoding:
        """Codes under the penalty."""
        return SparseCoding(self.penalty, self.k, self.steps)

    def terms(self) -> tuple[Reconstruction]:
        """Squared error."""
        return (Reconstruction(),)

    def dictionary(self, store: ActivationStore) -> SAE:
        """Encoder and decoder are one matrix."""
        activation, hook = self.activation(), store.hook
        return SAE(store.d_in, self.d_sae, activation, hook=hook, tied=True, seed=self.seed)
