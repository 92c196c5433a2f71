"""How does a part of a batch learn a mean over all of it, when parts come one after the other?

Every part asks for the same means in the same order. The first that is not known ends the part's
turn; once all parts have said theirs, it is known, and the parts start again.
"""

from typing import final

from torch import Tensor

from saelab.distributed import Ranks

__all__ = ["BatchMeans", "UnknownMean"]


class UnknownMean(Exception):
    """A mean over the whole batch is asked for that is not known yet."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value
        """That of the part."""


@final
class BatchMeans:
    """Means over a whole batch, as `Step.mean`.

    Args:
        ranks: Processes that each have a part of the batch.
        in_parts: Whether this process takes its own part in several turns.
    """

    def __init__(self, ranks: Ranks, in_parts: bool) -> None:
        self._ranks, self._in_parts = ranks, in_parts
        self._known: list[Tensor] = []
        self._place = 0

    def begin_part(self) -> None:
        """Start a turn: the first mean is asked for next."""
        self._place = 0

    def learn(self, mean_of_parts: Tensor) -> None:
        """Note the next mean, given that over this process's parts."""
        self._known.append(self._exchanged(mean_of_parts))

    def __call__(self, value: Tensor) -> Tensor:
        """The mean over the whole batch, with the gradient of this part's.

        Raises:
            UnknownMean: Other parts have to be asked first.
        """
        if not self._in_parts and not self._ranks.divides_tokens:
            return value
        if not self._in_parts:
            whole = self._exchanged(value.detach())
        elif self._place == len(self._known):
            raise UnknownMean(value.detach())
        else:
            whole = self._known[self._place]
            self._place += 1
        return whole + (value - value.detach()) if value.requires_grad else whole

    def _exchanged(self, value: Tensor) -> Tensor:
        return self._ranks.mean(value) if self._ranks.divides_tokens else value
