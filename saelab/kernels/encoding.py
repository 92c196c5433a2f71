"""The encoder matmul in row chunks, keeping only the pairs that a selection chooses.

The buffer holds one chunk of pre-activations and is reused, so memory does not grow with the
number of tokens, and no page of it is touched for the first time twice.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.pairs import Pairs
from saelab.kernels.selection import Selected

__all__ = ["Selected", "Selection", "chunk_rows", "encode_pairs", "join"]

CHUNK_BYTES = 96 << 20
"""Size aimed at for one chunk of pre-activations; half of it made the matmul of 36,864 latents
10 to 15 % slower."""
MIN_CHUNK_ROWS = 256
"""Very wide dictionaries get chunks of this many rows, or d_in if fewer: no larger than W_enc."""
MAX_CHUNK_ROWS = 1024
"""More rows than this make the matmul no faster."""

Selection = Callable[[Float[Tensor, "row d_sae"]], Selected]


@torch.no_grad()
def encode_pairs(
    x: Float[Tensor, "token d_in"],
    rows: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    selections: list[Selection],
) -> list[tuple[Pairs, Tensor]]:
    """Pre-activations x @ rows.T + bias at the pairs that each selection keeps.

    Args:
        x: Encoder input, already centred and scaled.
        rows: Encoder directions, one latent a row, contiguous.
        bias: Encoder bias.
        selections: Each sees a chunk of pre-activations and returns the pairs it keeps: row
            within the chunk (ascending), latent, pre-activation. It must not keep the chunk.

    Returns:
        For each selection, the pattern over all tokens and the pre-activation of each pair.
    """
    n_tokens, d_sae = len(x), len(rows)
    step = chunk_rows(d_sae, x.shape[1], rows.element_size())
    buffer = torch.empty(min(step, n_tokens), d_sae, dtype=x.dtype, device=x.device)
    found: list[list[Selected]] = [[] for _ in selections]
    for start in range(0, n_tokens, step):
        chunk = x[start : start + step]
        pre_acts = buffer[: len(chunk)]
        torch.addmm(bias, chunk, rows.T, out=pre_acts)
        for parts, select in zip(found, selections, strict=True):
            row, latent, value = select(pre_acts)
            parts.append((row + start, latent, value))
    return [join(parts, n_tokens, d_sae, x) for parts in found]


def chunk_rows(d_sae: int, d_in: int, element_size: int) -> int:
    """How many tokens to encode at once.

    >>> chunk_rows(9216, 576, 4), chunk_rows(36864, 576, 4), chunk_rows(1_000_000, 64, 4)
    (1024, 682, 64)
    """
    least = max(16, min(MIN_CHUNK_ROWS, d_in))
    return max(least, min(MAX_CHUNK_ROWS, CHUNK_BYTES // (element_size * d_sae)))


def join(
    parts: list[Selected], n_tokens: int, d_sae: int, like: Tensor
) -> tuple[Pairs, Float[Tensor, " pair"]]:
    """One pattern and its values from the selections of successive chunks."""
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64, device=like.device)
    if not parts:
        empty = torch.empty(0, dtype=torch.int64, device=like.device)
        return Pairs(offsets, empty, d_sae), like.new_empty(0)
    tokens = torch.cat([part[0] for part in parts])
    torch.cumsum(torch.bincount(tokens, minlength=n_tokens), 0, out=offsets[1:])
    indices = torch.cat([part[1] for part in parts])
    return Pairs(offsets, indices, d_sae), torch.cat([part[2] for part in parts])
