"""AbsTopK: the k latents of largest size per token, with their sign.

    f = z where |z| is among the k largest, else 0     z = W_enc (x - b_dec) + b_enc
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Zhu, Khalili, Zhu 2026, "AbsTopK: rethinking sparse autoencoders for bidirectional features". One
latent can stand for a concept and, negative, for its opposite, which TopK needs two latents for.
Different from the paper's code: selection is per token (trainers.batch_abs_topk shares the budget
over the batch, as the code does), and AuxK selects dead latents by size.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import AbsTopK
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["AbsTopKRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class AbsTopKRecipe(Recipe):
    """An AbsTopK dictionary."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> AbsTopK:
        """The k of largest size."""
        return AbsTopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)
