"""Terms that ask for few active latents where the activation function does not fix their number."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import JumpReLU
from saelab.errors import ConfigError
from saelab.objectives.base import Step, Term

__all__ = ["L1", "TargetL0"]


@final
@dataclass(frozen=True, kw_only=True)
class L1(Term):
    """Penalize the length that each latent contributes.

        coefficient * mean over tokens of sum_i |f_i| |W_dec[i]|, over the variance

    so that, with `Reconstruction`, the objective is the published |error|^2 + coefficient * L1 up
    to a common factor. It shrinks latents; JumpReLU and TopK do not.

    Source: Anthropic, "Update on how we train SAEs", April 2024 (there 5, on inputs of mean length
    sqrt(d_in), which is about the size of normalized inputs here).
    """

    coefficient: float = 5.0
    """Weight of the penalty."""
    warmup: float = 0.05
    """Share of the budget over which it rises from 0."""

    name = "l1"

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        forward = step.forward
        lengths = torch.linalg.vector_norm(step.sae.W_dec, dim=1)
        total = (forward.latents.abs() * lengths[forward.pairs.indices]).sum()
        weight = self.coefficient * min(1.0, step.progress / self.warmup if self.warmup else 1.0)
        return weight * total / (forward.pairs.n_tokens * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient, "warmup": self.warmup}


@final
@dataclass(frozen=True, kw_only=True)
class TargetL0(Term):
    """Drive the mean number of active latents of a JumpReLU dictionary to a target.

        coefficient * ramp * (L0 / target - 1)^2
        L0 = mean over tokens of sum_i [z_i > threshold_i]

    with the window's gradient to the thresholds and none to the encoder. A target says what one
    wants; a plain penalty has to be swept over decades to find it.

    Source: Rajamanoharan et al. 2024, appendix.
    """

    target: float = 32.0
    """Active latents per token."""
    coefficient: float = 3.0
    """Weight of the term; large, because the quadratic is weak near its minimum."""
    warmup: float = 0.1
    """Share of the budget over which the weight rises from 0."""

    name = "l0"

    def __post_init__(self) -> None:
        if self.target <= 0 or self.coefficient <= 0:
            raise ConfigError(
                f"TargetL0(target={self.target}, coefficient={self.coefficient}): both must be "
                "positive."
            )

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        activation, forward = step.sae.activation, step.forward
        if not isinstance(activation, JumpReLU):
            raise ConfigError(f"TargetL0 needs a JumpReLU dictionary; this one has {activation}.")
        active = activation.active(forward.pre_acts, forward.pairs.indices)
        l0 = active.sum() / forward.pairs.n_tokens
        ramp = min(1.0, step.progress / self.warmup if self.warmup else 1.0)
        return self.coefficient * ramp * (l0 / self.target - 1).square()

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "target": self.target,
            "coefficient": self.coefficient,
            "warmup": self.warmup,
        }
