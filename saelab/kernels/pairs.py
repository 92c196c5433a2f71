"""Pairs: which (token, latent) entries a sparse matrix has, and the three products over them.

A `Pairs` is the pattern without values: training changes the values many times over one pattern,
and the transposed order (by latent) is worked out once and shared by every gradient.
"""

import warnings
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels.backends import compiled

__all__ = ["Pairs", "pair_products", "sum_columns", "sum_rows"]

with warnings.catch_warnings():
    # torch says once per process that its CSR tensors are in beta; the only two operations used
    # here are compared with dense ones in the tests.
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), [], (1, 1))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The pattern of a [token, latent] matrix, by rows, and by columns when asked.

    Within a token the latents stand in any order, each at most once.
    """

    offsets: Int[Tensor, " token_plus_one"]
    indices: Int[Tensor, " pair"]
    n_latents: int
    _transposed: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, repr=False)

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def n_pairs(self) -> int:
        """Number of entries."""
        return len(self.indices)

    def tokens(self) -> Int[Tensor, " pair"]:
        """The row of each pair."""
        rows = torch.arange(self.n_tokens, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.n_pairs)

    def filtered(self, kept: Bool[Tensor, " pair"]) -> "Pairs":
        """The same tokens with only the kept pairs."""
        counts = torch.bincount(self.tokens()[kept], minlength=self.n_tokens)
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(counts, 0, out=offsets[1:])
        return Pairs(offsets, self.indices[kept], self.n_latents)

    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """(offsets by latent, order of the pairs by latent, token of each pair in that order).

        Sorted once; the sort is stable, so sums over a latent's pairs run in token order.
        """
        if not self._transposed:
            # The work of a pair stands for the sort that a count replaces. Both orders are equal.
            fast = compiled("by_column", 64 * self.n_pairs, self.indices.new_empty(0).float())
            if fast is not None:
                self._transposed.append(fast(self.offsets, self.indices, self.n_latents))  # type: ignore[arg-type]
                return self._transposed[0]
            order = torch.sort(self.indices.to(torch.int32), stable=True).indices
            offsets = torch.zeros(self.n_latents + 1, dtype=torch.int64, device=self.indices.device)
            counts = torch.bincount(self.indices, minlength=self.n_latents)
            torch.cumsum(counts, 0, out=offsets[1:])
            self._transposed.append((offsets, order, self.tokens()[order]))
        return self._transposed[0]


def sum_rows(
    pairs: Pairs, values: Float[Tensor, " pair"], matrix: Float[Tensor, "latent width"]
) -> Float[Tensor, "token width"]:
    """Sparse times dense: row t is sum over its pairs of value * matrix[latent]."""
    fast = compiled("sum_rows", pairs.n_pairs * matrix.shape[1], values, matrix)
    if fast is not None:
        return fast(pairs.offsets, pairs.indices, values, matrix)  # type: ignore[return-value]
    return torch.nn.functional.embedding_bag(
        pairs.indices,
        matrix,
        pairs.offsets,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )


def pair_products(
    pairs: Pairs, left: Float[Tensor, "token width"], right: Float[Tensor, "latent width"]
) -> Float[Tensor, " pair"]:
    """left[token] . right[latent] for each pair, never the whole product."""
    if pairs.n_pairs == 0:
        return left.new_zeros(0)
    fast = compiled("pair_products", pairs.n_pairs * left.shape[1], left, right)
    if fast is not None:
        return fast(pairs.offsets, pairs.indices, left, right)  # type: ignore[return-value]
    if left.device.type == "cpu" or left.is_cuda:
        # The backward of embedding_bag's weights is exactly this product, and several times
        # faster than sampled_addmm or gather-and-multiply; the op is internal, so a test compares
        # it with the plain product.
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            left.contiguous(), right, pairs.indices, pairs.offsets, pairs.tokens(), 0, -1
        )
    return (left[pairs.tokens()] * right[pairs.indices]).sum(1)


def sum_columns(
    pairs: Pairs,
    values: Float[Tensor, " pair"],
    matrix: Float[Tensor, "token width"],
    out: Float[Tensor, "latent width"],
    accumulate: bool,
) -> None:
    """Sparse transposed times dense: out[latent] (+)= sum over its pairs of value * matrix[token].

    Args:
        pairs: The pattern.
        values: One value a pair.
        matrix: One row a token.
        out: Written in place; contiguous, finite.
        accumulate: Add to `out` instead of replacing it.
    """
    offsets, order, tokens = pairs.by_latent()
    fast = compiled("sum_columns", pairs.n_pairs * matrix.shape[1], values, matrix, out)
    if fast is not None:
        fast(offsets, tokens, order, values, matrix, out, accumulate)
        return
    if matrix.device.type not in ("cpu", "cuda"):  # no CSR product there: the plain way
        if not accumulate:
            out.zero_()
        out.index_add_(0, pairs.indices, values.unsqueeze(1) * matrix[pairs.tokens()])
        return
    transposed = torch.sparse_csr_tensor(
        offsets,
        tokens,
        values[order],
        size=(pairs.n_latents, pairs.n_tokens),
        check_invariants=False,  # offsets and tokens are built above; a test checks them
    )
    torch.addmm(out, transposed, matrix, beta=1.0 if accumulate else 0.0, out=out)
