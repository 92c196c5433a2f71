"""L1: a price on the length that every latent contributes."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.objectives.base import Step, Term

__all__ = ["L1", "contributions"]


@final
@dataclass(frozen=True, kw_only=True)
class L1(Term):
    """Penalize the length that each latent contributes.

        coefficient * mean over tokens of sum_i |f_i| |W_dec[i]|, over the variance

    so that, with `Reconstruction`, the objective is the published |error|^2 + coefficient * L1 up
    to a common factor. The gradient reaches the lengths too: with free ones and a penalty on f
    alone, latents would shrink, directions grow, and nothing would become sparse. With directions
    of norm 1 it is the L1 norm of f. It shrinks latents; JumpReLU and TopK do not.

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
        weight = self.coefficient * min(1.0, step.progress / self.warmup if self.warmup else 1.0)
        return weight * contributions(step).sum() / (step.forward.pairs.n_tokens * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient, "warmup": self.warmup}


def contributions(step: Step) -> Float[Tensor, " pair"]:
    """|f_i| |W_dec[i]| of the step's pairs."""
    lengths = torch.linalg.vector_norm(step.sae.W_dec, dim=1)
    return step.forward.latents.abs() * lengths[step.forward.pairs.indices]
