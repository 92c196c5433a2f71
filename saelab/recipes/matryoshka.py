"""Matryoshka BatchTopK: nested dictionaries, the general latents first.

    loss = sum over prefixes m of |x - (f_{:m} W_dec[:m] + b_dec)|^2 / variance + 1/32 AuxK

Bussmann, Nabeshima, Karvonen, Nanda 2025, "Learning multi-level features with Matryoshka sparse
autoencoders". Prefixes hold 1/32, 3/32, 7/32, 15/32 and all of the latents; each uses the same f.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import BatchTopK
from saelab.objectives import AuxK, Matryoshka
from saelab.recipes.base import Recipe

__all__ = ["MatryoshkaRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class MatryoshkaRecipe(Recipe):
    """A Matryoshka BatchTopK dictionary."""

    k: float = 32.0
    """Latents per token, on average over a batch; may be fractional."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> BatchTopK:
        """The k * B largest of a batch; a threshold at inference."""
        return BatchTopK(self.k)

    def terms(self) -> tuple[Matryoshka, AuxK]:
        """Squared error of every prefix, and AuxK."""
        return Matryoshka(), AuxK(coefficient=self.auxk)
