"""What do the documents say? Token ids and their spelling, so that no model is needed to show them.

Text comes from whoever wrote the corpus: whatever shows it must escape it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.errors import ShapeError

__all__ = ["Snippet", "Texts"]


@final
@dataclass(frozen=True, kw_only=True)
class Snippet:
    """A stretch of text around one token."""

    before: str
    """What precedes the token."""
    token: str
    """The token."""
    after: str
    """What follows it."""

    def __str__(self) -> str:
        """One line, the token in angle quotes."""
        return " ".join(f"{self.before}‹{self.token}›{self.after}".split())


@final
@dataclass(frozen=True, eq=False)
class Texts:
    """Tokens of several documents laid end to end."""

    ids: Int[Tensor, " word"]
    """Index into `strings` of each token."""
    offsets: Int[Tensor, " document_plus_one"]
    """Where each document starts, and after the last where it ends."""
    strings: Sequence[str]
    """Each different token's text."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if int(self.offsets[-1]) != n or (n and int(self.ids.max()) >= len(self.strings)):
            raise ShapeError(
                f"{n} tokens of {len(self.strings)} strings; the documents end at "
                f"{int(self.offsets[-1])}."
            )

    @classmethod
    def of_strings(cls, documents: Sequence[Sequence[str]]) -> "Texts":
        """From each document's tokens as text.

        >>> Texts.of_strings([["a", " b"], ["c"]]).text(0)
        'a b'
        """
        number: dict[str, int] = {}
        ids = [number.setdefault(word, len(number)) for words in documents for word in words]
        sizes = torch.tensor([0, *map(len, documents)])
        return cls(torch.tensor(ids, dtype=torch.int32), sizes.cumsum(0), list(number))

    @classmethod
    def cat(cls, parts: Sequence["Texts"]) -> "Texts":
        """Several, one after the other, with one list of strings."""
        number: dict[str, int] = {}
        ids, sizes = [], [torch.zeros(1, dtype=torch.int64)]
        for part in parts:
            there = [number.setdefault(word, len(number)) for word in part.strings]
            renamed = torch.tensor(there or [0], dtype=torch.int32)
            ids.append(renamed[part.ids.long()])
            sizes.append(part.offsets.diff())
        return cls(torch.cat(ids), torch.cat(sizes).cumsum(0), list(number))

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def words(self, document: int) -> list[str]:
        """A document's tokens as text."""
        start, stop = int(self.offsets[document]), int(self.offsets[document + 1])
        ids: list[int] = self.ids[start:stop].tolist()
        return [self.strings[word] for word in ids]

    def text(self, document: int) -> str:
        """A document as one string."""
        return "".join(self.words(document))

    def window(self, document: int, place: int, around: int) -> Snippet:
        """The token at a place, with up to `around` tokens on both sides.

        >>> print(Texts.of_strings([["I", " saw", " a", " cat"]]).window(0, 2, 1))
        saw‹ a› cat
        """
        words = self.words(document)
        return Snippet(
            before="".join(words[max(0, place - around) : place]),
            token=words[place],
            after="".join(words[place + 1 : place + 1 + around]),
        )

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "Texts":
        """Some of the documents, in the order asked for."""
        sizes = self.offsets.diff()[chosen]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(sizes)
        return Texts(
            self.ids[self.offsets[chosen].repeat_interleave(sizes) + within], offsets, self.strings
        )
