"""What does a neuron or latent fire on? Tokens, n-grams and positions, counted sparsely.

Only pairs of a unit and an n-gram that occur together are kept, never a table of units by
vocabulary. An n-gram ends at the token a unit fires on; it exists where all its tokens count, lie
in one row and belong to one document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["Firings", "Grams"]


@final
@dataclass(frozen=True, eq=False)
class Grams:
    """How often units fire at the end of n-grams: one entry a pair that occurs.

    Sorted by unit, then by how often it fires on the n-gram, then by the n-gram.
    """

    unit: NDArray[Any]
    """Unit of each pair."""
    gram: NDArray[Any]
    """n-gram of each pair: a row of `tokens`."""
    fires: NDArray[Any]
    """How often the unit fires on it."""
    seen: NDArray[Any]
    """How often it occurs."""
    tokens: NDArray[Any]
    """[n-gram, n] token ids."""


@final
@dataclass(frozen=True, eq=False)
class Firings:
    """Which units fire where: a firing is a value that is not zero, whatever its sign."""

    codes: SparseCodes
    """Units of the tokens that count, in reading order."""
    ids: Int[Tensor, " token"]
    """Their token ids."""
    row: Int[Tensor, " token"]
    """Which row of text each is in."""
    position: Int[Tensor, " token"]
    """Where in its row."""
    document: Int[Tensor, " token"]
    """Which document."""

    def __post_init__(self) -> None:
        sizes = {len(one) for one in (self.ids, self.row, self.position, self.document)}
        if sizes != {self.codes.n_tokens}:
            raise ShapeError(f"{self.codes.n_tokens} rows of codes; addresses of {sorted(sizes)}.")
        if not self.codes.n_tokens:
            raise DataError("No token counts, so nothing can be said about what fires.")

    @classmethod
    def of_rows(
        cls,
        codes: SparseCodes,
        ids: Int[Tensor, "row pos"],
        counts: Bool[Tensor, "row pos"],
        document: Int[Tensor, "row pos"] | None = None,
    ) -> "Firings":
        """From rows of token ids: position 0 and what is not kept never count.

        Args:
            codes: Of the tokens where `counts` is True (and position is not 0), row by row.
            ids: Token ids.
            counts: Which tokens count.
            document: Document of each; by default every row is one.
        """
        counts = counts.clone()
        counts[:, 0] = False
        row, position = counts.nonzero(as_tuple=True)
        documents = row if document is None else document[counts]
        return cls(codes, ids[counts].long(), row, position, documents.long())

    @property
    def n_tokens(self) -> int:
        """Tokens that count."""
        return self.codes.n_tokens

    @property
    def n_units(self) -> int:
        """Units there are, firing or not."""
        return self.codes.d_sae

    def totals(self) -> NDArray[Any]:
        """How often each unit fires."""
        return np.asarray(self.codes.firing_counts())

    def grams(self, n: int, units: Sequence[int] | NDArray[Any] | None = None) -> Grams:
        """Counts of n-grams, of all units or of some."""
        gram, tokens = self._gram_numbers(n)
        seen = np.bincount(gram[gram >= 0], minlength=len(tokens))
        unit = self.codes.indices.cpu().numpy().astype(np.int64)
        at = gram[self.codes.tokens.cpu().numpy()]
        kept = at >= 0
        if units is not None:
            kept &= np.isin(unit, np.asarray(units))
        keys, fires = np.unique(unit[kept] * len(tokens) + at[kept], return_counts=True)
        unit, found = keys // max(1, len(tokens)), keys % max(1, len(tokens))
        order = np.lexsort((found, -fires, unit))
        return Grams(unit[order], found[order], fires[order], seen[found[order]], tokens)

    def by_position(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """How often each unit fires at each position [unit, pos], and how many tokens are there."""
        positions, place = np.unique(self.position.cpu().numpy(), return_inverse=True)
        seen = np.bincount(place)
        key = self.codes.indices.cpu().numpy().astype(np.int64) * len(positions)
        key += place[self.codes.tokens.cpu().numpy()]
        fires = np.bincount(key, minlength=self.n_units * len(positions))
        return fires.reshape(self.n_units, len(positions)), seen

    def _gram_numbers(self, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """For each token the number of the n-gram that ends there (-1 if none), and their ids."""
        ids = self.ids.cpu().numpy().astype(np.int64)
        row, position = self.row.cpu().numpy(), self.position.cpu().numpy()
        document = self.document.cpu().numpy()
        whole = np.ones(len(ids), bool)
        parts = [ids]
        for back in range(1, n):
            same = np.zeros(len(ids), bool)
            same[back:] = (row[back:] == row[:-back]) & (document[back:] == document[:-back])
            same[back:] &= position[back:] == position[:-back] + back
            whole &= same
            parts.insert(0, np.roll(ids, back))
        tokens, number = np.unique(np.stack(parts, 1)[whole], axis=0, return_inverse=True)
        gram = np.full(len(ids), -1, np.int64)
        gram[whole] = number.ravel()
        return gram, tokens
