"""Greedy codes: one atom at a time, each chosen by what the ones before left unexplained.

    r <- x
    k times: choose the atom with the largest <atom, r>, adjust weights, r <- x - weights @ atoms

and the three ways to adjust weights:

    matching      add <atom, r> to the chosen atom's weight; the others stay
    gradient      one step along the gradient of |r|^2 in the weights chosen so far, of the length
                  that lowers |r|^2 the most; weights below zero are then clipped
    orthogonal    the best weights of the atoms chosen so far

Atoms have length 1 here. With signed weights the largest |<atom, r>| counts, and nothing is
clipped. Work is done in chunks of rows, so memory does not grow with their number.

Sources: Mallat and Zhang 1993 (matching); Pati, Rezaiifar and Krishnaprasad 1993 (orthogonal);
Blumensath and Davies 2008 (gradient).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sparse_codes import SparseCodes

__all__ = ["Method", "line_search", "matching_steps", "merged", "pursue"]

Method = Literal["matching", "gradient", "orthogonal"]

CHUNK_BYTES = 32 << 20
"""Size aimed at for one [row, atom] matrix, and for one [row, k, width] gather."""
SWEEPS = 10
"""Coordinate descent sweeps for the best non-negative weights, from those of one atom before."""


@torch.no_grad()
def pursue(
    x: Float[Tensor, "token width"],
    atoms: Float[Tensor, "atom width"],
    k: int,
    method: Method,
    *,
    signed: bool = False,
) -> SparseCodes:
    """Weights of at most k atoms for every row.

    Args:
        x: What to explain, already centered; float32 or wider.
        atoms: Directions of length 1, of the same type.
        k: How many times an atom is chosen.
        method: How weights are adjusted.
        signed: Allow negative weights.
    """
    widest = max(len(atoms), k * atoms.shape[1] if method != "matching" else 0)
    rows = max(1, min(1024, CHUNK_BYTES // (widest * x.element_size())))
    parts = []
    for start in range(0, max(len(x), 1), rows):
        chunk = x[start : start + rows]
        if method == "matching":
            indices, weights = matching_steps(chunk @ atoms.T, atoms, k, signed=signed)
        else:
            indices, weights = _adjusted(chunk, atoms, k, method == "orthogonal", signed)
        parts.append(merged(indices, weights, len(atoms)))
    return SparseCodes.cat(parts)


def matching_steps(
    correlations: Float[Tensor, "token atom"],
    atoms: Float[Tensor, "atom width"],
    k: int,
    *,
    signed: bool = False,
) -> tuple[Int[Tensor, "token k"], Float[Tensor, "token k"]]:
    """The atom and the weight of each of k matching steps, given <atom, x> instead of x.

    What is left unexplained is only ever seen through its correlations, which a step lowers by
    weight * <chosen atom, other atoms>. An atom can be chosen again: its weights add up.
    """
    left = correlations.clone()
    n_tokens, n_atoms = left.shape
    # All products of two atoms at once are cheaper where there are more choices than atoms.
    together = n_atoms <= k * n_tokens and n_atoms**2 * left.element_size() <= 4 * CHUNK_BYTES
    gram = atoms @ atoms.T if together else None
    chosen, weights = [], []
    for _ in range(k):
        index = (left.abs() if signed else left).argmax(1)
        weight = left.gather(1, index.unsqueeze(1))
        weight = weight if signed else weight.clamp_min(0)
        overlaps = atoms[index] @ atoms.T if gram is None else gram[index]
        left.addcmul_(overlaps, weight, value=-1)
        chosen.append(index)
        weights.append(weight.squeeze(1))
    return torch.stack(chosen, 1), torch.stack(weights, 1)


def merged(
    indices: Int[Tensor, "token k"], weights: Float[Tensor, "token k"], n_atoms: int
) -> SparseCodes:
    """Codes from choices in which an atom may come more than once: its weights are summed."""
    indices, order = indices.sort(dim=1, stable=True)
    weights = weights.gather(1, order)
    first = torch.ones_like(indices, dtype=torch.bool)
    first[:, 1:] = indices[:, 1:] != indices[:, :-1]
    place = first.cumsum(1) - 1
    sums = torch.zeros_like(weights).scatter_add_(1, place, weights)
    kept = first & (sums.gather(1, place) != 0)
    offsets = torch.zeros(len(indices) + 1, dtype=torch.int64, device=indices.device)
    torch.cumsum(kept.sum(1), 0, out=offsets[1:])
    return SparseCodes(offsets, indices[kept], sums.gather(1, place)[kept], n_atoms)


def line_search(
    residual: Float[Tensor, "token width"],
    gradient: Float[Tensor, "token k"],
    selected: Float[Tensor, "token k width"],
) -> Float[Tensor, "token 1"]:
    """How far to go along a direction of weights to make |residual|^2 smallest.

    With c = gradient @ selected, the step is <c, residual> / <c, c>; 0 where c is 0.
    """
    change = torch.einsum("tk,tkw->tw", gradient, selected)
    length = change.square().sum(1)
    step = (change * residual).sum(1) / torch.where(length > 0, length, torch.ones_like(length))
    return step.unsqueeze(1)


def _adjusted(
    x: Tensor, atoms: Tensor, k: int, orthogonal: bool, signed: bool
) -> tuple[Tensor, Tensor]:
    n_tokens, width = x.shape
    indices = torch.zeros(n_tokens, k, dtype=torch.int64, device=x.device)
    used = torch.zeros(n_tokens, k, dtype=torch.bool, device=x.device)
    selected = x.new_zeros(n_tokens, k, width)
    weights = x.new_zeros(n_tokens, k)
    residual = x
    for done in range(k):
        left = residual @ atoms.T
        index = (left.abs() if signed else left).argmax(1)
        value = left.gather(1, index.unsqueeze(1)).squeeze(1)
        again = ((indices[:, :done] == index.unsqueeze(1)) & used[:, :done]).any(1)
        indices[:, done] = index
        used[:, done] = ~again & (value != 0 if signed else value > 0)
        selected[:, done] = atoms[index] * used[:, done].unsqueeze(1)
        now = slice(0, done + 1)
        if orthogonal:
            weights[:, now] = _best_weights(
                x, selected[:, now], weights[:, now], used[:, now], signed
            )
        else:
            gradient = torch.einsum("tkw,tw->tk", selected[:, now], residual)
            moved = weights[:, now] + gradient * line_search(residual, gradient, selected[:, now])
            weights[:, now] = moved if signed else moved.clamp_min(0)
        residual = x - torch.einsum("tk,tkw->tw", weights[:, now], selected[:, now])
    return indices, weights


def _best_weights(
    x: Tensor, selected: Tensor, weights: Tensor, used: Bool[Tensor, "token k"], signed: bool
) -> Tensor:
    """Least-squares weights; if unsigned, under the constraint that none is negative."""
    gram = torch.einsum("tkw,tjw->tkj", selected, selected)
    products = torch.einsum("tkw,tw->tk", selected, x)
    # An unused place has a zero row: a one on its diagonal makes its weight zero.
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal.add_((~used).to(x.dtype))
    if signed:
        diagonal.add_(1e-6)  # two atoms can be nearly the same
        return torch.linalg.solve(gram, products)
    weights = weights.clone()
    for _ in range(SWEEPS):
        for place in range(weights.shape[1]):
            slope = products[:, place] - torch.einsum("tk,tk->t", gram[:, place], weights)
            weights[:, place] = (weights[:, place] + slope / diagonal[:, place]).clamp_min(0)
    return weights
