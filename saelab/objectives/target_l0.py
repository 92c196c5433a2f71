"""TargetL0: thresholds that rise and fall until as many latents are active as were asked for."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import JumpReLU
from saelab.errors import ConfigError
from saelab.objectives.base import Step, Term
from saelab.sae import SAE

__all__ = ["TargetL0", "start_thresholds"]


@final
@dataclass(frozen=True, kw_only=True)
class TargetL0(Term):
    """Bring the mean number of active latents of a JumpReLU dictionary to a target.

        price * (L0 - target),   L0 = mean over tokens of sum_i [z_i > threshold_i]
        price = coefficient * mean of (threshold_i |W_dec[i]|)^2, over the variance

    with the window's gradient to the thresholds and none to the encoder, and after each step

        threshold_i <- threshold_i * (L0 / target)^gain

    The two divide the work. The common factor settles how many latents are active, whether or not
    any pre-activation lies in the window. The price settles which ones: it is what a latent at its
    threshold gains by itself, so it holds the thresholds where they are on average, and lowers
    those whose latents gain more. The learning rate ends at zero and the factor does not, so the
    finished dictionary is on target.

    Thresholds that were left to the objective start where `target` latents are active.

    Source: Rajamanoharan et al. 2024, whose target is a quadratic penalty; that stops short of it,
    where its slope equals what one more latent gains. Price and factor are ours.
    """

    target: float = 32.0
    """Active latents per token."""
    coefficient: float = 1.0
    """Price of an active latent, in units of what one at its threshold gains by itself."""
    gain: float = 0.05
    """Share of the (logarithmic) distance from the target that thresholds answer, per step."""

    name = "target_l0"

    def __post_init__(self) -> None:
        if self.target <= 0 or self.coefficient < 0 or not 0 < self.gain <= 1:
            raise ConfigError(
                f"TargetL0(target={self.target}, coefficient={self.coefficient}, "
                f"gain={self.gain}): the target must be positive, the coefficient not negative, "
                "the gain above 0 and at most 1."
            )

    def start(self, sae: SAE, inputs: Float[Tensor, "token d_in"]) -> None:
        """Put thresholds where `target` latents are active."""
        start_thresholds(sae, inputs, self.target)

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        activation, forward = _jumprelu(step.sae), step.forward
        active = activation.active(forward.pre_acts, forward.pairs.indices)
        l0 = step.add(active.sum() / forward.pairs.n_tokens)
        return self.price(step).to(l0.dtype) * (l0 - self.target)

    @torch.no_grad()
    def price(self, step: Step) -> Float[Tensor, ""]:
        """What an active latent costs, as a share of the data's variance."""
        lengths = torch.linalg.vector_norm(step.sae.W_dec, dim=1)
        size = _jumprelu(step.sae).threshold * lengths
        return self.coefficient * size.square().mean() / step.variance

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Move all thresholds by a common factor."""
        active = (step.forward.latents != 0).sum().float() / step.forward.pairs.n_tokens
        l0 = step.mean(step.add(active))
        # One step changes thresholds by e^gain at most, however far away the target is.
        off = (l0.clamp(min=1e-9) / self.target).log().clamp(-1, 1)
        _jumprelu(step.sae).threshold.mul_(torch.exp(self.gain * off))

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "target": self.target,
            "coefficient": self.coefficient,
            "gain": self.gain,
        }


@torch.no_grad()
def start_thresholds(sae: SAE, inputs: Float[Tensor, "token d_in"], l0: int | float) -> None:
    """Put every threshold of a JumpReLU at one value, above which `l0` latents a token lie.

    Args:
        sae: Untrained. Thresholds that were given are left alone.
        inputs: A sample of what it will read, in normalized units.
        l0: Active latents per token.
    """
    activation = _jumprelu(sae)
    if activation.start is not None:
        return
    pre_acts = sae.pre_activations(inputs / sae.normalization.scale_in).flatten()
    above = max(1, min(len(pre_acts), round(l0 * len(inputs))))
    border = pre_acts.topk(above, sorted=False).values.min()
    activation.threshold.fill_(max(border.item(), 1e-6))  # from zero no factor would move it


def _jumprelu(sae: SAE) -> JumpReLU:
    if not isinstance(sae.activation, JumpReLU):
        raise ConfigError(
            f"TargetL0 and TanhL0 need a JumpReLU dictionary; this one has {sae.activation}."
        )
    return sae.activation
