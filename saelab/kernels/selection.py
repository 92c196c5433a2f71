"""Exact top-k of wide rows, faster than sorting them: group maxima first, then k groups.

Split a row of F values into G strided groups. A value among the k largest belongs to a group
whose maximum is at least as large, so the k groups with the largest maxima hold all of them.
Only k * F / G candidates are left for the second, small top-k. Groups are strided (element j is
in group j mod G) so that the reduction runs along contiguous memory.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError

__all__ = ["group_count", "top_k"]


def top_k(
    values: Float[Tensor, "row column"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The k largest entries of each row, in no particular order.

    The values are exactly `torch.topk`'s; among equal values at the border another, equally
    valid column may be picked.

    Raises:
        ConfigError: k is not between 1 and the number of columns.

    >>> values, columns = top_k(torch.tensor([[3.0, 1.0, 2.0]]), 2)
    >>> sorted(columns[0].tolist())
    [0, 2]
    """
    n_columns = values.shape[1]
    if not 1 <= k <= n_columns:
        raise ConfigError(f"top_k(k={k}) needs 1 <= k <= {n_columns}, the number of columns.")
    groups = group_count(n_columns, k)
    if groups is None:
        return values.topk(k, dim=1, sorted=False)
    size = n_columns // groups
    maxima = values.view(len(values), size, groups).amax(1)
    best = maxima.topk(k, dim=1, sorted=False).indices
    strides = torch.arange(0, n_columns, groups, device=values.device)
    candidates = (best.unsqueeze(2) + strides).view(len(values), k * size)
    kept, place = values.gather(1, candidates).topk(k, dim=1, sorted=False)
    return kept, candidates.gather(1, place)


@functools.cache
def group_count(n_columns: int, k: int) -> int | None:
    """How many groups to use, or None where plain top-k is as good.

    The largest divisor of `n_columns` that is a multiple of 32 and at most max(512, 8 k), so
    that both the group pass and the candidate pass stay small.
    """
    if n_columns < 2048:
        return None
    largest = max(512, 8 * k)
    for groups in range(largest - largest % 32, max(k, 32) - 1, -32):
        if n_columns % groups == 0 and groups >= 4 * k and n_columns // groups >= 4:
            return groups
    return None
