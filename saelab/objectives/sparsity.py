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

        excess = L0 / target - 1,  L0 = mean over tokens of sum_i [z_i > threshold_i]
        ramp * (coefficient * excess^2 + pressure * excess)
        pressure <- pressure + rate * excess     after each step, once ramp is 1 and |excess| < 1/2

    with the window's gradient to the thresholds and none to the encoder. The quadratic alone stops
    short of its target, where its slope equals what one more latent gains in reconstruction; the
    pressure is the multiplier that makes up for it, as in an augmented Lagrangian. Far from the
    target it rests, so that the way there builds up nothing that has to be undone.

    Source: Rajamanoharan et al. 2024, appendix, for the quadratic; the pressure is ours.
    """

    target: float = 32.0
    """Active latents per token."""
    coefficient: float = 1.0
    """Weight of the quadratic."""
    rate: float = 0.01
    """How fast the pressure follows the excess, per step."""
    warmup: float = 0.1
    """Share of the budget over which the weight rises from 0."""

    name = "l0"

    def __post_init__(self) -> None:
        if self.target <= 0 or self.coefficient <= 0 or self.rate < 0:
            raise ConfigError(
                f"TargetL0(target={self.target}, coefficient={self.coefficient}, "
                f"rate={self.rate}): target and coefficient must be positive, rate not negative."
            )

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        activation, forward = step.sae.activation, step.forward
        if not isinstance(activation, JumpReLU):
            raise ConfigError(f"TargetL0 needs a JumpReLU dictionary; this one has {activation}.")
        active = activation.active(forward.pre_acts, forward.pairs.indices)
        excess = active.sum() / forward.pairs.n_tokens / self.target - 1
        pressure = activation.pressure.to(excess.dtype)
        return self._ramp(step) * (self.coefficient * excess.square() + pressure * excess)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Move the pressure."""
        activation, forward = step.sae.activation, step.forward
        if isinstance(activation, JumpReLU) and self._ramp(step) == 1:
            active = (forward.latents != 0).sum() / forward.pairs.n_tokens
            excess = active / self.target - 1
            if excess.abs() < 0.5:
                activation.pressure += self.rate * excess

    def _ramp(self, step: Step) -> float:
        return min(1.0, step.progress / self.warmup if self.warmup else 1.0)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "target": self.target,
            "coefficient": self.coefficient,
            "rate": self.rate,
            "warmup": self.warmup,
        }
