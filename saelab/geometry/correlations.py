"""How alike do latents of two dictionaries behave on the same text, whatever they write?"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["correlations"]


def correlations(a: SparseCodes, b: SparseCodes, shift: int = 0) -> Float[Tensor, "latent other"]:
    """Pearson correlation of every latent of `a` with every latent of `b` over the same tokens.

    Args:
        a: Codes of a dictionary at any layer of any model.
        b: Codes of another, token by token the same text.
        shift: Move the tokens of `b` by so many, around the end: a null that keeps densities.

    Returns:
        A dense table; 0 where a latent is constant.
    """
    from scipy.sparse import csr_matrix

    if len(a) != len(b) or len(a) < 2:
        raise ShapeError(f"Correlations need the same tokens twice; got {len(a)} and {len(b)}.")
    n = len(a)

    def matrix(codes: SparseCodes) -> Any:
        parts = (codes.values.double(), codes.indices, codes.offsets)
        return csr_matrix(tuple(x.cpu().numpy() for x in parts), shape=(n, codes.d_sae))

    x, y = matrix(a), matrix(b)
    if shift % n:
        y = y[np.roll(np.arange(n), shift % n)]
    means = [np.asarray(z.mean(0)).ravel() for z in (x, y)]
    squares = [np.asarray(z.multiply(z).mean(0)).ravel() for z in (x, y)]
    spread = [np.sqrt(np.maximum(s - m**2, 0)) for s, m in zip(squares, means, strict=True)]
    # A constant latent's variance is rounding, far below its square.
    fixed = [s <= 1e-7 * np.sqrt(q) for s, q in zip(spread, squares, strict=True)]
    scale = [np.where(f, np.inf, s) for f, s in zip(fixed, spread, strict=True)]
    table = (x.T @ y).toarray() / n
    table -= np.outer(means[0], means[1])
    table /= scale[0][:, None]
    table /= scale[1][None, :]
    return torch.from_numpy(table).float()
