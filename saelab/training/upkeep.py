"""What a run does to a dictionary between optimizer steps, where no gradient says how."""

import abc
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from saelab.objectives import Step
from saelab.training.optimizers import Adam

__all__ = ["Upkeep"]


class Upkeep(abc.ABC):
    """One named kind of maintenance, called after every optimizer step.

    What it remembers from step to step is a tensor in `state`, so that checkpoints hold it and a
    resumed run ends with the same bits.
    """

    name: str

    @abc.abstractmethod
    def after_step(
        self, step: Step, optimizer: Adam, dead: Bool[Tensor, " d_sae"], tokens_done: int
    ) -> str | None:
        """Change the dictionary in place.

        Args:
            step: The step just taken; its forward pass was computed with the weights before it.
            optimizer: For forgetting the moments of latents that were given new weights.
            dead: Latents that counted as dead in this step.
            tokens_done: Tokens trained on so far, this step included.

        Returns:
            What was done, as a sentence for the run's events; None if that is not worth saying.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Name and settings, recorded with the run."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Take back what `state` gave."""
