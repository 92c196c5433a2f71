"""What makes sparse codes of different things different? Three losses over a batch of codes.

With codes of length 1 and s_ij = z_i . z_j / temperature:

    repulsion   mean_i log(1 + 2 sum_{j != i} exp(s_ij - 1 / temperature))
    pairing     mean_i -log(exp(s_ii') / sum_j exp(s_ij'))                       i' the partner of i
    labels      mean_i -log(sum_{same label} exp(s_ij) / sum_{j != i} exp(s_ij))

`repulsion` is what CSR's contrastive loss is when its two views are one input through one
deterministic network: the positive similarity is always 1, and what is left pushes codes apart. It
goes from log(1 + 2 (B - 1) e^(-1 / temperature)) for orthogonal codes to log(2 B - 1) for equal
ones. In `labels` the sum over positives is inside the logarithm, and anchors alone with their label
count nothing.

Source: Wen et al. 2025, Beyond Matryoshka (CSR), and CSRv2, with their code.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError

__all__ = ["label_contrast", "pairing", "repulsion"]


def repulsion(z: Float[Tensor, "row d_sae"], temperature: float = 0.2) -> Float[Tensor, ""]:
    """How much codes of different inputs point the same way.

    Args:
        z: Codes; a row of zeros is alike to nothing.
        temperature: Small ones look at the nearest codes only.

    >>> round(float(repulsion(torch.eye(2))), 4)  # log(1 + 2 exp(-5))
    0.0134
    """
    similar = _similar(z, z, temperature) - 1 / temperature
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    others = similar.masked_fill(own, -torch.inf) + torch.log(torch.tensor(2.0))
    return torch.logaddexp(torch.logsumexp(others, 1), z.new_zeros(())).mean()


def pairing(
    z: Float[Tensor, "row d_sae"], partners: Float[Tensor, "row d_sae"], temperature: float = 0.2
) -> Float[Tensor, ""]:
    """How hard it is to tell each row's partner among all partners (InfoNCE, one direction).

    >>> round(float(pairing(torch.eye(2), torch.eye(2))), 4)  # log(1 + exp(-5))
    0.0067
    """
    similar = _similar(z, partners, temperature)
    target = torch.arange(len(z), device=z.device)
    return torch.nn.functional.cross_entropy(similar, target)


def label_contrast(
    z: Float[Tensor, "row d_sae"], labels: Int[Tensor, " row"], temperature: float = 0.2
) -> Float[Tensor, ""]:
    """How hard it is to tell rows of the same label among all others.

    Raises:
        DataError: No two rows share a label.

    >>> codes, labels = torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    >>> round(float(label_contrast(codes, labels)), 4)  # log(1 + 2 exp(-5))
    0.0134
    """
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    same = (labels[:, None] == labels[None, :]) & ~own
    anchored = same.any(1)
    if not bool(anchored.any()):
        raise DataError("No two rows of the batch share a label; use larger batches.")
    similar = _similar(z, z, temperature)
    near = torch.logsumexp(similar.masked_fill(~same, -torch.inf)[anchored], 1)
    every = torch.logsumexp(similar.masked_fill(own, -torch.inf)[anchored], 1)
    return (every - near).mean()


def _similar(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    return a @ b.T / temperature
