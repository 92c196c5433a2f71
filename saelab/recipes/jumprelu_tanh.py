"""JumpReLU with a smooth count: tanh of what each latent contributes.

    f = z where z > threshold, else 0                  z = W_enc (x - b_dec) + b_enc
    loss = (|x - x_hat|^2 + l0 sum_i tanh(4 f_i |W_dec[i]|)
            + pre_act sum over dead i of ReLU(threshold_i - z_i) |W_dec[i]|) / variance

Conerly, Cunningham, Templeton, Lindsey, Hosmer, Jermyn 2025, "Dictionary learning optimization
techniques". Followed: the window's gradient reaches the encoder too, decoder directions have any
length, the weight of the count rises over the whole run, dead latents are pulled to their
thresholds. Different: thresholds themselves are learned, not their logarithms; they start where 100
latents are active; the window is half a threshold wide; b_dec is subtracted from the input.
"""

from dataclasses import dataclass, replace
from typing import final

from saelab.activation_functions import JumpReLU
from saelab.objectives import PreActivation, Reconstruction, TanhL0
from saelab.recipes.base import Recipe
from saelab.training.config import TrainConfig

__all__ = ["TanhRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class TanhRecipe(Recipe):
    """A JumpReLU dictionary with a smooth count of latents."""

    l0: float = 0.9
    """Weight of the count at the end of the run. L0 is near 32 with it (docs/training.md)."""
    pre_act: float = 3e-6
    """Weight of the pull on dead latents."""

    def activation(self) -> JumpReLU:
        """Those above the threshold that each latent learns."""
        return JumpReLU(to_encoder=True)

    def terms(self) -> tuple[Reconstruction, TanhL0, PreActivation]:
        """Squared error, the smooth count, and the pull on dead latents."""
        return (
            Reconstruction(),
            TanhL0(coefficient=self.l0),
            PreActivation(coefficient=self.pre_act),
        )

    def training(self) -> TrainConfig:
        """Directions of any length."""
        return replace(super().training(), decoder="free")
