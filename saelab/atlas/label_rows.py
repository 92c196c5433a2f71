"""The rows of `labels`, and the best of them for `latents`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch

from saelab.atlas.band import Band
from saelab.atlas.corpus import Corpus, Windows
from saelab.atlas.signatures import (
    Signature,
    best_of,
    context_signatures,
    key_signatures,
    output_signature,
)

__all__ = ["BandLabels"]


@final
@dataclass(frozen=True, eq=False)
class BandLabels:
    """The automatic labels of a band."""

    band: Band
    """Which band."""

    @cached_property
    def found(self) -> list[list[Signature]]:
        """Every description of each tail."""
        band, text = self.band, self.band.sources.spelling.text
        fired = band.count.numpy()
        found: list[list[Signature]] = [[] for _ in range(band.tails.n_tails)]
        for counts in band.key_counts:
            for one in key_signatures(counts, fired, text):
                found[one.tail].append(one)
        for one in self._contexts():
            found[one.tail].append(one)
        for tail in np.flatnonzero(fired).tolist():
            found[tail] += self._outputs(tail)
        return found

    @cached_property
    def best(self) -> list[Signature | None]:
        """The one to show first, of each tail."""
        return [best_of(some) for some in self.found]

    def columns(self) -> dict[str, Any]:
        """The columns of `labels`."""
        rows = [
            (one, one is best)
            for some, best in zip(self.found, self.best, strict=True)
            for one in some
        ]
        tail = np.array([one.tail for one, _ in rows], dtype=np.int64)
        names = ("kind", "text", "score", "score_name", "precision", "recall")
        columns = {name: [getattr(one, name) for one, _ in rows] for name in names}
        return {**self.band.keys(tail), **columns, "best": [best for _, best in rows]}

    def latent_columns(self) -> dict[str, Any]:
        """Those of `latents`: the label of each side, and of the side that fires more."""
        sides = self.band.tails.sides
        heavier = self.band.count.reshape(-1, sides).argmax(1).tolist()
        main = [self.best[latent * sides + side] for latent, side in enumerate(heavier)]
        texts = [one.text if one else "" for one in self.best]
        return {
            "auto_label": [one.text if one else "" for one in main],
            "auto_label_pos": texts[::sides],
            "auto_label_neg": texts[1::sides] if sides == 2 else [""] * len(main),
            "auto_kind": [one.kind if one else None for one in main],
            "auto_score": [one.score if one else None for one in main],
            "auto_score_name": [one.score_name if one else None for one in main],
        }

    def _contexts(self) -> list[Signature]:
        band, corpus = self.band, self.band.sources.corpus
        n = band.sources.config.before
        firing = band.tails.tail[band.chosen.pair].numpy()
        tail, place = band.silent
        return context_signatures(
            (firing, _before(band.example_windows, corpus, n)),
            (tail, _before(corpus.windows(place, n, 0), corpus, n)),
            band.tails.n_tails,
            band.sources.spelling.text,
        )

    def _outputs(self, tail: int) -> list[Signature]:
        if (shape := self.band.logit_shape) is None or not shape.promoted.shape[1]:
            return []
        latent, negative = divmod(tail, self.band.tails.sides)
        ids = (shape.suppressed if negative else shape.promoted)[latent]
        effects = -shape.suppressed_by[latent] if negative else shape.promoted_by[latent]
        words = [self.band.sources.spelling.text([token]) for token in ids.tolist()]
        return [output_signature(tail, words, float(effects.mean()), float(shape.std[latent]))]


def _before(windows: Windows, corpus: Corpus, n: int) -> np.ndarray:
    """Token ids before the peak, -1 where there are none."""
    ids = torch.where(windows.inside, corpus.ids[windows.place], -1)
    return ids[:, :n].numpy()
