"""What does a larger dictionary know that a smaller one does not? Latents moved between the two.

A latent of the larger dictionary is of the reconstruction type if some direction of the smaller
has a cosine of at least 0.7 with it, and novel otherwise. Adding latent j of the large one to the
small one's reconstruction changes the squared error of token t by

    |e - f_tj d_j|^2 - |e|^2 = f_tj^2 |d_j|^2 - 2 f_tj <e, d_j>,   e = x - recons of the small one

which is exact and needs the pairs (t, j) only. Novel latents should lower the error, latents the
small one already has should raise it: they are added twice. The null takes each latent's values at
tokens of elsewhere.

Source: Leask et al. 2025, "Sparse autoencoders do not find canonical units of analysis".
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry.matching import neighbors
from saelab.metrics import fvu
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = ["Stitching", "stitch"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Stitching:
    """Two dictionaries of one place, and mixtures of them; every FVU on the same tokens."""

    n_tokens: int
    """Tokens measured on."""
    bar: float
    """Cosine from which on a latent of the large one is of the reconstruction type."""
    nearest: Float[Tensor, " latent"]
    """For each latent of the large one, the largest cosine with the small one."""
    novel: Bool[Tensor, " latent"]
    """Which of them are novel."""
    change: Float[Tensor, " latent"]
    """Change of the small one's mean squared error by adding the latent alone; 0 if silent."""
    change_null: Float[Tensor, " latent"]
    """The same with the latent's values moved to other tokens."""
    fvu: dict[str, float]
    """small, large, small + novel, small + as many others, swapped."""

    def improving(self, which: Bool[Tensor, " latent"], null: bool = False) -> float | None:
        """Share of some latents, of those that fire, that lower the error; None if none fires."""
        change = (self.change_null if null else self.change)[which & (self.change != 0)]
        return float((change < 0).double().mean()) if len(change) else None

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without the numbers of each latent."""
        kinds = {"novel": self.novel, "reconstruction": ~self.novel}
        return {
            "n_tokens": self.n_tokens,
            "bar": self.bar,
            "fvu": self.fvu,
            **{
                name: {
                    "latents": int(which.sum()),
                    "improving": self.improving(which),
                    "improving_null": self.improving(which, null=True),
                }
                for name, which in kinds.items()
            },
        }

    def __str__(self) -> str:
        """Some lines."""
        lines = [f"{self.n_tokens:,} tokens"]
        for name, which in (("novel", self.novel), ("reconstruction", ~self.novel)):
            own, null = self.improving(which), self.improving(which, null=True)
            share = "none fires" if own is None else f"{own:.1%} lower the error (null {null:.1%})"
            lines.append(f"  {int(which.sum()):,} latents of {name} type: {share}")
        lines.append("  FVU " + ", ".join(f"{k} {v:.4f}" for k, v in self.fvu.items()))
        return "\n".join(lines)


@torch.no_grad()
def stitch(
    small: SAE,
    large: SAE,
    x: Float[Tensor, "token d_in"],
    *,
    bar: float = 0.7,
    signed: bool = False,
    seed: int = 0,
) -> Stitching:
    """Insert and swap latents of a large dictionary into a small one.

    "small + as many others" inserts as many latents of the reconstruction type, drawn at random
    among those that fire: it tells what adding latents does from what adding novel ones does.
    "swapped" takes out every latent of the small one that has a partner in the large one, and puts
    in all of the large one's reconstruction type.

    Args:
        small: A dictionary.
        large: Another of the same hook point; usually wider.
        x: Activations that neither was trained on.
        bar: See `Stitching`.
        signed: Compare |cosine|.
        seed: Of the random latents.

    Raises:
        ShapeError: They do not write vectors of one width.
    """
    _refuse(small, large, x, bar)
    own, other = small.encode(x), large.encode(x)
    similar = neighbors(large.W_dec, small.W_dec, signed=signed)[1].squeeze(1)
    back = neighbors(small.W_dec, large.W_dec, signed=signed)[1].squeeze(1)
    if signed:
        similar, back = similar.abs(), back.abs()
    novel, matched = similar < bar, back >= bar
    recons = small.decode(own)
    error = x.to(recons) - recons
    directions = large.W_dec / large.normalization.scale_out
    change = _changes(other, error, directions)
    shift = max(1, len(x) // 2)
    fires = torch.zeros_like(novel).index_fill_(0, other.indices, True)
    others = _drawn(fires & ~novel, int((fires & novel).sum()), seed)

    def part(sae: SAE, codes: SparseCodes, which: Tensor) -> Tensor:
        nothing = codes.values.new_zeros(1, sae.d_sae)
        return sae.decode(_only(codes, which)) - sae.decode(nothing)

    swapped = recons - part(small, own, matched) + part(large, other, ~novel)
    mixtures = {
        "small": recons,
        "large": large.decode(other),
        "small + novel": recons + part(large, other, novel),
        f"small + {int(others.sum())} others": recons + part(large, other, others),
        "swapped": swapped,
    }
    found = {name: fvu(x.to(recons), one) for name, one in mixtures.items()}
    return Stitching(
        n_tokens=len(x),
        bar=bar,
        nearest=similar,
        novel=novel,
        change=change,
        change_null=_changes(other, error.roll(shift, 0), directions),
        fvu={name: value for name, value in found.items() if value is not None},
    )


def _refuse(small: SAE, large: SAE, x: Tensor, bar: float) -> None:
    if small.d_out != large.d_out or small.d_in != large.d_in:
        raise ShapeError(
            f"Widths {small.d_in} to {small.d_out} and {large.d_in} to {large.d_out}: only "
            "dictionaries of one place can be stitched."
        )
    if small.is_transcoder or large.is_transcoder:
        raise ConfigError("stitch compares reconstructions of what is read; use autoencoders.")
    if not 0 < bar < 1:
        raise ConfigError(f"bar={bar} must be in (0, 1).")
    if len(x) < 2:
        raise DataError(f"{len(x)} activations are too few to measure an error on.")


def _drawn(among: Tensor, n: int, seed: int) -> Tensor:
    candidates = among.nonzero().squeeze(1)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    drawn = torch.zeros_like(among)
    drawn[candidates[order[:n].to(candidates.device)]] = True
    return drawn


def _changes(codes: SparseCodes, error: Tensor, directions: Tensor) -> Tensor:
    squares = directions.square().sum(1)
    change = torch.zeros(codes.d_sae, dtype=torch.float64, device=error.device)
    tokens, step = codes.tokens, 1 << 16
    for start in range(0, codes.n_pairs, step):
        at = slice(start, start + step)
        latent, value = codes.indices[at], codes.values[at]
        dot = (error[tokens[at]] * directions[latent]).sum(1)
        gain = value.square() * squares[latent] - 2 * value * dot
        change.index_add_(0, latent, gain.double())
    return (change / len(error)).to(error.dtype)


def _only(codes: SparseCodes, which: Tensor) -> SparseCodes:
    kept = which[codes.indices]
    return SparseCodes.from_pairs(
        codes.tokens[kept], codes.indices[kept], codes.values[kept], len(codes), codes.d_sae
    )
