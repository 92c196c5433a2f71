"""Which tokens does an atlas know about, and what stands around them?"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.tokens import Tokens

__all__ = ["Corpus", "Windows", "priorities"]


@final
@dataclass(frozen=True, eq=False)
class Corpus:
    """Token rows flattened: place = row * length + position."""

    ids: Int[Tensor, " place"]
    """Token ids."""
    document: Int[Tensor, " place"]
    """Document of each; -1 at BOS, separators and padding."""
    measured: Bool[Tensor, " place"]
    """Places that have codes."""
    length: int
    """Positions in a row."""

    @classmethod
    def of(cls, tokens: Tokens, measured: Bool[Tensor, "row pos"]) -> "Corpus":
        """The corpus of some token rows."""
        ids, document = (part.reshape(-1).long() for part in (tokens.ids, tokens.document))
        return cls(ids, document, measured.reshape(-1), tokens.length)

    @property
    def n_measured(self) -> int:
        """Measured tokens: the denominator of every density."""
        return int(self.measured.sum())

    def windows(self, center: Int[Tensor, " example"], before: int, after: int) -> "Windows":
        """The places around some centers, in the same row and document."""
        steps = torch.arange(-before, after + 1)
        place = center[:, None] + steps
        inside = self._belongs(place, center)
        first = center - (inside[:, :before]).sum(1)
        last = center + (inside[:, before + 1 :]).sum(1)
        return Windows(
            place.clamp(0, len(self.ids) - 1),
            inside,
            inside[:, :before].sum(1),
            self._belongs((first - 1)[:, None], center).squeeze(1),
            self._belongs((last + 1)[:, None], center).squeeze(1),
        )

    def _belongs(
        self, place: Int[Tensor, "example _"], center: Int[Tensor, " example"]
    ) -> Bool[Tensor, "example _"]:
        inside = (place >= 0) & (place < len(self.ids))
        place = place.clamp(0, len(self.ids) - 1)
        inside &= place // self.length == (center // self.length)[:, None]
        return inside & (self.document[place] == self.document[center][:, None])


@final
@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of text; those near a document's ends are shorter."""

    place: Int[Tensor, "example window"]
    """Places, only those `inside` meant."""
    inside: Bool[Tensor, "example window"]
    """Which belong to the row and document of the center."""
    peak: Int[Tensor, " example"]
    """How many of the places shown come before the center."""
    cut_before: Bool[Tensor, " example"]
    """The document's text goes on before the first one shown."""
    cut_after: Bool[Tensor, " example"]
    """It goes on after the last one shown."""

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.peak)


def priorities(place: Int[Tensor, " place"], seed: int) -> np.ndarray:
    """A pseudo-random number for each place (splitmix64), the same in every process.

    The k places of smallest priority are a random sample that does not depend on the order, the
    shards or the latent.

    >>> priorities(torch.tensor([0, 1]), 0).tolist() == priorities(torch.tensor([0, 1]), 0).tolist()
    True
    """
    x = place.numpy().astype(np.uint64)
    x = x + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
