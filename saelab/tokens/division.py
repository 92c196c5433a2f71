"""Which documents are held out, so that training and evaluation text share none?"""

import numpy as np
from jaxtyping import Int

from saelab.errors import CorpusError

__all__ = ["count_of", "draw_documents"]


def draw_documents(
    document: Int[np.ndarray, " token"], held_out: float, seed: int
) -> Int[np.ndarray, " document"]:
    """Documents, drawn at random, that together have about the wanted share of the tokens."""
    present, sizes = np.unique(document, return_counts=True)
    if len(present) < 2:
        raise CorpusError(
            f"{count_of(len(present), 'document')} cannot be divided by document. Give more "
            "documents, or hold out the last rows with split(by='position')."
        )
    target = held_out * sizes.sum()
    drawn: list[int] = []
    have = 0
    for index in np.random.default_rng(seed).permutation(len(present)).tolist():
        # a document that would overshoot by more than what is missing is passed over
        if have + sizes[index] / 2 <= target and len(drawn) < len(present) - 1:
            drawn.append(index)
            have += sizes[index]
    return present[drawn or [int(sizes.argmin())]]


def count_of(number: int, noun: str) -> str:
    """3 and "row" as "3 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
