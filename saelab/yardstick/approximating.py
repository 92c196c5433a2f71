"""Test 1: can a reconstruction stand for the activation, and is nothing lost in what it leaves?

    sufficiency   D(a-hat) / D(a)
    necessity     ( D(a) - D(a-bar + a - a-hat) ) / ( D(a) - D(a-bar) )

with D the mean logit difference of the prompts with that activation at the place. 1 is best in
both: nothing is missed, and taking the reconstruction away costs as much as taking everything away
(mean ablation). Where mean ablation at a place costs nothing, the place says nothing.
"""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from saelab.models import LanguageModel
from saelab.yardstick.ioi import IoiPrompts
from saelab.yardstick.running import outcome

__all__ = ["Approximation", "approximate"]

SMALL = 1e-6


@final
@dataclass(frozen=True, kw_only=True)
class Approximation:
    """One reconstruction at one place."""

    clean: float
    """D(a), nats."""
    ablated: float
    """D(a-bar): mean ablation."""
    replaced: float
    """D(a-hat)."""
    without: float
    """D(a-bar + a - a-hat)."""

    @property
    def sufficiency(self) -> float | None:
        """D(a-hat) / D(a); None if the model does not do the task."""
        return self.replaced / self.clean if abs(self.clean) > SMALL else None

    @property
    def necessity(self) -> float | None:
        """Share of mean ablation's drop; None if that changes nothing."""
        drop = self.clean - self.ablated
        return (self.clean - self.without) / drop if abs(drop) > SMALL else None


def approximate(
    model: LanguageModel,
    prompts: IoiPrompts,
    hook: str,
    position: str,
    x: Float[Tensor, "prompt d"],
    recons: Float[Tensor, "prompt d"],
    mean: Float[Tensor, " d"],
    *,
    known: tuple[float, float] | None = None,
) -> Approximation:
    """Run the prompts with the reconstruction, and with what it leaves.

    Args:
        model: The model.
        prompts: Prompts that fitted nothing.
        hook: Where activations are exchanged.
        position: At which named position.
        x: Their activations there.
        recons: What stands for them.
        mean: a-bar, of the prompts that fitted.
        known: D(a) and D(a-bar) of these prompts, if they have been measured before.
    """

    def difference(values: Tensor | None) -> float:
        return outcome(model, prompts, hook, position, values).mean_difference

    clean, ablated = known or (difference(None), difference(mean.expand_as(x).contiguous()))
    return Approximation(
        clean=clean,
        ablated=ablated,
        replaced=difference(recons),
        without=difference(mean + x - recons),
    )
