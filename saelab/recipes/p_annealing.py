"""p-annealing: an L1 penalty whose power falls from 1 towards 0 during the run.

    f = ReLU(W_enc (x - b_dec) + b_enc)
    loss = (|x - x_hat|^2 + weight_p sum_i f_i^p) / variance        |W_dec[i]| = 1

Karvonen, Wright, Rager, Angell, Brinkmann, Smith, Verdun, Bau, Marks 2024, "Measuring progress in
dictionary learning for language model interpretability with board game models". Followed: p falls
in ten parts, and at each the weight changes so that the loss does not, judged by the last ten
batches. Different: p ends above zero, the power is a straight line below a small floor, and the
descent takes the second and third quarter of the budget.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import ReLU
from saelab.objectives import PAnnealing, Reconstruction
from saelab.recipes.base import Recipe

__all__ = ["PAnnealingRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class PAnnealingRecipe(Recipe):
    """A ReLU dictionary with a penalty that becomes a count."""

    l1: float = 2.9
    """Weight of the penalty while it is L1. L0 is near 32 with it (docs/training.md)."""
    p_end: float = 0.2
    """The power at the end; above 0."""

    def activation(self) -> ReLU:
        """The positive ones."""
        return ReLU()

    def terms(self) -> tuple[Reconstruction, PAnnealing]:
        """Squared error, and latents to the power p."""
        return Reconstruction(), PAnnealing(coefficient=self.l1, p_end=self.p_end)
