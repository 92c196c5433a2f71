"""How are the strongest entries of a whole batch found without keeping its [token, d_sae] matrix?

Each chunk of pre-activations gives up the entries above a guess, and the border is found exactly
among those once all chunks are seen. The guess follows the borders of earlier batches; where it
turns out too high, it is lowered and the batch is encoded again. What is kept never depends on the
guess: equal strengths at the border are decided by their place, first token first.
"""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.activation_functions.base import SelectAgain
from saelab.kernels import Pairs

__all__ = ["BatchBorder", "LatentBorders", "divided"]

GUESS = 0.9
"""The next batch's candidates are the entries above this share of the last border."""
SAMPLE = 1 << 16
"""Entries looked at for the first guess."""
SPARE = 12
"""Candidates wanted for one latent: twice its budget and this many more."""


@final
class BatchBorder:
    """The strongest entries of a batch, wherever they are."""

    def __init__(self) -> None:
        self.guess: float | None = None
        self.repeats = 0
        """How often a batch had to be encoded again because the guess was too high."""

    def level(self, pre_acts: Float[Tensor, "row d_sae"], share: float, signed: bool) -> float:
        """The guess: entries of greater strength are candidates.

        Args:
            pre_acts: A chunk, of which the very first guess is made.
            share: Share of all entries that will be kept.
            signed: Strength is size.
        """
        if self.guess is None:  # twice the share of a sample lies above it
            sample = pre_acts.flatten()[:: max(1, pre_acts.numel() // SAMPLE)]
            sample = sample.abs() if signed else sample
            above = min(len(sample), max(1, round(2 * share * len(sample))))
            self.guess = max(sample.topk(above).values.min().item(), 0.0)
        return self.guess

    def settle(
        self, strength: Float[Tensor, " pair"], budget: int
    ) -> tuple[Bool[Tensor, " pair"] | None, float | None]:
        """The `budget` strongest candidates, exactly.

        Returns:
            Which stay (None for all), and the weakest strength among them; None where there were
            fewer positive entries than the budget, so that no border decided anything.

        Raises:
            SelectAgain: The guess was too high; it is lower now.
        """
        if len(strength) < budget and self.guess:
            self.guess = self.guess / 2 if self.guess > 1e-6 else 0.0
            self.repeats += 1
            raise SelectAgain
        if len(strength) < budget:
            self.guess = 0.0
            return None, None
        border = strength.topk(budget, sorted=False).values.min()
        kept = strength > border
        ties = (strength == border).nonzero().squeeze(1)
        kept[ties[: budget - int(kept.sum())]] = True
        self.guess = GUESS * border.item()
        return kept, border.item()


@final
class LatentBorders:
    """The strongest entries of each latent over a batch."""

    def __init__(self) -> None:
        self.guess: Float[Tensor, " d_sae"] | None = None
        self.repeats = 0
        """How often a batch had to be encoded again because some guess was too high."""

    def candidates(
        self, strength: Float[Tensor, "row d_sae"], shares: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "row d_sae"]:
        """The entries above their latent's guess.

        Args:
            strength: Of a chunk.
            shares: Share of the tokens that each latent will keep, for the first guess.
        """
        if self.guess is None or self.guess.device != strength.device:
            ranks = (2 * shares * len(strength)).ceil().long() + SPARE
            ranked = strength.sort(dim=0, descending=True).values
            places = ranks.clamp(max=len(strength)).unsqueeze(0) - 1
            self.guess = ranked.gather(0, places).squeeze(0).clamp(min=0)
        return strength > self.guess

    def settle(
        self, pairs: Pairs, strength: Float[Tensor, " pair"], budgets: Int[Tensor, " d_sae"]
    ) -> tuple[Bool[Tensor, " pair"], Float[Tensor, " d_sae"]]:
        """Each latent's strongest candidates, at most as many as its budget.

        Returns:
            Which stay, and for each latent the weakest strength among them; NaN where there were
            fewer positive entries than the budget.

        Raises:
            SelectAgain: Some guess was too high; it is 0 now.
        """
        guess, latents = self.guess, pairs.indices
        counts = torch.bincount(latents, minlength=len(budgets))
        short = counts < budgets
        if guess is not None and bool((short & (guess > 0)).any()):
            guess[short] = 0
            self.repeats += 1
            raise SelectAgain
        order = torch.sort(strength, descending=True, stable=True).indices
        order = order[torch.sort(latents[order].to(torch.int32), stable=True).indices]
        rank = torch.arange(len(order), device=order.device)
        rank -= (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=len(order))
        ranked = latents[order]
        kept = torch.zeros_like(order, dtype=torch.bool)
        kept[order] = rank < budgets[ranked]
        borders = strength.new_full((len(budgets),), torch.nan)
        last = order[rank == budgets[ranked] - 1]
        borders[latents[last]] = strength[last]
        if guess is not None:
            # Lower where few were spare; where many were, to what would have left just enough.
            guess[2 * counts < 3 * budgets + SPARE] *= GUESS
            spare = order[rank == 2 * budgets[ranked] + SPARE]
            guess[latents[spare]] = strength[spare]
        return kept, borders


def divided(weights: Float[Tensor, " d_sae"], total: int, most: int) -> Int[Tensor, " d_sae"]:
    """Whole budgets in proportion to weights, each from 1 to `most`, that sum to `total`.

    What rounding down leaves goes to the largest remainders, the first of equal ones.

    Args:
        weights: Positive.
        total: At least the number of weights, at most `most` times it.
        most: Largest budget.

    >>> divided(torch.tensor([4.0, 2.0, 1.0, 0.01]), 10, 5).tolist()
    [5, 3, 1, 1]
    """
    weights = weights.double()
    low, high = 0.0, most / float(weights.min())
    for _ in range(200):  # bisection: the sum of clamped budgets grows with the factor
        factor = (low + high) / 2
        if float((factor * weights).clamp(1, most).sum()) < total:
            low = factor
        else:
            high = factor
    exact = (high * weights).clamp(1, most)
    # Bisection stops within rounding of the truth: a whole budget must not lose one to that.
    budgets = (exact + 1e-9).floor()
    remainder = torch.where(budgets < most, exact - budgets, -1.0)
    missing = total - int(budgets.sum())
    budgets[remainder.sort(descending=True, stable=True).indices[:missing]] += 1
    return budgets.long()
