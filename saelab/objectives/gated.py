"""Terms that teach a Gated dictionary which latents to open, without shrinking their values."""

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import Gated
from saelab.errors import ConfigError
from saelab.kernels import sparse_decode
from saelab.objectives.base import Step, Term, relative_error

__all__ = ["GateL1", "GateReconstruction"]


@final
@dataclass(frozen=True, kw_only=True)
class GateL1(Term):
    """Penalize how far gates are open.

        coefficient * mean over tokens of sum_i ReLU(pi_i), over the variance

    Directions must be kept at norm 1: no length enters here, as none does in the paper.

    Source: Rajamanoharan et al. 2024, equation 8.
    """

    coefficient: float = 5.0
    """Weight of the penalty."""
    warmup: float = 0.05
    """Share of the budget over which it rises from 0."""

    name = "gate_l1"

    def __post_init__(self) -> None:
        if self.coefficient <= 0 or not 0 <= self.warmup <= 1:
            raise ConfigError(
                f"GateL1(coefficient={self.coefficient}, warmup={self.warmup}): the coefficient "
                "must be positive, the warm-up a share of the budget."
            )

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        weight = self.coefficient * min(1.0, step.progress / self.warmup if self.warmup else 1.0)
        return weight * gates(step, self).sum() / (step.forward.pairs.n_tokens * step.variance)

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, "coefficient": self.coefficient, "warmup": self.warmup}


@final
@dataclass(frozen=True, kw_only=True)
class GateReconstruction(Term):
    """Reconstruct from the gates, through a decoder that does not learn from it.

        |target - (ReLU(pi) stop(W_dec) + stop(b_dec))|^2, relative to the variance

    It is what keeps gates open where they matter. Were the decoder to learn from it, it would bend
    to the shrunken gates.

    Source: Rajamanoharan et al. 2024, equation 8.
    """

    name = "gate_reconstruction"

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        sae, forward = step.sae, step.forward
        opened = gates(step, self)
        recons = sparse_decode(opened, sae.W_dec.detach(), sae.b_dec.detach(), forward.pairs)
        if sae.W_skip is not None:
            recons = recons + forward.inputs @ sae.W_skip.detach()
        return relative_error(step, recons)

    def to_json(self) -> dict[str, Any]:
        """Just the name."""
        return {"name": self.name}


def gates(step: Step, term: Term) -> Float[Tensor, " pair"]:
    """ReLU(pi) of the step's pairs."""
    activation = step.sae.activation
    if not isinstance(activation, Gated):
        raise ConfigError(
            f"{type(term).__name__} needs a Gated dictionary; this one has {activation}."
        )
    return activation.gate(step.forward.pre_acts, step.forward.pairs.indices)
