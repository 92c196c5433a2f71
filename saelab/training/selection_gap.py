"""How much worse does a dictionary do with the selection of inference than with that of training?

Some families choose latents in training by something that inference does not have: the rest of
the batch, or the gradient of the model's loss. The gap says what leaving it out costs.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.objectives import Step
from saelab.sae import SAE, PairForward
from saelab.training.optimizers import Adam
from saelab.training.upkeep import Upkeep

__all__ = ["Gap", "SelectionGap", "selection_gap"]


@final
@dataclass(frozen=True, kw_only=True)
class Gap:
    """One batch, selected both ways with the same weights."""

    fvu_training: float
    """Share of the variance missed, with the selection of training."""
    fvu_inference: float
    """The same with that of inference."""
    l0_training: float
    """Active latents per token in training."""
    l0_inference: float
    """And at inference."""
    shared: float
    """Share of the entries active in training that are active at inference too."""

    def describe(self) -> str:
        """One sentence."""
        return (
            f"Selecting as inference does gives FVU {self.fvu_inference:.4f} and L0 "
            f"{self.l0_inference:.1f}, where training has {self.fvu_training:.4f} and "
            f"{self.l0_training:.1f}; {self.shared:.1%} of its entries are the same."
        )


@torch.no_grad()
def selection_gap(
    sae: SAE, inputs: Float[Tensor, "token d_in"], targets: Float[Tensor, "token d_out"]
) -> Gap:
    """Compare both selections on one batch.

    Args:
        sae: Its activation function's `begin_step` has been told of these rows, if it reads others.
        inputs: Activations times scale_in.
        targets: What to reconstruct, times scale_out.
    """
    training = sae.forward_pairs(inputs, training=True)
    inference = sae.forward_pairs(inputs)
    spread = (targets - targets.mean(0)).square().sum()

    def fvu(forward: PairForward) -> float:
        return float((targets - forward.recons).square().sum() / spread)

    theirs, ours = _active(training), _active(inference)
    both = int(torch.isin(theirs, ours, assume_unique=True).sum())
    return Gap(
        fvu_training=fvu(training),
        fvu_inference=fvu(inference),
        l0_training=len(theirs) / len(inputs),
        l0_inference=len(ours) / len(inputs),
        shared=both / max(len(theirs), 1),
    )


def _active(forward: PairForward) -> Tensor:
    """One number for each active entry."""
    pairs, active = forward.pairs, forward.latents != 0
    return pairs.tokens()[active] * pairs.n_latents + pairs.indices[active]


@final
class SelectionGap(Upkeep):
    """Records the gap among the run's events, every so many tokens.

    Args:
        every_tokens: Tokens between two looks; each costs two more forward passes over a batch.
    """

    name = "selection_gap"

    def __init__(self, every_tokens: int = 500_000) -> None:
        if every_tokens < 1:
            raise ConfigError(f"SelectionGap(every_tokens={every_tokens}) must be positive.")
        self.every_tokens = every_tokens

    def after_step(
        self,
        step: Step,
        optimizer: Adam,  # noqa: ARG002
        dead: Bool[Tensor, " d_sae"],  # noqa: ARG002
        tokens_done: int,
    ) -> str | None:
        """Look, when it is time, at the step's batch with the weights after it."""
        before = tokens_done - step.forward.pairs.n_tokens
        if before // self.every_tokens == tokens_done // self.every_tokens:
            return None
        return selection_gap(step.sae, step.forward.inputs, step.targets).describe()

    def to_json(self) -> dict[str, Any]:
        """Name and interval."""
        return {"name": self.name, "every_tokens": self.every_tokens}
