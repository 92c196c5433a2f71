"""Where do activations lie, and how does a dictionary start inside that place?

Some activations fill only part of their space: attention outputs more than most. Decoder directions
drawn at random from the whole space then point mostly where nothing ever is; many of their latents
never fire and stay dead. Started inside the span of the activations' leading principal directions,
fewer do.

    U     the r leading right singular vectors of x - mean(x), as rows
    w_i   <- w_i U^T U, to norm 1              decoder directions, inside the span of U
    W_enc <- gain * W_dec^T                    the gain with the least squared error at the start

Only the start is constrained: training may leave the subspace. The published recipe gives encoder
and decoder a common norm c, found by search; where decoder directions are kept at norm 1, as here
by default, all of that scale goes into the encoder: gain = c^2 reconstructs the same.

Too small a rank costs reconstruction. Take the rank that holds 99 % of the variance, or more.

Source: arXiv 2508.16929 for the finding and the method. The grid of the search is that of the
authors' code; how the subspace's rank is chosen is ours.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.normalization import Normalization
from saelab.sae import SAE

__all__ = ["ActiveSubspace", "active_subspace", "initialize_in_subspace"]

SEARCH_TOKENS = 4096
"""Rows of the sample on which the gain is searched."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class ActiveSubspace:
    """The directions in which a sample varies, and how many of them matter."""

    mean: Float[Tensor, " d"]
    """Center of the sample."""
    directions: Float[Tensor, "d d"]
    """Principal directions as rows of length 1, the strongest first."""
    variances: Float[Tensor, " d"]
    """Variance along each, descending."""
    rank: int
    """The least number of directions that hold the wanted share of the variance."""

    @property
    def basis(self) -> Float[Tensor, "rank d"]:
        """The first `rank` directions."""
        return self.directions[: self.rank]

    @property
    def effective_dimension(self) -> float:
        """(sum of variances)^2 / sum of their squares, from 1 to d; see `effective_dimension`."""
        return float(self.variances.sum().square() / self.variances.square().sum())

    def held(self, rank: int) -> float:
        """Share of the variance that the first `rank` directions hold, 0 to 1."""
        return float(self.variances[:rank].sum() / self.variances.sum())


@torch.no_grad()
def active_subspace(sample: Float[Tensor, "token d"], share: float = 0.99) -> ActiveSubspace:
    """Principal directions of a sample, computed in float64 about its mean.

    Args:
        sample: Activations in any units; at least as many rows as the rank to be found.
        share: Of the variance that the basis must hold, above 0 and at most 1.

    Raises:
        ConfigError: `share` is out of range.
        DataError: The sample is constant or not finite.

    >>> x = torch.tensor([[2.0, 0.0, 5.0], [-2.0, 0.0, 5.0], [0.0, 0.1, 5.0], [0.0, -0.1, 5.0]])
    >>> found = active_subspace(x)
    >>> found.rank, found.basis.abs().round(decimals=3).tolist()
    (1, [[1.0, 0.0, 0.0]])
    """
    if not 0 < share <= 1:
        raise ConfigError(f"active_subspace(share={share}) must be above 0 and at most 1.")
    points = sample.double()
    mean = points.mean(0)
    centered = points - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / max(len(points), 1))
    variances = variances.flip(0).clamp_min(0)
    total = variances.sum()
    if not (torch.isfinite(total) and total > 0):
        raise DataError(
            f"The sample of {len(sample)} activations is constant or not finite: it spans nothing."
        )
    # A little below the share, so that rounding does not ask for one direction more.
    reached = variances.cumsum(0) >= (share - 1e-12) * total
    rank = int((~reached).sum()) + 1
    # Beyond rounding there is no variance, and no direction worth having.
    rank = min(rank, int((variances > 1e-12 * variances[0]).sum()))
    return ActiveSubspace(mean, directions.T.flip(0), variances, rank)


