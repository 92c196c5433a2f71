"""Where did each stored activation come from?

A row of a store never loses its address: the document, the token row (context), the position in
it and the token that stood there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Addresses", "shifted"]

_FIELDS = ("document", "row", "position", "token")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Addresses:
    """One address per stored token, as four aligned int32 columns.

    >>> some = Addresses.unknown(3)
    >>> some.row.tolist(), some.document.tolist()
    ([0, 1, 2], [-1, -1, -1])
    """

    document: Int[Tensor, " token"]
    """Index of the document the token belongs to; -1 where none is known."""
    row: Int[Tensor, " token"]
    """Row of the harvested `Tokens`; rows of appended tokens continue the count."""
    position: Int[Tensor, " token"]
    """Position in that row; 0 is the beginning-of-sequence token when there is one."""
    token: Int[Tensor, " token"]
    """Token id at that position; -1 where none is known."""

    @classmethod
    def unknown(cls, n: int) -> "Addresses":
        """Addresses of `n` activations that came without any: row is the index."""
        none = torch.full((n,), -1, dtype=torch.int32)
        return cls(none, torch.arange(n, dtype=torch.int32), torch.zeros_like(none), none)

    @classmethod
    def cat(cls, parts: Sequence["Addresses"]) -> "Addresses":
        """One after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Addresses":
        """Undo `tensors()`."""
        return cls(*(tensors[name] for name in _FIELDS))

    def tensors(self) -> dict[str, Tensor]:
        """The columns by name, as they are stored."""
        return {name: getattr(self, name).to(torch.int32) for name in _FIELDS}

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.row)

    def __getitem__(
        self, index: slice | Int[Tensor, " picked"] | Bool[Tensor, " token"]
    ) -> "Addresses":
        """A slice or a selection."""
        return Addresses(*(getattr(self, name)[index] for name in _FIELDS))


def shifted(document: Int[Tensor, "*place"], first: int) -> Int[Tensor, "*place"]:
    """Document indices of appended tokens, which continue the count; -1 stays -1."""
    return torch.where(document >= 0, document + first, document)
