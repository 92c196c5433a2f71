"""The compiled CPU kernels: `loops` through numba, divided among as many threads as torch uses.

numba's own thread pools are not used. They would be a second pool beside torch's, whose threads
keep spinning for a while after each torch operation; and a process that forks (a data loader) dies
with one of them. The loops release the interpreter lock instead, and ordinary threads that sleep
between calls run them. Rows are divided so that each thread has about as many pairs; the
division does not change any result, because no two threads write to the same row.
"""

import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.kernels import loops

__all__ = [
    "above",
    "by_column",
    "entries",
    "pair_products",
    "prepare",
    "sum_columns",
    "sum_rows",
    "top_k",
]

Array = np.ndarray


_VECTOR, _INDEX, _MATRIX = "float32[::1]", "int64[::1]", "float32[:, ::1]"
_PAIRS = f"{_INDEX}, {_INDEX}"
_SIGNATURES = {
    "above": (loops.above, f"({_MATRIX}, {_VECTOR}, boolean, int64, int64)"),
    "by_column": (loops.by_column, f"({_PAIRS}, int64)"),
    "entries": (loops.entries, f"({_MATRIX}, uint8[:, ::1], int64, int64)"),
    "pair_products": (
        loops.pair_products,
        f"void({_PAIRS}, {_MATRIX}, {_MATRIX}, {_VECTOR}, int64, int64)",
    ),
    "sum_pairs": (
        loops.sum_pairs,
        f"void({_PAIRS}, {_VECTOR}, {_INDEX}, {_MATRIX}, {_MATRIX}, boolean, int64, int64)",
    ),
    "top_k": (
        loops.top_k,
        f"void({_MATRIX}, int64, int64, {_MATRIX}, int64[:, ::1], int64, int64)",
    ),
}
_LOOPS = {"sum_rows": "sum_pairs", "sum_columns": "sum_pairs"}


def prepare(kernel: str) -> None:
    """Compile what a kernel needs, or load it from disk, so that a failure is known at once.

    Raises:
        ImportError: numba is not installed, or not for this Python or numpy.
    """
    _jit(_LOOPS.get(kernel, kernel))


def top_k(
    values: Float[Tensor, "row column"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """See `selection.top_k`."""
    n_rows, n_columns = values.shape
    kept = torch.empty(n_rows, k)
    columns = torch.empty(n_rows, k, dtype=torch.int64)
    arguments = (_array(values), k, group_count(n_columns, k), kept.numpy(), columns.numpy())
    _run(_jit("top_k"), arguments, _even(n_rows))
    return kept, columns


def above(
    values: Float[Tensor, "row column"], thresholds: Float[Tensor, " one_or_column"], signed: bool
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Float[Tensor, " pair"]]:
    """See `selection.above`."""
    arguments = (_array(values), _array(thresholds), signed)
    return _joined(_run(_jit("above"), arguments, _even(len(values))))


def entries(
    values: Float[Tensor, "row column"], mask: Bool[Tensor, "row column"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Float[Tensor, " pair"]]:
    """See `selection.entries`."""
    arguments = (_array(values), _array(mask).view(np.uint8))
    return _joined(_run(_jit("entries"), arguments, _even(len(values))))


def _joined(parts: list[tuple[np.ndarray, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """The lists of successive ranges of rows, one after the other."""
    rows, columns, kept = (
        torch.from_numpy(np.concatenate(part) if len(parts) > 1 else part[0])
        for part in zip(*parts, strict=True)
    )
    return rows, columns, kept


def by_column(
    offsets: Int[Tensor, " row_plus_one"], indices: Int[Tensor, " pair"], n_columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `pairs.Pairs.by_latent`."""
    found = _jit("by_column")(_array(offsets), _array(indices), n_columns)
    starts, order, rows = (torch.from_numpy(array) for array in found)
    return starts, order, rows


def sum_rows(
    offsets: Int[Tensor, " row_plus_one"],
    indices: Int[Tensor, " pair"],
    values: Float[Tensor, " pair"],
    matrix: Float[Tensor, "column width"],
) -> Float[Tensor, "row width"]:
    """See `pairs.sum_rows`."""
    out = torch.empty(len(offsets) - 1, matrix.shape[1])
    order = torch.empty(0, dtype=torch.int64)
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
    bounds = _array(offsets)
    arguments = (bounds, _array(tokens), _array(values), _array(order), _array(matrix))
    _run(_jit("sum_pairs"), (*arguments, out.numpy(), accumulate), _by_pairs(bounds))


def pair_products(
    offsets: Int[Tensor, " row_plus_one"],
    indices: Int[Tensor, " pair"],
    left: Float[Tensor, "row width"],
    right: Float[Tensor, "column width"],
) -> Float[Tensor, " pair"]:
    """See `pairs.pair_products`."""
    out = torch.empty(len(indices))
    bounds = _array(offsets)
    arguments = (bounds, _array(indices), _array(left), _array(right), out.numpy())
    _run(_jit("pair_products"), arguments, _by_pairs(bounds))
    return out


@functools.cache
def group_count(n_columns: int, k: int) -> int:
    """Into how many strided groups `top_k` divides a row.

    Few groups leave many candidates, many groups take long to search; 1.2 sqrt(k * n_columns) is
    about the least for both (measured). Four groups' worth of a row are read at once, so the
    number is chosen to leave little over after a multiple of four.
    """
    wanted = 1.2 * (k * n_columns) ** 0.5
    rounds = max(1, round(n_columns / (4 * wanted)))
    groups = n_columns // (64 * rounds) * 16
    return groups if groups >= k else n_columns


def _array(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy()


@functools.cache
def _jit(name: str) -> Callable[..., Any]:
    """The compiled loop, kept on disk between processes where there is a place for it."""
    import numba

    wrapped, signature = _SIGNATURES[name]
    function = inspect.unwrap(wrapped)  # from the type checks that the tests put around it
    # Sums may be reordered into vector lanes, and products fused into sums; NaN and infinity keep
    # their meaning.
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz"},
    }
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in
        return numba.njit(signature, **options)(function)


def _even(n_rows: int) -> list[tuple[int, int]]:
    n_parts = max(1, min(torch.get_num_threads(), n_rows))
    ends = [n_rows * part // n_parts for part in range(n_parts + 1)]
    return list(pairwise(ends))


def _by_pairs(offsets: Array) -> list[tuple[int, int]]:
    """Ranges of rows with about the same number of pairs."""
    n_parts = max(1, min(torch.get_num_threads(), len(offsets) - 1))
    if n_parts == 1:
        return [(0, len(offsets) - 1)]
    # A row costs something even without pairs, for it is set to zero.
    cost = offsets + np.arange(len(offsets))
    targets = cost[-1] * np.arange(1, n_parts) / n_parts
    ends = [0, *np.searchsorted(cost, targets).tolist(), len(offsets) - 1]
    return list(pairwise(ends))


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], ranges: list[tuple[int, int]]
) -> list[Any]:
    """The function's results for every range of rows; the first range runs in this thread."""
    first, *others = ranges
    if not others:
        return [function(*arguments, *first)]
    pool = _pools.get(len(others))
    if pool is None:
        pool = _pools[len(others)] = ThreadPoolExecutor(len(others), "saelab-kernels")
    later = [pool.submit(function, *arguments, *part) for part in others]
    result = function(*arguments, *first)
    return [result, *(future.result() for future in later)]
