"""ReLU with an L1 penalty on what latents contribute, and decoder directions of any length.

    f = ReLU(W_enc (x - b_dec) + b_enc)
    loss = (|x - x_hat|^2 + l1 sum_i f_i |W_dec[i]|) / variance

Conerly, Templeton, Bricken, Marcus, Henighan 2024, "Update on how we train SAEs". Followed:
directions start at norm 0.1 with the encoder as their transpose, biases at zero, the penalty rises
over the first 5 %, the learning rate falls over the last 20 %, gradients are clipped at norm 1.
Different: b_dec is subtracted from the input and starts at the data's center, and the learning rate
is higher, because the budget is smaller. saelab.decoder_norms.fold_norms gives the trained
directions norm 1.
"""

from dataclasses import dataclass, replace
from typing import final

from saelab.activation_functions import ReLU
from saelab.decoder_norms import start_directions
from saelab.objectives import L1, Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig

__all__ = ["ReluL1Recipe"]


@final
@dataclass(frozen=True, kw_only=True)
class ReluL1Recipe(Recipe):
    """A ReLU dictionary with an L1 penalty and free decoder norms."""

    l1: float = 7.0
    """Weight of the penalty. L0 is near 32 with it (docs/training.md)."""
    start_norm: float = 0.1
    """Length of decoder directions before training."""

    def activation(self) -> ReLU:
        """The positive ones."""
        return ReLU()

    def terms(self) -> tuple[Reconstruction, L1]:
        """Squared error, and the length of all contributions."""
        return Reconstruction(), L1(coefficient=self.l1)

    def training(self) -> TrainConfig:
        """Directions of any length."""
        return replace(super().training(), decoder="free")

    def dictionary(self, store: ActivationStore) -> SAE:
        """Short directions."""
        sae = super().dictionary(store)
        start_directions(sae, self.start_norm)
        return sae
