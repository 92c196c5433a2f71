"""GroupMax: the latents fall into k groups, and each token keeps the largest of each group.

    f_i = max(z_i, 0) if z_i is the largest of its group, else 0
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

EleutherAI 2025, "sparsify". Cheaper to select than TopK; two latents of one group never fire
together.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import GroupMax
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["GroupMaxRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class GroupMaxRecipe(Recipe):
    """A GroupMax dictionary."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> GroupMax:
        """The largest of each of k groups."""
        return GroupMax(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)
