"""How well do the batches a store serves mix its corpus?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.store.addresses import Addresses
from saelab.store.shuffling import windows
from saelab.store.sources import Source

__all__ = ["Mixing", "doubts", "expected_distinct", "measure_mixing"]

_BATCHES = 8


def expected_distinct(counts: Int[Tensor, " group"], batch_size: int) -> float:
    """Groups met, on average, by a batch drawn without replacement from all the rows.

    sum over groups of 1 - C(N - n_g, B) / C(N, B), with N rows in all, n_g of them in group g.

    >>> round(expected_distinct(torch.tensor([2, 2]), 2), 6)  # 1 + the chance 2/3 that they differ
    1.666667
    """
    n = counts.double()
    total = n.sum()
    size = min(batch_size, int(total))
    others = total - n
    log_missed = (
        torch.lgamma(others + 1)
        - torch.lgamma((others - size).clamp(min=0) + 1)
        - torch.lgamma(total + 1)
        + torch.lgamma(total - size + 1)
    )
    missed = torch.where(others >= size, log_missed.exp(), torch.zeros_like(n))
    return float((1 - missed).sum())


@final
@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How well batches mix a corpus, against a shuffle of all its tokens."""

    batch_size: int
    """Tokens per batch."""
    documents: float
    """Distinct documents in a batch, on average."""
    documents_full_shuffle: float
    """The same, expected if every token had been shuffled."""
    rows: float
    """Distinct token rows (contexts) in a batch, on average."""
    rows_full_shuffle: float
    """The same, expected if every token had been shuffled."""

    @property
    def quality(self) -> float:
        """The worse of the two ratios to a full shuffle; 1 is as good as it gets."""
        return min(self.documents / self.documents_full_shuffle, self.rows / self.rows_full_shuffle)


def measure_mixing(
    source: Source, sizes: Sequence[int], *, batch_size: int, window_tokens: int, seed: int
) -> Mixing:
    """Count what the first window's batches hold, against a shuffle of everything.

    Reads every address, 16 bytes a token, and no activations.
    """
    window = next(windows(sizes, seed=seed, window_tokens=window_tokens))
    served = Addresses.cat([source.planned(chunk) for chunk in window.chunks])
    batches = [served[index] for index in window.order().split(batch_size)[:_BATCHES]]
    batches = [batch for batch in batches if len(batch) == batch_size] or batches
    size = len(batches[0])
    everything = Addresses.cat([source.planned(chunk) for chunk in range(len(sizes))])

    def expected(column: str) -> float:
        counts = torch.unique(getattr(everything, column), return_counts=True)[1]
        return expected_distinct(counts, size)

    def measured(column: str) -> float:
        return sum(len(torch.unique(getattr(batch, column))) for batch in batches) / len(batches)

    return Mixing(
        batch_size=size,
        documents=measured("document"),
        documents_full_shuffle=expected("document"),
        rows=measured("row"),
        rows_full_shuffle=expected("row"),
    )


def doubts(n_tokens: int, batch_size: int, window_tokens: int) -> list[str]:
    """What is doubtful about serving such batches from such a store; reads nothing."""
    found = []
    if batch_size > n_tokens:
        found.append(
            f"A batch of {batch_size} tokens is larger than the store ({n_tokens} tokens): every "
            "batch repeats rows. Harvest more tokens or use smaller batches."
        )
    if window_tokens < min(8 * batch_size, n_tokens):
        found.append(
            f"The shuffle window ({window_tokens} tokens) is too small for batches of "
            f"{batch_size}: consecutive batches come from the same contexts. Use "
            f"window_tokens={8 * batch_size} or more."
        )
    return found
