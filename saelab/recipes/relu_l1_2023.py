"""ReLU with an L1 penalty on latents, unit decoder directions, and dead latents resampled.

    f = ReLU(W_enc (x - b_dec) + b_enc)
    loss = (|x - x_hat|^2 + l1 sum_i f_i) / variance         |W_dec[i]| = 1

Bricken, Templeton, Batson, Chen, Jermyn, ..., Henighan, Olah 2023, "Towards monosemanticity:
decomposing language models with dictionary learning". Followed: the decoder gradient projected and
directions kept at norm 1; four times in the run, dead latents are pointed at tokens with a large
loss, with short encoders, and Adam forgets them. Different: resampling draws from the step's batch,
and the encoder starts as the decoder's transpose.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import ReLU
from saelab.objectives import L1, Reconstruction
from saelab.recipes.base import Recipe
from saelab.training.resampling import Resampling

__all__ = ["ReluResamplingRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class ReluResamplingRecipe(Recipe):
    """A ReLU dictionary with an L1 penalty, unit directions and resampling."""

    l1: float = 3.2
    """Weight of the penalty. L0 is near 32 with it (docs/training.md)."""
    resampled_every: float = 0.15
    """Share of the budget between two of the four occasions on which dead latents are resampled."""

    def activation(self) -> ReLU:
        """The positive ones."""
        return ReLU()

    def terms(self) -> tuple[Reconstruction, L1]:
        """Squared error, and the sum of latents."""
        return Reconstruction(), L1(coefficient=self.l1)

    def upkeep(self) -> tuple[Resampling]:
        """Dead latents are given new directions."""
        return (Resampling(max(1, round(self.resampled_every * self.tokens)), seed=self.seed),)
