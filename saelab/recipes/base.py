"""What is a recipe? An activation function, the terms of an objective, and settings with defaults.

Its fields are the flags of its family on the command line.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from saelab.activation_functions import ActivationFunction
from saelab.objectives import Term
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig
from saelab.training.upkeep import Upkeep

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe(abc.ABC):
    """The settings that every family has; a recipe adds its own."""

    hook: str | None = None
    """Hook point, if the store has several."""
    d_sae: int = 4608
    """Latents; 8 times the width of the default model."""
    tokens: int = 1_500_000
    """Training budget in tokens."""
    batch_size: int = 2048
    """Tokens per step; the papers' much larger ones leave a small budget with too few steps."""
    lr: float | None = None
    """Peak learning rate; None for 2e-3 * sqrt(4608 / d_sae)."""
    seed: int = 0
    """Of the decoder's start and of the order of the data."""

    @abc.abstractmethod
    def activation(self) -> ActivationFunction:
        """From pre-activations to latents."""

    @abc.abstractmethod
    def terms(self) -> Sequence[Term]:
        """What is minimized."""

    def upkeep(self) -> Sequence[Upkeep]:
        """What is done between steps; nothing unless a family says otherwise."""
        return ()

    def training(self) -> TrainConfig:
        """The loop's settings."""
        return TrainConfig(
            tokens=self.tokens, batch_size=self.batch_size, lr=self.lr, seed=self.seed
        )

    def dictionary(self, store: ActivationStore) -> SAE:
        """The untrained dictionary."""
        return SAE(store.d_in, self.d_sae, self.activation(), hook=store.hook, seed=self.seed)
