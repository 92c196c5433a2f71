"""Documents whose latents fire by known chances."""

import torch

from saelab.documents import DocumentCodes
from saelab.sparse_codes import SparseCodes


def documents(
    chances: torch.Tensor,
    lengths: torch.Tensor | int = 20,
    seed: int = 0,
    groups: torch.Tensor | None = None,
) -> DocumentCodes:
    """A document a row of [document, latent] chances; where a latent is in, it fires on one token.

    Every document has a first token on which nothing fires.
    """
    generator = torch.Generator().manual_seed(seed)
    n, d_sae = chances.shape
    sizes = torch.full((n,), lengths) if isinstance(lengths, int) else lengths
    inside = torch.rand(n, d_sae, generator=generator) < chances
    row, latent = inside.nonzero(as_tuple=True)
    starts = sizes.cumsum(0) - sizes
    token = starts[row] + 1 + (torch.rand(len(row), generator=generator) * (sizes[row] - 1)).long()
    values = 0.5 + torch.rand(len(row), generator=generator)
    codes = SparseCodes.from_pairs(token, latent, values, int(sizes.sum()), d_sae)
    document = torch.arange(n).repeat_interleave(sizes)
    return DocumentCodes.of_tokens(codes, document, signed=False, groups=groups)


def signed_tokens(seed: int = 0, n_tokens: int = 60, d_sae: int = 7) -> SparseCodes:
    """Random codes with both signs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_tokens, d_sae, generator=generator)
    return SparseCodes.from_dense(x * (torch.rand(x.shape, generator=generator) < 0.4))


def turned(codes: SparseCodes, latents: list[int]) -> SparseCodes:
    """The same codes with some latents turned around."""
    flip = torch.ones(codes.d_sae)
    flip[latents] = -1.0
    return SparseCodes(
        codes.offsets, codes.indices, codes.values * flip[codes.indices], codes.d_sae
    )
