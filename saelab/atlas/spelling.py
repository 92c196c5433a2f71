"""What is the text of token ids?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Int
from torch import Tensor

from saelab.models import LanguageModel

__all__ = ["Spelling"]

LONGEST = 64
"""Characters of one token in a joined text; `vocabulary` keeps it whole."""


@final
@dataclass(frozen=True, eq=False)
class Spelling:
    """Text of every token id, cut to LONGEST characters."""

    strings: list[str]
    """By token id."""

    @classmethod
    def of(cls, model: LanguageModel, ids: Int[Tensor, " place"]) -> "Spelling":
        """Of a model's whole vocabulary."""
        n = max(model.d_vocab, int(ids.max()) + 1)
        known = model.token_strings(list(range(n)))
        return cls([clipped(text) for text in known])

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as one string."""
        return "".join(self.strings[token] for token in ids)

    def texts(self, ids: Int[Tensor, " token"], lengths: Int[Tensor, " text"]) -> list[str]:
        """Several strings, from their tokens laid end to end."""
        pieces = [self.strings[token] for token in ids.tolist()]
        ends = np.cumsum(lengths.numpy())
        starts = ends - lengths.numpy()
        return ["".join(pieces[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def clipped(text: str) -> str:
    """A text of at most LONGEST characters that any file can hold: no NUL, no half characters.

    >>> clipped("a" * 99).count("a"), clipped("a" + chr(0))
    (63, 'a�')
    """
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return storable(text).replace("\0", "�")


def storable(text: str) -> str:
    """A text that UTF-8 can hold: lone surrogates replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
