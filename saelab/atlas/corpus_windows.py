"""Which stretches of text show a latent at rest? A pool of random ones, and its tokens' places."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.atlas.config import AtlasConfig
from saelab.atlas.corpus import Corpus, Windows, priorities
from saelab.atlas.tail_pairs import TailPairs

__all__ = ["CorpusWindows"]

POOL = 256
"""Random stretches kept, at most: a latent that fires in a tenth of them has 230 others."""


@final
@dataclass(frozen=True, eq=False)
class CorpusWindows:
    """Random stretches from different rows, and an index of the corpus by token."""

    center: Int[Tensor, " window"]
    """The place each was drawn at."""
    windows: Windows
    """The places around it, as many as an example shows."""
    number: Int[Tensor, " place"]
    """Which window each place is in; -1 for none."""
    order: np.ndarray
    """Measured places by token id, then in a random order."""
    first: np.ndarray
    """Where each token id begins in `order`, and after the last where it ends."""

    @classmethod
    def of(cls, corpus: Corpus, config: AtlasConfig) -> "CorpusWindows":
        """Draw one measured place in each of POOL rows."""
        measured = corpus.measured.nonzero().squeeze(1)
        priority = priorities(measured, config.seed)
        shuffled = measured.numpy()[np.argsort(priority, kind="stable")]
        one_per_row = shuffled[np.sort(np.unique(shuffled // corpus.length, return_index=True)[1])]
        center = torch.from_numpy(np.sort(one_per_row[:POOL]))
        windows = corpus.windows(center, config.before, config.after)
        number = torch.full((len(corpus.ids),), -1)
        mine = torch.arange(len(center))[:, None].expand_as(windows.place)
        number[windows.place[windows.inside]] = mine[windows.inside]
        ids = corpus.ids[measured].numpy()
        order = np.lexsort((priorities(measured, config.seed + 1), ids))
        first = np.searchsorted(ids[order], np.arange(int(corpus.ids.max()) + 2))
        return cls(center, windows, number, measured.numpy()[order], first)

    def fired(self, tails: TailPairs) -> tuple[np.ndarray, np.ndarray]:
        """(tail, window) for every window in which a tail fires, sorted."""
        number = self.number[tails.token]
        n = max(1, len(self.center))
        flat = np.unique((tails.tail * n + number)[number >= 0].numpy())
        return flat // n, flat % n

    def places_of(self, token: np.ndarray, step: np.ndarray) -> np.ndarray:
        """The `step`-th place, in random order, of each token; -1 where it has fewer."""
        place = self.first[token] + step
        there = place < self.first[token + 1]
        return np.where(there, self.order[np.minimum(place, len(self.order) - 1)], -1)

    def columns(
        self, corpus: Corpus, texts: Callable[[Tensor, Tensor], list[str]]
    ) -> dict[str, Any]:
        """The columns of `windows`."""
        inside = self.windows.inside
        lengths = inside.sum(1)
        ids = corpus.ids[self.windows.place][inside]
        first = self.center - self.windows.peak
        return {
            "number": torch.arange(len(self.center)),
            "row": first // corpus.length,
            "position": first % corpus.length,
            "document": corpus.document[self.center],
            "token_ids": [part.tolist() for part in ids.split(lengths.tolist())],
            "text": texts(ids, lengths),
        }
