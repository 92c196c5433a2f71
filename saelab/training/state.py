"""What does the next step depend on? Everything a checkpoint holds, by name.

    sae.*            weights and buffers of the whole dictionary
    optimizer.*      moments and the number of steps
    term.NAME.*      what a term remembers
    upkeep.NAME.*    what an upkeep remembers
    since_fired      tokens since each latent last fired

Where latents are divided among processes the tensors are put together first: a checkpoint does not
say how many processes wrote it.
"""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from saelab.objectives import Term
from saelab.sae import SAE
from saelab.training.checkpoints import under
from saelab.training.firing import Firing
from saelab.training.latent_shards import Shard
from saelab.training.optimizers import Adam
from saelab.training.upkeep import Upkeep

__all__ = ["TrainingState"]


@final
class TrainingState:
    """The parts of a run that change with every step.

    Args:
        sae: The whole dictionary.
        optimizer: Its moments, or those of this rank's shard.
        firing: Its counters, or those of this rank's shard.
        terms: The objective.
        upkeep: What is done between steps.
        shard: How latents are divided, where they are.
    """

    def __init__(
        self,
        sae: SAE,
        optimizer: Adam,
        firing: Firing,
        terms: Sequence[Term],
        upkeep: Sequence[Upkeep],
        shard: Shard | None = None,
    ) -> None:
        self._sae, self._optimizer, self._firing, self._shard = sae, optimizer, firing, shard
        named = {f"term.{term.name}": term for term in terms}
        self._owners: dict[str, Term | Upkeep] = {
            **named,
            **{f"upkeep.{one.name}": one for one in upkeep},
        }

    def gather(self) -> None:
        """Bring the whole dictionary up to date."""
        if self._shard is not None:
            self._shard.give(self._sae)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name; every rank has to ask."""
        self.gather()
        changing = {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        changing["since_fired"] = self._firing.since
        if self._shard is not None:
            changing = {name: self._shard.all(name, value) for name, value in changing.items()}
        for place, owner in self._owners.items():
            changing |= {f"{place}.{name}": value for name, value in owner.state().items()}
        return {f"sae.{name}": value for name, value in self._sae.state_dict().items()} | changing

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave.

        Raises:
            KeyError: One is missing.
            RuntimeError: One is of another shape.
        """
        self._sae.load_state_dict(under("sae.", tensors))
        for place, owner in self._owners.items():
            owner.load_state(under(f"{place}.", tensors))
        own = tensors
        if self._shard is not None:
            self._shard.take(self._sae)
            own = {name: self._shard.part(name, value) for name, value in tensors.items()}
        self._optimizer.load(under("optimizer.", own))
        self._firing.since.copy_(own["since_fired"])
