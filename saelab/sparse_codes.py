"""SparseCodes: the latents of many tokens, stored as compressed rows.

It is the currency of everything after a dictionary. Only the latents that are not zero are kept,
with their sign; a dense `[token, d_sae]` matrix is made by `dense()` and nowhere else.

Axes: token is a row, pair is one (token, latent) with a value that is not zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ShapeError

__all__ = ["SparseCodes"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class SparseCodes:
    """Latents of `n_tokens` tokens; row t holds pairs `offsets[t]` to `offsets[t + 1]`.

    >>> codes = SparseCodes.from_dense(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]))
    >>> codes.indices.tolist(), codes.values.tolist()
    ([1, 0], [2.0, -1.0])
    """

    offsets: Int[Tensor, " token_plus_one"]
    """Where each token's pairs start, and after the last token where they end."""
    indices: Int[Tensor, " pair"]
    """Which latent, ascending within a token."""
    values: Float[Tensor, " pair"]
    """Its value; never zero."""
    d_sae: int
    """How many latents the dictionary has."""

    @classmethod
    def from_dense(cls, latents: Float[Tensor, "token d_sae"]) -> "SparseCodes":
        """Compress a matrix, dropping exact zeros."""
        token, index = latents.nonzero(as_tuple=True)
        return cls(
            _offsets(token, latents.shape[0]), index, latents[token, index], latents.shape[1]
        )

    @classmethod
    def from_pairs(
        cls,
        tokens: Int[Tensor, " pair"],
        indices: Int[Tensor, " pair"],
        values: Float[Tensor, " pair"],
        n_tokens: int,
        d_sae: int,
    ) -> "SparseCodes":
        """Build from unordered (token, latent, value) triples, dropping exact zeros."""
        kept = values != 0
        tokens, indices, values = tokens[kept], indices[kept], values[kept]
        order = torch.argsort(tokens * d_sae + indices)
        return cls(_offsets(tokens, n_tokens), indices[order], values[order], d_sae)

    @classmethod
    def from_top(
        cls, indices: Int[Tensor, "token k"], values: Float[Tensor, "token k"], d_sae: int
    ) -> "SparseCodes":
        """Build from the same number of picks per token, dropping exact zeros."""
        indices, order = indices.sort(dim=1)
        values = values.gather(1, order)
        kept = values != 0
        offsets = torch.zeros(len(indices) + 1, dtype=torch.int64, device=indices.device)
        torch.cumsum(kept.sum(1), 0, out=offsets[1:])
        return cls(offsets, indices[kept], values[kept], d_sae)

    @classmethod
    def cat(cls, parts: Sequence["SparseCodes"]) -> "SparseCodes":
        """Stack rows of several codes of one dictionary."""
        if not parts or any(part.d_sae != parts[0].d_sae for part in parts):
            raise ShapeError(
                f"cat needs codes of one dictionary; got d_sae {[part.d_sae for part in parts]}."
            )
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.n_pairs)
        offsets = [
            part.offsets[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)
        ]
        end = parts[0].offsets.new_tensor([starts[-1]])
        return cls(
            torch.cat([*offsets, end]),
            torch.cat([part.indices for part in parts]),
            torch.cat([part.values for part in parts]),
            parts[0].d_sae,
        )

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def n_pairs(self) -> int:
        """Number of latents that are not zero, over all tokens."""
        return len(self.indices)

    @property
    def tokens(self) -> Int[Tensor, " pair"]:
        """The token (row) of each pair."""
        rows = torch.arange(self.n_tokens, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.n_pairs)

    def __len__(self) -> int:
        """Number of tokens."""
        return self.n_tokens

    def __getitem__(self, rows: slice | int) -> "SparseCodes":
        """A contiguous run of tokens; `codes[3]` is the single row 3, still as codes."""
        if isinstance(rows, int):
            row = range(self.n_tokens)[rows]
            rows = slice(row, row + 1)
        start, stop, step = rows.indices(self.n_tokens)
        if step != 1:
            raise ShapeError(f"SparseCodes takes contiguous rows; the slice has step {step}.")
        stop = max(start, stop)
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return SparseCodes(
            self.offsets[start : stop + 1] - first,
            self.indices[first:last],
            self.values[first:last],
            self.d_sae,
        )

    def dense(self) -> Float[Tensor, "token d_sae"]:
        """The matrix; `n_tokens x d_sae` values, so ask for a few tokens at a time."""
        latents = self.values.new_zeros(self.n_tokens, self.d_sae)
        latents[self.tokens, self.indices] = self.values
        return latents

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "SparseCodes":
        """The same codes on another device, or with another type of value."""
        return SparseCodes(
            self.offsets.to(device),
            self.indices.to(device),
            self.values.to(device, dtype),
            self.d_sae,
        )

    def l0(self) -> Int[Tensor, " token"]:
        """How many latents are active on each token."""
        return self.offsets.diff()

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """On how many tokens each latent is not zero, whatever its sign."""
        return torch.bincount(self.indices, minlength=self.d_sae)


def _offsets(tokens: Int[Tensor, " pair"], n_tokens: int) -> Int[Tensor, " token_plus_one"]:
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64, device=tokens.device)
    torch.cumsum(torch.bincount(tokens, minlength=n_tokens), 0, out=offsets[1:])
    return offsets
