"""What is a sparse embedding? A dense one through a tied TopK autoencoder: k latents of many.

    z = (e - b_pre) W + b,  f = ReLU(TopK_k(z)),  e_hat = f W^T + b_pre

That is a dictionary like any other (`SAE`, tied), so it is saved, opened and read as one, and its
codes are `SparseCodes`. The same head can be used with fewer or more latents than it was trained
for (`codes_at`). Codes are compared by their cosine, so they are stored with length 1.

Source: Wen et al. 2025, Beyond Matryoshka: Revisiting Sparse Coding for Adaptive Representation
(CSR).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.errors import ConfigError
from saelab.kernels import encode_pairs
from saelab.normalization import Normalization
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = ["codes_at", "sparse_head", "unit_codes"]


def sparse_head(embeddings: Float[Tensor, "text d"], d_sae: int, k: int, seed: int = 0) -> SAE:
    """An untrained head: random directions, centred on the embeddings and scaled to their spread.

    Args:
        embeddings: What it will read; at least two.
        d_sae: Latents, usually four times d.
        k: Latents of a code.
        seed: Of the directions.

    Raises:
        ConfigError: k is larger than d_sae.
        DataError: The embeddings are constant or not finite.
    """
    scale = Normalization.fit(embeddings, None)
    sae = SAE(embeddings.shape[1], d_sae, TopK(k), tied=True, normalization=scale, seed=seed)
    with torch.no_grad():
        sae.b_dec.copy_(embeddings.mean(0) * scale.scale_in)
    return sae


def codes_at(sae: SAE, embeddings: Float[Tensor, "text d"], k: int) -> SparseCodes:
    """Codes of at most k latents, whatever the head was trained for.

    Raises:
        ConfigError: k is not from 1 to d_sae.
    """
    if not 1 <= k <= sae.d_sae:
        raise ConfigError(f"k={k} latents of {sae.d_sae} were asked for; use 1 to {sae.d_sae}.")
    with torch.no_grad():
        rows = embeddings.to(sae.device, sae.dtype) * sae.normalization.scale_in - sae.b_dec
        ((pairs, values),) = encode_pairs(rows, sae.W_enc.T, sae.b_enc, [TopK(k).select])
        return SparseCodes.from_pairs(
            pairs.tokens(), pairs.indices, values, pairs.n_tokens, sae.d_sae
        )


def unit_codes(codes: SparseCodes) -> SparseCodes:
    """The same codes with length 1, so that their products are cosines; empty ones stay empty.

    >>> unit_codes(SparseCodes.from_dense(torch.tensor([[3.0, 4.0]]))).values.tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    square = torch.zeros(len(codes), dtype=codes.values.dtype, device=codes.values.device)
    square.index_add_(0, codes.tokens, codes.values.square())
    values = codes.values / square.sqrt()[codes.tokens]
    return SparseCodes(codes.offsets, codes.indices, values, codes.d_sae)
