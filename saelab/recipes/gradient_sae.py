"""Gradient SAE: TopK that prefers latents the language model's loss depends on.

    score_i = z_i + beta * z_i * |g . W_dec[i]| / RMS    in training the k largest are kept
    f = ReLU(TopK_k(z))                                  at inference, where no gradient is known
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Olmo, Wilson, Forsey, Hepner, Howe, Wingate 2024, "Features that make a difference: leveraging
gradients for improved dictionary learning". g is the gradient of the model's loss at the hook
point, which the store must hold:

    saelab harvest MODEL TEXT --hooks HOOK HOOK.grad ...

What leaving the gradient out at inference costs is recorded among the run's events. Dividing by
the root mean square, so that beta does not depend on how the loss is summed, is ours.
"""

from dataclasses import dataclass
from typing import final

from saelab.activation_functions import GradientTopK
from saelab.objectives import AuxK, Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.selection_gap import SelectionGap

__all__ = ["GradientSAERecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class GradientSAERecipe(Recipe):
    """A gradient SAE."""

    k: int = 32
    """Latents per token."""
    beta: float = 1.0
    """Weight of the gradient; 0 is TopK."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""

    def activation(self) -> GradientTopK:
        """The k of largest score; plain TopK at inference."""
        return GradientTopK(self.k, self.beta, f"{self.hook}.grad")

    def terms(self) -> tuple[Reconstruction, AuxK]:
        """Squared error, and AuxK."""
        return Reconstruction(), AuxK(coefficient=self.auxk)

    def upkeep(self) -> tuple[SelectionGap]:
        """A look, ten times in a run, at what inference loses without the gradient."""
        return (SelectionGap(max(1, self.tokens // 10)),)

    def dictionary(self, store: ActivationStore) -> SAE:
        """The untrained dictionary; it reads the gradient at the store's hook point."""
        activation = GradientTopK(self.k, self.beta, f"{store.hook}.grad")
        return SAE(store.d_in, self.d_sae, activation, hook=store.hook, seed=self.seed)
