"""What a term of an objective may look at, and what it promises."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor

from saelab.kernels import GradientBuffers, squared_error
from saelab.kernels.encoding import Selection
from saelab.sae import SAE, PairForward

__all__ = ["Step", "Term", "relative_error"]


def _itself(value: Tensor) -> Tensor:
    return value


@final
@dataclass(slots=True, eq=False)
class Step:
    """What a term may look at."""

    sae: SAE
    forward: PairForward
    targets: Float[Tensor, "token d_out"]
    """What should be reconstructed, in normalized units."""
    variance: float
    """E|target - mean|^2 of a sample, in normalized units."""
    buffers: GradientBuffers | None
    """Where weight gradients go, for a term that decodes once more."""
    progress: float = 1.0
    """Share of the training budget spent so far, 0 to 1."""
    mean: Callable[[Tensor], Tensor] = _itself
    """From a mean over these tokens to that over the whole batch, of which they may be one of
    several equal parts; the gradient is that of the part. A term whose value is not itself a mean
    over tokens passes the means it is made of through it."""
    add: Callable[[Tensor], Tensor] = _itself
    """From what these latents add up to, to what all latents of the dictionary do."""


class Term(abc.ABC):
    """One named part of an objective."""

    name: str

    @abc.abstractmethod
    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value, already weighted, dimensionless."""

    def selection(
        self,
        sae: SAE,  # noqa: ARG002
        dead: Bool[Tensor, " d_sae"],  # noqa: ARG002
    ) -> Selection | None:
        """Pairs the term needs besides the family's own; found in `Step.forward.extra`."""
        return None

    def start(self, sae: SAE, inputs: Float[Tensor, "token d_in"]) -> None:  # noqa: B027
        """Prepare an untrained dictionary for the term.

        Args:
            sae: Its scale and center are already fitted.
            inputs: A sample of what it will read, in normalized units.
        """

    def update(self, step: Step) -> None:  # noqa: B027
        """Learn from a finished step, after its gradients and before the optimizer."""

    def state(self) -> dict[str, Tensor]:
        """What the term remembers from step to step; a checkpoint holds it."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state` gave."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Name and settings, recorded with the run."""


def relative_error(step: Step, recons: Float[Tensor, "token d_out"]) -> Float[Tensor, ""]:
    """Mean over tokens of |target - recons|^2, over the data's variance."""
    return squared_error(recons, step.targets) / (len(recons) * step.variance)
