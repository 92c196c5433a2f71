"""Where training starts from: the input scale, b_dec, and the variance that losses divide by."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import DataError
from saelab.normalization import Normalization
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.train_config import TrainConfig

__all__ = ["geometric_median", "initialize"]

SAMPLE_TOKENS = 32_768
"""How many activations the scale, the center and the variance are measured on."""


@torch.no_grad()
def initialize(sae: SAE, store: ActivationStore, config: TrainConfig) -> float:
    """Fit scale and center of an untrained dictionary; measure the data's variance.

    A dictionary whose b_dec is not zero has been trained or set by hand: it keeps both.

    Returns:
        E|target - mean|^2 of a sample in normalized units; a transcoder's target is what it writes.

    Raises:
        DataError: The sample is constant or not finite.
    """
    sample = _sample(store, config)
    target = _sample(store.at(sae.hook_out), config) if sae.hook_out is not None else sample
    if not sae.b_dec.any():
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
    scaled = target.double() * sae.normalization.scale_out
    variance = (scaled - scaled.mean(0)).square().sum(1).mean().item()
    if not variance > 0:
        raise DataError("All activations of the sample are the same: there is nothing to learn.")
    return variance


def _sample(store: ActivationStore, config: TrainConfig) -> Float[Tensor, "token d"]:
    sample = store.sample(min(SAMPLE_TOKENS, store.n_tokens), seed=config.seed)
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
