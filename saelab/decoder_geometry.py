"""How are the decoder directions arranged? Norms, neighbors, agreement with the encoder."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ShapeError

__all__ = ["DecoderGeometry", "decoder_geometry", "nearest_decoder_directions"]


@final
@dataclass(frozen=True, kw_only=True)
class DecoderGeometry:
    """Numbers of the weights alone; no data enters."""

    n_latents: int
    """Latents whose nearest neighbor was looked for, among all of them."""
    nearest_cosine: list[float]
    """For each of those, the cosine (signed) with the most parallel or opposed other direction."""
    nearest_median: float
    """Median |cosine| of them."""
    duplicate_share: float
    """Share of them with |cosine| above 0.95: two latents for one direction."""
    random_nearest: float
    """What the median would be for random directions: a null for `nearest_median`."""
    norm_min: float
    """Shortest decoder direction."""
    norm_median: float
    """Median length of the decoder directions."""
    norm_max: float
    """Longest decoder direction."""
    encoder_cosine_median: float | None
    """Median cosine of a latent's encoder and decoder directions; None if they differ in width."""
    encoder_cosine_low: float | None
    """Its 5 % quantile."""


def decoder_geometry(
    W_dec: Float[Tensor, "latent d_out"], W_enc: Float[Tensor, "d_in latent"], max_latents: int
) -> DecoderGeometry:
    """Measure the directions; the nearest neighbors of at most `max_latents`, evenly spaced."""
    W_dec, W_enc = W_dec.detach().float(), W_enc.detach().float()
    count = min(max_latents, len(W_dec))
    rows = torch.linspace(0, len(W_dec) - 1, count, device=W_dec.device).round().long()
    _, nearest = nearest_decoder_directions(W_dec, rows)
    norms = W_dec.norm(dim=1)
    agreement = None
    if W_enc.shape[0] == W_dec.shape[1]:
        agreement = torch.nn.functional.cosine_similarity(W_enc.T, W_dec, dim=1)
    return DecoderGeometry(
        n_latents=count,
        nearest_cosine=[round(value, 4) for value in nearest.tolist()],
        nearest_median=float(nearest.abs().median()),
        duplicate_share=float((nearest.abs() > 0.95).float().mean()),
        random_nearest=_random_nearest(len(W_dec), W_dec.shape[1]),
        norm_min=float(norms.min()),
        norm_median=float(norms.median()),
        norm_max=float(norms.max()),
        encoder_cosine_median=None if agreement is None else float(agreement.median()),
        encoder_cosine_low=None if agreement is None else float(agreement.quantile(0.05)),
    )


def _random_nearest(n_latents: int, d: int) -> float:
    """Median of the largest |cosine| with n - 1 random directions in d dimensions.

    |cosine| has density (1 - c^2)^((d - 3) / 2); the median of the largest of n - 1 solves
    P(|cosine| < m)^(n - 1) = 1/2, read off a fine grid.
    """
    share = 0.5 ** (1 / max(1, n_latents - 1))
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    weight = (1 - grid.square()).pow((max(2, d) - 3) / 2)
    below = weight.cumsum(0) / weight.sum()
    return float(grid[min(len(grid) - 1, int(torch.searchsorted(below, share)))])


def nearest_decoder_directions(
    W_dec: Float[Tensor, "latent d"],
    rows: Int[Tensor, " row"] | None = None,
    chunk: int = 1024,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """For each latent, the other latent whose decoder direction is most parallel or opposed.

    Args:
        W_dec: Decoder directions, of any length.
        rows: The latents to answer for; all of them by default. Each is compared with all.
        chunk: Latents compared at once; memory is chunk * d_sae floats.

    Returns:
        Index of that latent, and the cosine with its sign (|cosine| is what was maximised).

    >>> index, cosine = nearest_decoder_directions(torch.tensor([[1.0, 0], [-2, 0], [0, 1]]))
    >>> index[:2].tolist(), cosine[:2].tolist()
    ([1, 0], [-1.0, -1.0])
    """
    if len(W_dec) < 2:
        raise ShapeError(f"A nearest neighbor needs two latents; the dictionary has {len(W_dec)}.")
    unit = torch.nn.functional.normalize(W_dec.detach().float(), dim=1)
    rows = torch.arange(len(unit), device=unit.device) if rows is None else rows.to(unit.device)
    found: list[tuple[Tensor, Tensor]] = []
    for some in rows.split(chunk):
        similarity = unit[some] @ unit.T
        itself: Bool[Tensor, "row latent"] = some[:, None] == torch.arange(
            len(unit), device=unit.device
        )
        index = similarity.abs().masked_fill(itself, -1).argmax(1)
        found.append((index, similarity.gather(1, index[:, None]).squeeze(1)))
    return torch.cat([index for index, _ in found]), torch.cat([value for _, value in found])
