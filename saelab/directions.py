"""In which directions do latents start?

An autoencoder's encoder starts as its decoder transposed: what a latent reads is what it writes. A
transcoder's latents write to another place, and a random direction there is wrong for almost every
one of them. `aimed` starts each where the target goes when the latent is active.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["aimed", "unit_rows"]

BORDER = 1.5
"""Standard deviations above its mean at which a latent counts as active; on Gaussian
pre-activations 7 % of tokens are beyond, enough of a few thousand to average."""
CHUNK = 1024
"""Latents worked on at once."""


def unit_rows(n: int, width: int, generator: torch.Generator) -> Float[Tensor, "{n} {width}"]:
    """Random directions, each of length 1."""
    directions = torch.randn(n, width, generator=generator)
    return directions / directions.norm(dim=1, keepdim=True)


@torch.no_grad()
def aimed(
    W_enc: Float[Tensor, "d_in latent"],
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    *,
    signed: bool = False,
) -> Float[Tensor, "latent d_out"]:
    """Decoder directions that point where the target goes when a latent is active.

        z = (x - mean x) W_enc,   f = max(z - 1.5 std z, 0)
        direction i = sum over tokens of f_i (y - mean y), of length 1

    Where y is x and all directions vary alike, that is the encoder transposed.

    Args:
        W_enc: Encoder directions.
        x: A sample of what is read.
        y: What is to be written at the same tokens.
        signed: Whether latents can be negative, and so are active on both sides.

    Returns:
        Rows of length 1; zero for a latent that is active nowhere in the sample.
    """
    centered, target = x - x.mean(0), y - y.mean(0)
    rows = []
    for part in W_enc.split(CHUNK, dim=1):
        z = centered @ part
        border = BORDER * z.std(0)
        active = (z - border).relu()
        if signed:
            active -= (-z - border).relu()
        rows.append(torch.nn.functional.normalize(active.T @ target, dim=1))
    return torch.cat(rows)
