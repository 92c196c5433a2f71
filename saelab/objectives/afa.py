"""AFA: the term that asks a code to be as long as the activation it stands for."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.objectives.base import Step, Term

__all__ = ["AFA"]


@final
@dataclass(frozen=True, kw_only=True)
class AFA(Term):
    """Match the length of the code with the length of the centred activation.

        coefficient * d_in * mean over tokens of (|f * |W_dec|| - |c|)^2, over the variance

    where f * |W_dec| holds f_i |W_dec[i]|, and c is the encoder's input (centred if b_dec is the
    pre-bias), a constant. The published code measures |f| against the activation before centring
    while its selection uses the centred one; here both do.

    Source: Lee et al. 2025, "Evaluating and designing sparse autoencoders by approximating
    quasi-orthogonality". There the squared error of the reconstruction is a mean over coordinates
    and here it is a sum, hence the factor d_in.
    """

    coefficient: float = 1 / 32
    """Weight of the term; the paper tries 1/128 to 1/16."""

    name = "afa"

    def __post_init__(self) -> None:
        if not self.coefficient > 0:
            raise ConfigError(
                f"AFA(coefficient={self.coefficient}) must be positive; leave the term out to "
                "train without it."
            )

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        sae, forward = step.sae, step.forward
        centred = forward.inputs - sae.b_dec if sae.pre_bias else forward.inputs
        wanted = torch.linalg.vector_norm(centred.detach(), dim=1)
        lengths = torch.linalg.vector_norm(sae.W_dec, dim=1)
        squares = (forward.latents * lengths[forward.pairs.indices]).square()
        tokens = forward.pairs.tokens()
        sums = step.add(torch.zeros_like(wanted).index_add(0, tokens, squares))
        silent = sums == 0  # a square root has no slope at 0
        found = torch.where(silent, 0.0, torch.where(silent, 1.0, sums).sqrt())
        excess = (found - wanted).square().mean()
        return self.coefficient * sae.d_in * excess / step.variance

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient}