@torch.no_grad()
def initialize_in_subspace(
    sae: SAE,
    sample: Float[Tensor, "token d_in"],
    targets: Float[Tensor, "token d_out"] | None = None,
    rank: int | None = None,
    *,
    share: float = 0.99,
    unit_rows: bool = True,
) -> ActiveSubspace:
    """Start an untrained dictionary inside the subspace that its activations use.

    Fits the scale and sets b_dec to the mean, unless b_dec has been set before; turns the decoder
    directions into the subspace; sets the encoder's gain. Training then keeps all of it.

    Args:
        sae: Changed in place; its random directions are where the start comes from.
        sample: What it will read, in the model's units.
        targets: What a transcoder will write; None for an autoencoder. A transcoder's encoder
            keeps its directions, and only its gain is set.
        rank: Dimensions of the subspace; None for those that hold `share` of the variance.
        share: See `rank`.
        unit_rows: Keep decoder directions at norm 1, the scale going into the encoder; False
            gives both the same norm, for training with TrainConfig(decoder="free").

    Returns:
        The subspace, its `rank` the one used.

    Raises:
        ConfigError: The rank is out of range, or targets are missing or out of place.
        ShapeError: Sample or targets are not as wide as the dictionary.
    """
    wanted = _wanted(sae, sample, targets)
    if not sae.b_dec.any():
        sae.normalization = Normalization.fit(sample, targets)
        sae.b_dec.copy_(wanted.mean(0) * sae.normalization.scale_out)
        if not sae.pre_bias:  # the mean input then starts at pre-activation 0
            center = (sample.to(sae.W_enc) * sae.normalization.scale_in).mean(0)
            sae.b_enc.copy_(-(center @ sae.W_enc))
    found = active_subspace(wanted, share)
    rank = found.rank if rank is None else rank
    if not 1 <= rank <= sae.d_out:
        raise ConfigError(f"initialize_in_subspace(rank={rank}): between 1 and {sae.d_out}.")
    found = ActiveSubspace(found.mean, found.directions, found.variances, rank)
    inside = sae.W_dec.double().cpu() @ found.basis.T.cpu() @ found.basis.cpu()
    sae.W_dec.copy_(inside / inside.norm(dim=1, keepdim=True))
    if not sae.is_transcoder:
        sae.W_enc.copy_(sae.W_dec.T)
        if not sae.pre_bias:
            sae.b_enc.copy_(
                -((sample.mean(0) * sae.normalization.scale_in).to(sae.W_enc) @ sae.W_enc)
            )
    if not sae.tied or not unit_rows:
        _set_gain(sae, sample[:SEARCH_TOKENS], wanted[:SEARCH_TOKENS], unit_rows)
    return found


def _wanted(sae: SAE, sample: Tensor, targets: Tensor | None) -> Tensor:
    """What is to be reconstructed, once the arguments fit the dictionary."""
    if sae.is_transcoder == (targets is None):
        raise ConfigError(
            "initialize_in_subspace needs targets for a transcoder, and for nothing else."
        )
    wanted = sample if targets is None else targets
    if sample.shape[1] != sae.d_in or wanted.shape[1] != sae.d_out or len(wanted) != len(sample):
        raise ShapeError(
            f"The dictionary reads {sae.d_in} and writes {sae.d_out}; the sample is "
            f"{tuple(sample.shape)} and what it writes {tuple(wanted.shape)}."
        )
    return wanted


def _set_gain(sae: SAE, sample: Tensor, wanted: Tensor, unit_rows: bool) -> None:
    """The common norm c with the least error when encoder and decoder have it, coarse then fine."""
    W_enc, b_enc, W_dec = sae.W_enc.clone(), sae.b_enc.clone(), sae.W_dec.clone()

    def at(norm: float) -> float:
        # Every candidate is given its final form, because thresholds see the encoder's scale.
        gain = norm**2 if unit_rows else norm
        sae.W_enc.copy_(W_enc * gain)
        sae.b_enc.copy_(b_enc * gain)
        sae.W_dec.copy_(W_dec if unit_rows else W_dec * norm)
        recons = sae.decode(sae.encode(sample), sample if sae.W_skip is not None else None)
        return float((recons - wanted.to(recons)).double().square().sum())

    coarse = min((tenth / 10 for tenth in range(1, 51)), key=at)
    near = (coarse + hundredth / 100 for hundredth in range(-10, 11))
    at(min((norm for norm in near if norm > 0), key=at))
