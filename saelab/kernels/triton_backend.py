"""The pair products as Triton kernels for GPUs.

Written against Triton 3 and tested on CPU tensors with its interpreter (`TRITON_INTERPRET=1`); they
have not been run, let alone tuned, on a GPU. `SAELAB_KERNELS=torch` goes around them. Top-k and
threshold collection stay with torch there, whose own GPU kernels do them in few passes.

Each program owns its piece of the output and adds in the order of the pairs, without atomic
additions, so a result does not change from run to run.
"""

import functools
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["pair_products", "prepare", "sum_columns", "sum_rows"]

WIDTH = 128
"""Columns of a matrix that one program handles at once."""
PAIRS = 16
"""Pairs that one program of `pair_products` handles."""


def prepare(kernel: str) -> None:  # noqa: ARG001
    """Import the compiler and define the kernels, so that a failure to do so is known at once.

    Raises:
        ImportError: triton is not installed.
    """
    _kernels()


def sum_rows(
    offsets: Int[Tensor, " row_plus_one"],
    indices: Int[Tensor, " pair"],
    values: Float[Tensor, " pair"],
    matrix: Float[Tensor, "column width"],
) -> Float[Tensor, "row width"]:
    """See `pairs.sum_rows`."""
    out = matrix.new_empty(len(offsets) - 1, matrix.shape[1])
    order = indices[:0]
    sum_columns(offsets, indices, order, values, matrix, out, accumulate=False)
    return out


def sum_columns(
    offsets: Int[Tensor, " column_plus_one"],
    tokens: Int[Tensor, " pair"],
    order: Int[Tensor, " pair_or_none"],
    values: Float[Tensor, " pair"],
    matrix: Float[Tensor, "row width"],
    out: Float[Tensor, "column width"],
    accumulate: bool,
) -> None:
    """See `pairs.sum_columns`."""
    n_rows, width = out.shape
    ordered = len(order) > 0
    values = (values[order] if ordered else values).contiguous()
    if n_rows == 0 or width == 0:
        return
    _kernels().sum_pairs[(n_rows, -(-width // WIDTH))](
        offsets, tokens, values, matrix.contiguous(), out, width, accumulate, WIDTH
    )


def pair_products(
    offsets: Int[Tensor, " row_plus_one"],
    indices: Int[Tensor, " pair"],
    left: Float[Tensor, "row width"],
    right: Float[Tensor, "column width"],
) -> Float[Tensor, " pair"]:
    """See `pairs.pair_products`."""
    n_pairs, width = len(indices), left.shape[1]
    out = left.new_empty(n_pairs)
    if n_pairs == 0:
        return out
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    rows = rows.repeat_interleave(offsets.diff(), output_size=n_pairs)
    _kernels().pair_products[(-(-n_pairs // PAIRS),)](
        rows, indices, left.contiguous(), right.contiguous(), out, n_pairs, width, PAIRS, WIDTH
    )
    return out


@functools.cache
def _kernels() -> Any:
    """The Triton functions; defined on first use, because importing triton is slow."""
    import triton
    import triton.language as tl

    @triton.jit
    def sum_pairs(
        offsets,
        indices,
        values,
        matrix,
        out,
        width,
        accumulate: tl.constexpr,
        block: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * block + tl.arange(0, block)
        inside = columns < width
        total = tl.zeros((block,), dtype=tl.float32)
        start = tl.load(offsets + row)
        stop = tl.load(offsets + row + 1)
        for pair in range(start, stop):
            index = tl.load(indices + pair)
            part = tl.load(matrix + index * width + columns, mask=inside, other=0.0)
            total += tl.load(values + pair) * part
        target = out + row * width + columns
        if accumulate:
            total += tl.load(target, mask=inside, other=0.0)
        tl.store(target, total, mask=inside)

    @triton.jit
    def pair_products(
        rows,
        indices,
        left,
        right,
        out,
        n_pairs,
        width,
        pairs: tl.constexpr,
        block: tl.constexpr,
    ):
        pair = tl.program_id(0).to(tl.int64) * pairs + tl.arange(0, pairs)
        inside = pair < n_pairs
        row = tl.load(rows + pair, mask=inside, other=0)
        index = tl.load(indices + pair, mask=inside, other=0)
        total = tl.zeros((pairs,), dtype=tl.float32)
        for base in range(0, width, block):
            columns = base + tl.arange(0, block)
            both = inside[:, None] & (columns < width)[None, :]
            one = tl.load(left + row[:, None] * width + columns[None, :], mask=both, other=0.0)
            two = tl.load(right + index[:, None] * width + columns[None, :], mask=both, other=0.0)
            total += tl.sum(one * two, axis=1)
        tl.store(out + pair, total, mask=inside)

    return SimpleNamespace(sum_pairs=sum_pairs, pair_products=pair_products)
