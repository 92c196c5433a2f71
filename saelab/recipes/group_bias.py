"""Group Bias Adaptation: biases are set by how often latents fire, not by a gradient.

    f = ReLU(W (x - b_dec) + b),  x_hat = W^T f + b_dec      tied weights; b_dec is the data's mean
    b_m falls where latent m fires more often than its group should, rises where it never fires
    loss = |x - x_hat|^2 / variance

Chen, Sheen, Xiong, Wang, Yang 2025, "Taming polysemanticity in LLMs: provable feature recovery via
sparse autoencoders". L0 is at most the sum of the groups' frequencies times their sizes. With
--output jump an active latent keeps its full length instead of losing its bias. The groups'
frequencies are those of an independent implementation; the output scale of the paper is left out.
"""

from dataclasses import dataclass, replace
from typing import Literal, final

from saelab.activation_functions import ActivationFunction, JumpReLU, ReLU
from saelab.objectives import Reconstruction
from saelab.recipes.base import Recipe
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig
from saelab.training.group_bias import GroupBias, GroupBiasConfig

__all__ = ["GroupBiasRecipe"]


@final
@dataclass(frozen=True, kw_only=True)
class GroupBiasRecipe(Recipe):
    """A dictionary with adapted biases."""

    groups: int = 10
    """Groups of latents."""
    highest: float = 0.1
    """Share of tokens on which latents of the first group should fire."""
    lowest: float = 0.001
    """The same for the last group."""
    buffer_tokens: int = 8192
    """Tokens between two moves of the biases."""
    rate: float = 0.01
    """How far a bias moves at a time, as a share of the latent's largest activation: up where it
    was silent, down where it fired too often. A few hundred steps need more, such as 0.1."""
    output: Literal["relu", "jump"] = "relu"
    """Whether an active latent is what exceeds its bias, or its full length."""

    def activation(self) -> ActivationFunction:
        """What exceeds the bias, or all of it."""
        return ReLU() if self.output == "relu" else JumpReLU(threshold=1e-6, bandwidth=1e-6)

    def terms(self) -> tuple[Reconstruction]:
        """Squared error alone."""
        return (Reconstruction(),)

    def upkeep(self) -> tuple[GroupBias]:
        """The biases' rule."""
        config = GroupBiasConfig(
            groups=self.groups,
            highest=self.highest,
            lowest=self.lowest,
            buffer_tokens=self.buffer_tokens,
            up=self.rate,
            down=self.rate,
        )
        return (GroupBias(config),)

    def training(self) -> TrainConfig:
        """The loop's settings: no gradient moves a bias."""
        frozen = ("b_enc", "b_dec")
        if self.output == "jump":
            frozen = (*frozen, "activation.threshold")
        return replace(super().training(), frozen=frozen, center="mean")

    def dictionary(self, store: ActivationStore) -> SAE:
        """The untrained dictionary, its encoder tied to its decoder."""
        activation = self.activation()
        return SAE(store.d_in, self.d_sae, activation, hook=store.hook, seed=self.seed, tied=True)
