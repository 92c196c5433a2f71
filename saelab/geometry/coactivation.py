"""On how many tokens do latents of two codes fire together? Counts for splitting and trees."""

from typing import Any

import numpy as np

from saelab.errors import DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["active", "coactive"]


def active(codes: SparseCodes) -> Any:
    """scipy csr_matrix [token, latent] of ones, int32: where latents are not zero."""
    from scipy.sparse import csr_matrix

    indices = codes.indices.cpu().numpy()
    ones = np.ones(len(indices), dtype=np.int32)
    return csr_matrix((ones, indices, codes.offsets.cpu().numpy()), (len(codes), codes.d_sae))


def coactive(one: SparseCodes, other: SparseCodes, shift: int = 0) -> Any:
    """scipy csr_matrix [latent, other] int32: tokens on which both fire.

    Args:
        one: Codes.
        other: Codes of the same tokens.
        shift: Move the tokens of `one` by so many, around the end: a null that keeps densities.
    """
    if len(one) != len(other):
        raise ShapeError(f"Codes of {len(one)} and of {len(other)} tokens do not align.")
    if len(one) == 0:
        raise DataError("There are no tokens to count on.")
    a = active(one)
    if shift % len(one):
        a = a[np.roll(np.arange(len(one)), shift % len(one))]
    return (a.T @ active(other)).tocsr()
