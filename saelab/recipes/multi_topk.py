"""Multi-TopK: TopK that also reconstructs well from 4 k latents.

    loss = |x - x_hat_k|^2 / variance + 1/8 |x - x_hat_4k|^2 / variance + 1/32 AuxK

Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu 2024, "Scaling and evaluating
sparse autoencoders", section 5. Plain TopK overfits its k: read with more latents it gets worse.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import TopK
from saelab.objectives import AuxK, MultiTopK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["MultiTopKRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class MultiTopKRecipe(Recipe):
    """A TopK dictionary that can be read with more latents than it was trained for."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> TopK:
        """The k largest."""
        return TopK(self.k)

    def terms(self) -> tuple[Reconstruction, MultiTopK, AuxK]:
        """Squared error at k and at 4 k, and AuxK."""
        return Reconstruction(), MultiTopK(), AuxK(coefficient=self.auxk)
