"""The encoder matmul in row chunks, keeping only the pairs that a selection chooses.

The buffer holds one chunk of pre-activations and is reused, so memory does not grow with the
number of tokens, and no page of it is touched for the first time twice.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.pairs import Pairs

__all__ = ["Selected", "encode_pairs"]

CHUNK_BYTES = 64 << 20
"""Size aimed at for one chunk of pre-activations."""
MAX_CHUNK_ROWS = 1024
"""More rows than this make the matmul no faster."""

Selected = tuple[Tensor, Tensor, Tensor]
"""Row, latent and pre-activation of each kept pair; three vectors of one length."""
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
    step = max(16, min(MAX_CHUNK_ROWS, CHUNK_BYTES // (rows.element_size() * d_sae), n_tokens))
    buffer = torch.empty(min(step, n_tokens), d_sae, dtype=x.dtype, device=x.device)
    found: list[list[Selected]] = [[] for _ in selections]
    for start in range(0, n_tokens, step):
        chunk = x[start : start + step]
        pre_acts = buffer[: len(chunk)]
        torch.addmm(bias, chunk, rows.T, out=pre_acts)
        for parts, select in zip(found, selections, strict=True):
            row, latent, value = select(pre_acts)
            parts.append((row + start, latent, value))
    return [_join(parts, n_tokens, d_sae, x) for parts in found]


def _join(parts: list[Selected], n_tokens: int, d_sae: int, like: Tensor) -> tuple[Pairs, Tensor]:
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64, device=like.device)
    if not parts:
        empty = torch.empty(0, dtype=torch.int64, device=like.device)
        return Pairs(offsets, empty, d_sae), like.new_empty(0)
    tokens = torch.cat([part[0] for part in parts])
    torch.cumsum(torch.bincount(tokens, minlength=n_tokens), 0, out=offsets[1:])
    indices = torch.cat([part[1] for part in parts])
    return Pairs(offsets, indices, d_sae), torch.cat([part[2] for part in parts])
