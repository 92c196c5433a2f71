"""What would the best encoder of this decoder say? Codes found by pursuit, decoder unchanged.

A dictionary's own encoder is one matrix product. These look for better latents with the same
decoder, one latent at a time, each chosen by what the ones before it left unexplained:

    matching_pursuit              the cheapest: the chosen latent takes what it can
    gradient_pursuit              all chosen latents take a step together
    orthogonal_matching_pursuit   all chosen latents take their best values

What the error loses by it is the encoder's fault; what it keeps is the decoder's.

Sources: Mallat and Zhang 1993; Blumensath and Davies 2008; inference-time optimization of sparse
autoencoders by gradient pursuit as in Engels, Riggs and Tegmark 2024, "Decomposing the dark matter
of sparse autoencoders".
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.kernels.pursuit import Method, pursue
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = ["gradient_pursuit", "matching_pursuit", "orthogonal_matching_pursuit"]


def matching_pursuit(sae: SAE, x: Float[Tensor, "*batch d_out"], l0: int) -> SparseCodes:
    """Latents of activations by matching pursuit.

        r <- x - b_dec;  l0 times: i = argmax <w_i, r>, f_i += <w_i, r> / |W_dec[i]|,
        r <- r - <w_i, r> w_i                                  with w_i = W_dec[i] / |W_dec[i]|

    The residual never grows, and the codes for a smaller l0 are the first choices for a larger.

    Args:
        sae: Its decoder is used, its encoder is not. Latents are negative only if its own can be.
        x: Activations at the hook point it writes, in the model's units.
        l0: Choices per token. A latent can be chosen twice, so it is the most latents per token.

    Returns:
        Codes that `sae.decode` understands; at most l0 latents a token.

    Raises:
        ConfigError: l0 is not between 1 and d_sae, or the dictionary has a skip connection.
        ShapeError: The last axis is not d_out wide.

    Source: Mallat and Zhang 1993.

    >>> sae = SAE(2, 2)
    >>> with torch.no_grad(): _ = sae.W_dec.copy_(torch.eye(2))
    >>> matching_pursuit(sae, torch.tensor([[3.0, 1.0]]), 1).dense()
    tensor([[3., 0.]])
    """
    return _pursued(sae, x, l0, "matching")


def gradient_pursuit(sae: SAE, x: Float[Tensor, "*batch d_out"], l0: int) -> SparseCodes:
    """Latents of activations by gradient pursuit (inference-time optimization, ITO).

        f <- 0;  l0 times: r = x - b_dec - f W_dec, add argmax <w_i, r> to the support,
        g = W_dec r on the support, f <- max(0, f + g <g W_dec, r> / |g W_dec|^2)

    Before the clip a step never lengthens the residual; a dictionary with signed latents clips
    nothing.

    Args:
        sae: Its decoder is used, its encoder is not. Latents are negative only if its own can be.
        x: Activations at the hook point it writes, in the model's units.
        l0: Size of the support.

    Returns:
        Codes that `sae.decode` understands; at most l0 latents a token.

    Raises:
        ConfigError: l0 is not between 1 and d_sae, or the dictionary has a skip connection.
        ShapeError: The last axis is not d_out wide.

    Source: Blumensath and Davies 2008; on sparse autoencoders Engels, Riggs and Tegmark 2024.
    """
    return _pursued(sae, x, l0, "gradient")


def orthogonal_matching_pursuit(sae: SAE, x: Float[Tensor, "*batch d_out"], l0: int) -> SparseCodes:
    """Latents of activations by orthogonal matching pursuit: the best values of every support.

    Args:
        sae: Its decoder is used, its encoder is not. If its latents are not signed, the values
            are the best that are not negative, by coordinate descent.
        x: Activations at the hook point it writes, in the model's units.
        l0: Size of the support. Work grows with its cube.

    Returns:
        Codes that `sae.decode` understands; at most l0 latents a token.

    Raises:
        ConfigError: l0 is not between 1 and d_sae, or the dictionary has a skip connection.
        ShapeError: The last axis is not d_out wide.

    Source: Pati, Rezaiifar and Krishnaprasad 1993.
    """
    return _pursued(sae, x, l0, "orthogonal")


@torch.no_grad()
def _pursued(sae: SAE, x: Tensor, l0: int, method: Method) -> SparseCodes:
    if not 1 <= l0 <= sae.d_sae:
        raise ConfigError(
            f"A pursuit with l0={l0} needs 1 <= l0 <= {sae.d_sae}, the number of latents."
        )
    if x.ndim == 0 or x.shape[-1] != sae.d_out:
        raise ShapeError(
            f"The dictionary writes activations of width d_out={sae.d_out}; got shape "
            f"{tuple(x.shape)}."
        )
    if sae.W_skip is not None:
        raise ConfigError(
            "A pursuit explains activations by latents alone, and this dictionary adds a skip "
            "connection. Subtract what it gives, or use sae.encode."
        )
    dtype = torch.promote_types(sae.dtype, torch.float32)
    target = x.reshape(-1, sae.d_out).to(sae.device, dtype) * sae.normalization.scale_out
    norms = sae.W_dec.to(dtype).norm(dim=1)
    # A direction of length 0 explains nothing, and is never chosen as a unit vector of zeros.
    lengths = torch.where(norms > 0, norms, torch.ones_like(norms))
    atoms = sae.W_dec.to(dtype) / lengths.unsqueeze(1)
    codes = pursue(target - sae.b_dec.to(dtype), atoms, l0, method, signed=sae.activation.signed)
    values = (codes.values / lengths[codes.indices]).to(sae.dtype)
    return SparseCodes(codes.offsets, codes.indices, values, codes.d_sae)
