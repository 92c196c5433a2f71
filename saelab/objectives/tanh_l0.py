"""TanhL0 and PreActivation: a smooth count of latents, and a pull on those that never fire."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.activation_functions import JumpReLU
from saelab.errors import ConfigError
from saelab.kernels.encoding import Selected, Selection
from saelab.objectives.base import Step, Term
from saelab.objectives.target_l0 import start_thresholds
from saelab.sae import SAE

__all__ = ["PreActivation", "TanhL0"]


@final
@dataclass(frozen=True, kw_only=True)
class TanhL0(Term):
    """Penalize latents by how sure it is that they are not zero.

        coefficient * progress * mean over tokens of sum_i tanh(scale f_i |W_dec[i]|), over the
        variance

    The weight rises over the whole run. Latents are not negative, so no absolute value is taken: at
    0, where the window of a JumpReLU needs it, that would have no slope.

    Source: Anthropic, "Dictionary learning optimization techniques", January 2025 update.
    """

    coefficient: float = 2.0
    """Weight at the end of the run."""
    scale: float = 4.0
    """How fast a latent counts fully, per unit of length it contributes."""
    start_l0: float = 100.0
    """Active latents per token that thresholds left to the objective start at."""

    name = "tanh_l0"

    def __post_init__(self) -> None:
        if min(self.coefficient, self.scale, self.start_l0) <= 0:
            raise ConfigError(
                f"TanhL0(coefficient={self.coefficient}, scale={self.scale}, "
                f"start_l0={self.start_l0}): all must be positive."
            )

    def start(self, sae: SAE, inputs: Float[Tensor, "token d_in"]) -> None:
        """Put thresholds where `start_l0` latents are active."""
        start_thresholds(sae, inputs, self.start_l0)

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        forward = step.forward
        lengths = torch.linalg.vector_norm(step.sae.W_dec, dim=1)[forward.pairs.indices]
        total = torch.tanh(self.scale * forward.latents * lengths).sum()
        weight = self.coefficient * step.progress
        return weight * total / (forward.pairs.n_tokens * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "coefficient": self.coefficient,
            "scale": self.scale,
            "start_l0": self.start_l0,
        }


@final
@dataclass(frozen=True, kw_only=True)
class PreActivation(Term):
    """Pull dead latents towards their thresholds.

        coefficient * mean over tokens of sum over dead i of ReLU(threshold_i - z_i) |W_dec[i]|,
        over the variance

    It costs as much as the encoder does for as many latents as are dead.

    Source: Anthropic, January 2025 update; only dead latents are pulled, as in SAELens.
    """

    coefficient: float = 3e-6
    """Weight of the term."""

    name = "pre_activation"

    def selection(self, sae: SAE, dead: Bool[Tensor, " d_sae"]) -> Selection | None:
        """Every token with every dead latent that is below its threshold."""
        threshold = _thresholds(sae)
        indices = dead.nonzero().squeeze(1)
        if len(indices) == 0:
            return None

        def select(pre_acts: Tensor) -> Selected:
            candidates = pre_acts[:, indices]
            row, place = (candidates < threshold[indices]).nonzero(as_tuple=True)
            return row, indices[place], candidates[row, place]

        return select

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        if self.name not in step.forward.extra:
            return step.forward.recons.new_zeros(())
        pairs, pre_acts = step.forward.extra[self.name]
        lengths = torch.linalg.vector_norm(step.sae.W_dec, dim=1)[pairs.indices]
        threshold = _thresholds(step.sae)[pairs.indices].to(pre_acts.dtype)
        missing = ((threshold - pre_acts).relu() * lengths).sum()
        return self.coefficient * missing / (pairs.n_tokens * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient}


def _thresholds(sae: SAE) -> Float[Tensor, " d_sae"]:
    if not isinstance(sae.activation, JumpReLU):
        raise ConfigError(
            f"PreActivation needs a JumpReLU dictionary, whose thresholds it pulls towards; this "
            f"one has {sae.activation}."
        )
    return sae.activation.threshold
