"""What does one differentiable pass over chosen pairs give?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from saelab.kernels import Pairs

__all__ = ["FoundPairs", "PairForward", "Settle"]

FoundPairs = tuple[Pairs, Tensor]
"""A pattern and the pre-activation of each of its pairs."""
Settle = Callable[[Pairs, Tensor], Tensor | None]
"""Which of a pattern's pairs stay, as a mask; None for all."""


@final
@dataclass(slots=True, eq=False)
class PairForward:
    """One differentiable pass over chosen pairs, all in normalized units."""

    inputs: Float[Tensor, "token d_in"]
    """What was read, times scale_in."""
    pairs: Pairs
    """Which (token, latent) entries were selected."""
    pre_acts: Float[Tensor, " pair"]
    """z at those entries."""
    latents: Float[Tensor, " pair"]
    """f at those entries."""
    recons: Float[Tensor, "token d_out"]
    """f W_dec + b_dec, plus the skip connection if there is one."""
    extra: dict[str, tuple[Pairs, Tensor]]
    """Further pairs and their pre-activations, by the name of the term that asked for them."""
