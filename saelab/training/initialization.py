"""Where training starts from: the input scale, b_dec, and the variance that losses divide by."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.directions import aimed, unit_rows
from saelab.errors import ConfigError, DataError
from saelab.normalization import Normalization
from saelab.objectives import Term
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.config import TrainConfig

__all__ = ["geometric_median", "initialize"]

SAMPLE_TOKENS = 32_768
"""How many activations the scale, the center and the variance are measured on."""
AIM_TOKENS = 8192
"""How many of them a transcoder's decoder directions are aimed with."""
START_TOKENS = 2048
"""How many of them a term sees before the first step; their pre-activations are dense."""


@torch.no_grad()
def initialize(
    sae: SAE, store: ActivationStore, config: TrainConfig, terms: Sequence[Term] = ()
) -> float:
    """Fit the start of an untrained dictionary to the data, and measure the data's variance.

    Fitted are the scales, b_dec, b_enc where b_dec is not the input's, a transcoder's decoder
    directions unless somebody changed them, and what the terms ask for. A dictionary whose b_dec is
    not zero has been trained or set by hand: it keeps everything.

    Returns:
        E|target - mean|^2 of a sample in normalized units; a transcoder's target is what it writes.

    Raises:
        DataError: The sample is constant or not finite.
        ConfigError: Directions are to be kept at norm 1, and one of them is zero.
    """
    if config.decoder == "unit" and not sae.W_dec.any(dim=1).all():
        raise ConfigError(
            "A decoder direction is zero, so it cannot be kept at norm 1. Train with "
            'TrainConfig(decoder="free"), or start from other directions.'
        )
    sample = _sample(store, config)
    target = _sample(store.at(sae.hook_out), config) if sae.hook_out is not None else sample
    untrained = not sae.b_dec.any()
    if untrained:
        if config.normalize:
            sae.normalization = Normalization.fit(sample, target if sae.is_transcoder else None)
        outputs = target.to(sae.device, sae.dtype) * sae.normalization.scale_out
        if config.center == "mean":
            sae.b_dec.copy_(outputs.mean(0))
        elif config.center == "geometric_median":
            sae.b_dec.copy_(geometric_median(outputs))
        if not sae.pre_bias and config.center != "zero":
            # The mean input then starts at pre-activation 0, as b_dec does it with a pre-bias.
            inputs = sample.to(sae.device, sae.dtype) * sae.normalization.scale_in
            sae.b_enc.copy_(-(inputs.mean(0) @ sae.W_enc))
        if sae.is_transcoder and config.decoder == "unit" and _directions_are_random(sae):
            _aim(sae, sample, target)
    scaled = target.double() * sae.normalization.scale_out
    variance = (scaled - scaled.mean(0)).square().sum(1).mean().item()
    if not variance > 0:
        raise DataError("All activations of the sample are the same: there is nothing to learn.")
    some = sample[:START_TOKENS].to(sae.device, sae.dtype) * sae.normalization.scale_in
    for term in terms if untrained else ():
        term.start(sae, some)
    return variance


def _directions_are_random(sae: SAE) -> bool:
    """Whether the decoder is still as the constructor made it."""
    generator = torch.Generator().manual_seed(sae.seed)
    return torch.equal(unit_rows(sae.d_sae, sae.d_out, generator).to(sae.W_dec), sae.W_dec)


def _aim(sae: SAE, sample: Tensor, target: Tensor) -> None:
    """Start decoder directions where the target goes when a latent is active."""
    some = [part[:AIM_TOKENS].to(sae.device, sae.dtype) for part in (sample, target)]
    start = aimed(sae.W_enc, *some, signed=sae.activation.signed)
    found = start.any(dim=1)
    sae.W_dec[found] = start[found]


def _sample(store: ActivationStore, config: TrainConfig) -> Float[Tensor, "token d"]:
    # A source that has to run a model for every row may ask for fewer.
    most = getattr(store.source, "largest_sample", SAMPLE_TOKENS)
    sample = store.sample(min(most, store.n_tokens), seed=config.seed)
    if not torch.isfinite(sample).all():
        raise DataError(f"The activations of {store.hook or 'the store'} hold NaN or infinity.")
    if len(sample) < 2:
        raise DataError("Training needs at least two activations; the store has fewer.")
    return sample


def geometric_median(
    points: Float[Tensor, "point width"], iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " width"]:
    """The point with the least total distance to all others, which outliers hardly move.

    Weiszfeld's iteration g <- sum x / |x - g| over sum 1 / |x - g|. Distances are floored at a
    millionth of their mean, so a point that equals the estimate does not divide by zero.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [1000.0]])).round().tolist()
    [1.0]
    """
    points64 = points.double()
    center = points64.mean(0)
    for _ in range(iterations):
        distances = (points64 - center).norm(dim=1)
        scale = distances.mean()
        if scale == 0:
            break
        weights = 1 / distances.clamp_min(1e-6 * scale)
        moved = weights @ points64 / weights.sum()
        done = (moved - center).norm() <= tolerance * scale
        center = moved
        if done:
            break
    return center.to(points.dtype)
