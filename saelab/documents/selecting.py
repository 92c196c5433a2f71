"""Which texts of a large pool are worth tuning on for a task shown by a few examples?

A text is the pattern of what fires in it inside the very model that is tuned. A pool document a and
the task's prototype b are alike as weighted sets:

    J(a, b) = sum_j min(a_j, b_j) / sum_j max(a_j, b_j)

over ends, each divided by its mean where it fires, so that the scale of a latent does not decide.
The prototype is the mean of the exemplars; or each exemplar is one, and the most similar counts.
The likeliest texts are often near copies of each other: `diversity` takes them one at a time, each
by (1 - diversity) * similarity - diversity * (largest similarity to one already taken).

Source: MONA (Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal
Activations), whose similarity is a generalized Jaccard; whether its prototype is a mean or a
maximum we could not verify, so both are here. The scaling and the diversity are ours.
"""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.documents.codes import DocumentCodes, DocumentPooling
from saelab.errors import ConfigError, DataError
from saelab.sparse_codes import SparseCodes

__all__ = ["Prototype", "Selection", "jaccard", "select_for_task"]

Prototype = Literal["mean", "nearest"]
"""The mean of the exemplars, or the most similar one."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Documents for a task."""

    documents: Int[Tensor, " chosen"]
    """Of the pool, in the order they were taken."""
    similarity: Float[Tensor, " pool"]
    """Of every document of the pool to the task, 0 to 1."""
    likeness: float
    """Mean similarity of two chosen documents, 0 to 1: high where they repeat each other."""
    pool_likeness: float
    """The same of random documents of the pool, as many."""


def select_for_task(
    pool: DocumentCodes,
    exemplars: DocumentCodes,
    n: int,
    *,
    prototype: Prototype = "mean",
    how: DocumentPooling = "mean",
    diversity: float = 0.0,
    seed: int = 0,
) -> Selection:
    """Choose n documents of a pool that are most like some exemplars.

    Args:
        pool: What is chosen from.
        exemplars: A few documents of the task, read with the same dictionary.
        n: How many.
        prototype: What similarity is measured to.
        how: Pooling of tokens.
        diversity: From 0 (the most similar) to below 1.
        seed: Of the random documents `pool_likeness` compares with.

    Raises:
        ConfigError: n is not from 1 to the pool's size, or diversity is not from 0 to below 1.
        DataError: The two are of different dictionaries.
    """
    if not 1 <= n <= len(pool) or not 0 <= diversity < 1:
        raise ConfigError(
            f"n={n} of {len(pool)} documents with diversity={diversity}: n must be 1 to "
            f"{len(pool)}, diversity from 0 to below 1."
        )
    if (pool.d_sae, pool.two_ended) != (exemplars.d_sae, exemplars.two_ended):
        raise DataError("Pool and exemplars are of different dictionaries.")
    a, b = _scaled(pool.pooled(how), exemplars.pooled(how))
    rows = [_mean(b)] if prototype == "mean" else [_row(b, i) for i in range(len(b))]
    similarity = np.max([jaccard(a, row) for row in rows], axis=0)
    chosen = _taken(a, similarity, n, diversity)
    random = np.random.default_rng(seed).permutation(len(a))[:n]
    return Selection(
        documents=torch.from_numpy(chosen),
        similarity=torch.from_numpy(similarity).float(),
        likeness=_likeness(a, chosen),
        pool_likeness=_likeness(a, random),
    )


def jaccard(codes: SparseCodes, row: NDArray[Any]) -> NDArray[Any]:
    """J of every row of codes with one dense row; none may be negative.

    sum max = sum a + sum b - sum min, so only the pairs of the codes are looked at.

    >>> jaccard(SparseCodes.from_dense(torch.tensor([[1.0, 2.0]])), np.array([2.0, 1.0])).tolist()
    [0.5]
    """
    values, token = codes.values.double().numpy(), codes.tokens.numpy()
    if (values < 0).any() or (row < 0).any():
        raise DataError("A Jaccard similarity needs values of at least 0: pool ends, not latents.")
    least = np.minimum(values, row[codes.indices.numpy()])
    shared = np.bincount(token, least, minlength=len(codes))
    total = np.bincount(token, values, minlength=len(codes)) + row.sum() - shared
    return np.divide(shared, total, out=np.zeros(len(codes)), where=total > 0)


def _scaled(pool: SparseCodes, exemplars: SparseCodes) -> tuple[SparseCodes, SparseCodes]:
    """Both with every end divided by its mean over the documents of either in which it fires."""
    both = SparseCodes.cat([pool, exemplars])
    total = torch.zeros(both.d_sae, dtype=torch.float64)
    total.index_add_(0, both.indices, both.values.double())
    mean = total / both.firing_counts().clamp_min(1)
    values = (both.values / mean[both.indices]).float()
    whole = SparseCodes(both.offsets, both.indices, values, both.d_sae)
    return whole[: len(pool)], whole[len(pool) :]


def _mean(codes: SparseCodes) -> NDArray[Any]:
    total = torch.zeros(codes.d_sae, dtype=torch.float64)
    return (total.index_add_(0, codes.indices, codes.values.double()) / len(codes)).numpy()


def _row(codes: SparseCodes, i: int) -> NDArray[Any]:
    return codes[i].dense()[0].double().numpy()


def _taken(codes: SparseCodes, similarity: NDArray[Any], n: int, diversity: float) -> NDArray[Any]:
    """Documents by similarity, or one at a time by similarity less likeness to those taken."""
    if diversity == 0:
        return np.argsort(-similarity, kind="stable")[:n].astype(np.int64)
    nearest = np.zeros(len(similarity))
    free = np.ones(len(similarity), bool)
    chosen = []
    for _ in range(n):
        score = np.where(free, (1 - diversity) * similarity - diversity * nearest, -np.inf)
        best = int(score.argmax())
        chosen.append(best)
        free[best] = False
        nearest = np.maximum(nearest, jaccard(codes, _row(codes, best)))
    return np.array(chosen, dtype=np.int64)


def _likeness(codes: SparseCodes, chosen: NDArray[Any]) -> float:
    """Mean J of two of at most 200 of the chosen documents; 0 if there is one."""
    chosen = chosen[:200]
    if len(chosen) < 2:
        return 0.0
    some = SparseCodes.cat([codes[int(i)] for i in chosen])
    table = np.stack([jaccard(some, _row(some, i)) for i in range(len(some))])
    return float((table.sum() - np.trace(table)) / (len(table) * (len(table) - 1)))
