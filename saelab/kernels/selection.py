"""Exact top-k of wide rows, faster than sorting them: group maxima first, then k groups.

Split a row of F values into G strided groups. A value among the k largest belongs to a group
whose maximum is at least as large, so the k groups with the largest maxima hold all of them.
Only k * F / G candidates are left for the second, small top-k. Groups are strided (element j is
in group j mod G) so that the reduction runs along contiguous memory.
"""

import functools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.kernels.backends import compiled

__all__ = ["above", "entries", "group_count", "top_k", "top_k_pairs"]

Selected = tuple[Tensor, Tensor, Tensor]
"""Row, latent and pre-activation of each kept pair; three vectors of one length."""


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
    fast = compiled("top_k", values.numel(), values)
    if fast is not None:
        return fast(values, k)  # type: ignore[return-value]
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


def top_k_pairs(pre_acts: Float[Tensor, "row d_sae"], k: int, signed: bool = False) -> Selected:
    """Of the k strongest entries of each row, those of positive strength.

    Args:
        pre_acts: One token a row.
        k: Kept per row, at most.
        signed: Strength is size; otherwise it is the value itself.

    Returns:
        Row (ascending), latent and pre-activation of each.

    Raises:
        ConfigError: k is not between 1 and the number of columns.

    >>> rows, latents, values = top_k_pairs(torch.tensor([[3.0, -5.0, -1.0]]), 2)
    >>> latents.tolist(), values.tolist()
    ([0], [3.0])
    """
    strength, indices = top_k(pre_acts.abs() if signed else pre_acts, k)
    positive = strength > 0
    rows = torch.arange(len(pre_acts), device=pre_acts.device).unsqueeze(1).expand_as(indices)
    if bool(positive.all()):  # the usual case, and no pass over the pairs then
        rows, latents = rows.reshape(-1), indices.reshape(-1)
        return rows, latents, pre_acts[rows, latents] if signed else strength.reshape(-1)
    rows, latents = rows[positive], indices[positive]
    return rows, latents, pre_acts[rows, latents] if signed else strength[positive]


def above(
    pre_acts: Float[Tensor, "row d_sae"],
    threshold: float | Float[Tensor, ""] | Float[Tensor, " d_sae"],
    signed: bool = False,
) -> Selected:
    """Every entry whose strength exceeds its threshold.

    Args:
        pre_acts: One token a row.
        threshold: One for all, or one a latent.
        signed: Strength is size; otherwise it is the value itself.

    Returns:
        Row (ascending), latent (ascending within a row) and pre-activation of each.

    >>> rows, latents, values = above(torch.tensor([[3.0, -5.0, -1.0]]), 2.0, signed=True)
    >>> latents.tolist(), values.tolist()
    ([0, 1], [3.0, -5.0])
    """
    if isinstance(threshold, Tensor):
        limits = threshold.detach()
    else:
        limits = torch.tensor(threshold, dtype=pre_acts.dtype, device=pre_acts.device)
    fast = compiled("above", pre_acts.numel(), pre_acts, limits)
    if fast is not None:
        return fast(pre_acts, limits.reshape(-1), signed)  # type: ignore[return-value]
    row, latent = ((pre_acts.abs() if signed else pre_acts) > limits).nonzero(as_tuple=True)
    return row, latent, pre_acts[row, latent]


def entries(pre_acts: Float[Tensor, "row d_sae"], mask: Bool[Tensor, "row d_sae"]) -> Selected:
    """The masked entries.

    Returns:
        Row (ascending), latent (ascending within a row) and pre-activation of each.

    >>> rows, latents, values = entries(torch.tensor([[3.0, 5.0]]), torch.tensor([[False, True]]))
    >>> rows.tolist(), latents.tolist(), values.tolist()
    ([0], [1], [5.0])
    """
    fast = compiled("entries", pre_acts.numel(), pre_acts)
    if fast is not None:
        return fast(pre_acts, mask)  # type: ignore[return-value]
    row, latent = mask.nonzero(as_tuple=True)
    return row, latent, pre_acts[row, latent]


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
