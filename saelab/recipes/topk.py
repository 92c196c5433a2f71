"""TopK: exactly k latents per token, and dead latents revived by what the others miss.

    f = ReLU(TopK_k(W_enc (x - b_dec) + b_enc))        x_hat = W_dec f + b_dec
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu 2024, "Scaling and evaluating
sparse autoencoders". Followed: decoder directions of norm 1, W_enc starting as W_dec transposed,
b_dec at the geometric median, the decoder gradient projected, Adam with eps 6.25e-10, AuxK with
coefficient 1/32 and about d_in / 2 dead latents. Different: latents count as dead after a tenth of
the budget, not after 10 million tokens, because laptop budgets are smaller than that; the learning
rate rises and falls linearly at the two ends.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import TopK
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["TopKRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class TopKRecipe(Recipe):
    """A TopK dictionary."""

    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> TopK:
        """The k largest."""
        return TopK(self.k)

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)
