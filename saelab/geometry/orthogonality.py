"""How orthogonal are the directions, and does a latent read where it writes?

    coherence   largest |cosine| of two different directions; the mean |cosine|; beside random
                directions, and the Welch bound sqrt((F - d) / (d (F - 1))) that no F directions
                in d dimensions can be below
    epsilon     how far lengths of codes are from lengths of activations: saelab.norm_geometry,
                with the ZF plot
    alignment   cosine of a latent's encoder and decoder direction; null: of different latents

Sources: Welch 1974; Lee et al. 2025, "Evaluating and designing sparse autoencoders by
approximating quasi-orthogonality".
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ShapeError
from saelab.geometry.nulls import AgainstNull, checked_directions
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = ["Alignment", "Coherence", "alignment", "coherence", "matched_support"]

_CHUNK = 1024


@final
@dataclass(frozen=True, kw_only=True)
class Coherence:
    """Cosines of all pairs of different directions."""

    n_latents: int
    """Directions."""
    d: int
    """Their width."""
    largest: AgainstNull
    """Largest |cosine|, 0 to 1; null: random directions. The epsilon of quasi-orthogonality."""
    mean: AgainstNull
    """Mean |cosine|; random directions give about sqrt(2 / (pi d))."""
    nearest: AgainstNull
    """Median over latents of the largest |cosine| with another."""
    welch: float
    """No set of as many directions has a smaller `largest`; 0 if there are at most d."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        nulls = {name: getattr(self, name).to_json() for name in ("largest", "mean", "nearest")}
        return {**asdict(self), **nulls}

    def __str__(self) -> str:
        """Four lines."""
        return "\n".join(
            [
                f"{self.n_latents:,} directions in {self.d} dimensions, Welch bound "
                f"{self.welch:.4f}",
                f"  largest |cosine| {self.largest}",
                f"  median nearest   {self.nearest}",
                f"  mean |cosine|    {self.mean}",
            ]
        )


def coherence(
    directions: Float[Tensor, "latent d"], *, n_null: int = 2, seed: int = 0
) -> Coherence:
    """Measure all pairs of directions, and of as many random ones.

    >>> round(coherence(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -3.0]])).largest.value, 4)
    0.7071
    """
    unit = checked_directions(directions).cpu()
    n, d = unit.shape
    generator = torch.Generator().manual_seed(seed)
    own = _cosines(unit)
    nulls = [
        _cosines(checked_directions(torch.randn(n, d, generator=generator))) for _ in range(n_null)
    ]
    beside = [
        AgainstNull(value=value, draws=tuple(one[i] for one in nulls), null="random directions")
        for i, value in enumerate(own)
    ]
    return Coherence(
        n_latents=n,
        d=d,
        largest=beside[0],
        mean=beside[1],
        nearest=beside[2],
        welch=math.sqrt(max(0, n - d) / (d * (n - 1))),
    )


def _cosines(unit: Tensor) -> tuple[float, float, float]:
    total, nearest = 0.0, []
    for start in range(0, len(unit), _CHUNK):
        size = (unit[start : start + _CHUNK] @ unit.T).abs()
        size.diagonal(start).zero_()
        total += float(size.sum(dtype=torch.float64))
        nearest.append(size.amax(1))
    found = torch.cat(nearest)
    n = len(unit)
    return float(found.max()), total / (n * (n - 1)), float(found.median())


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Cosine of encoder and decoder direction, latent by latent."""

    cosines: Float[Tensor, " latent"]
    """Each between -1 and 1."""
    median: AgainstNull
    """Median over latents; null: the decoder direction of another latent."""

    def __str__(self) -> str:
        """One line."""
        low = float(self.cosines.quantile(0.05))
        return f"encoder and decoder, median cosine {self.median}; 5 % are below {low:.3f}"


def alignment(sae: SAE, *, n_null: int = 5, seed: int = 0) -> Alignment:
    """Whether a dictionary's latents read along the direction they write.

    Raises:
        ShapeError: It reads and writes vectors of different widths.
    """
    if sae.d_in != sae.d_out:
        raise ShapeError(
            f"The dictionary reads width {sae.d_in} and writes width {sae.d_out}: its encoder and "
            "decoder directions have no cosine."
        )
    reads = checked_directions(sae.W_enc.T).cpu()
    writes = checked_directions(sae.W_dec).cpu()
    cosines = (reads * writes).sum(1)
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(n_null):
        shift = int(torch.randint(1, len(reads), (), generator=generator))
        draws.append(float((reads * writes.roll(shift, 0)).sum(1).median()))
    median = AgainstNull(
        value=float(cosines.median()), draws=tuple(draws), null="another latent's decoder"
    )
    return Alignment(cosines=cosines, median=median)


def matched_support(
    codes: SparseCodes,
    directions: Float[Tensor, "latent d"],
    lengths: Float[Tensor, " token"],
) -> Int[Tensor, " token"]:
    """How many of a token's strongest latents make its code as long as the activation.

        k(x) = argmin_k | sqrt(sum of the k largest (f_i |W_dec[i]|)^2) - |x - b_dec| |

    over k from 1 to the active latents; the least where several are equally near, with rounding
    taken as equal. 0 for a token without any.

    Args:
        codes: Of any dictionary, signed or not.
        directions: Its decoder rows.
        lengths: |x - b_dec| of each token, in the units of the codes.

    Source: Lee et al. 2025, the selection of top-AFA.

    >>> codes = SparseCodes.from_dense(torch.tensor([[3.0, 0.0, -4.0]]))
    >>> matched_support(codes, torch.eye(3), torch.tensor([5.0])).tolist()
    [2]
    """
    if len(lengths) != len(codes) or len(directions) != codes.d_sae:
        raise ShapeError(
            f"Codes of {len(codes)} tokens and {codes.d_sae} latents, with {len(lengths)} lengths "
            f"and {len(directions)} directions."
        )
    found = torch.zeros(len(codes), dtype=torch.int64)
    if codes.n_pairs == 0:
        return found
    squares = (codes.values.double() * directions.norm(dim=1).double()[codes.indices]).square()
    tokens = codes.tokens
    order = squares.argsort(descending=True)
    order = order[tokens[order].argsort(stable=True)]
    running = squares[order].cumsum(0)
    starts = codes.offsets[:-1]
    # The rows of empty tokens at the end start behind the last pair.
    before = torch.cat([running.new_zeros(1), running])[starts]
    reached = (running - before[tokens]).clamp_min(0).sqrt()
    gap = (reached - lengths.double()[tokens]).abs()
    least = torch.full((len(codes),), torch.inf, dtype=torch.float64)
    least = least.scatter_reduce(0, tokens, gap, "amin")
    good = gap <= (least + 1e-9 * lengths.double().abs().clamp_min(1e-30))[tokens]
    rank = torch.arange(len(gap)) - starts[tokens]
    big = torch.where(good, rank + 1, codes.n_pairs + 1)
    smallest = torch.full((len(codes),), codes.n_pairs + 1)
    smallest = smallest.scatter_reduce(0, tokens, big, "amin")
    return torch.where(codes.l0() > 0, smallest, found)
