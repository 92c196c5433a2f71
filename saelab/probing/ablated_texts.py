"""What do examples look like with some latents ablated? Mean-pooled texts, in closed form.

With mean pooling over the tokens that count, ablating latents at every token and pooling again is

    pooled(x) - sum over ablated j of pooled(f_j) d_j

so what the dictionary does not explain stays in place, and padding cannot enter. A signed latent
counts as its two halves (`two_halves`), whichever way it points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.probing.design import Design
from saelab.probing.linear import LinearProbe
from saelab.probing.pooling import pool, pool_codes, two_halves
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = [
    "PooledTexts",
    "accuracy",
    "checked_labels",
    "effects_on",
    "firing",
    "largest",
    "pooled_texts",
]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTexts:
    """Mean-pooled examples: activations, halves of latents, and what one unit of each adds."""

    x: Float[Tensor, "example d"]
    """Mean activations over the tokens that count."""
    halves: SparseCodes
    """Mean of each half of each latent over the same tokens; half i + d_sae is the negative one."""
    directions: Float[Tensor, "half d"]
    """What one unit of each half adds to the activation."""

    def without(self, latents: Sequence[int] | NDArray[Any]) -> Float[Tensor, "example d"]:
        """Mean activations with some halves ablated at every token."""
        chosen = np.asarray(latents, dtype=np.int64)
        if not len(chosen):
            return self.x
        amounts = torch.from_numpy(Design.of(self.halves).columns(chosen)).to(self.x)
        return self.x - amounts @ self.directions[torch.from_numpy(chosen)]


def pooled_texts(
    sae: SAE, x: Float[Tensor, "token d"], example: Int[Tensor, " token"]
) -> PooledTexts:
    """Pool the tokens that count of every example.

    Args:
        sae: An autoencoder.
        x: Activations of those tokens only: no padding, no position 0.
        example: Which example each is of: 0, 1, ... in order.
    """
    if sae.is_transcoder:
        raise ConfigError("Ablation by latents needs a dictionary that writes where it reads.")
    d = (sae.W_dec.detach() / sae.normalization.scale_out).float().cpu()
    halves = two_halves(sae.encode(x))
    return PooledTexts(
        x=pool(x.float(), example, "mean").cpu(),
        halves=pool_codes(halves, example.to(halves.indices.device), "mean").to("cpu"),
        directions=torch.cat([d, -d]),
    )


def effects_on(
    texts: PooledTexts,
    rows: NDArray[Any],
    positive: NDArray[Any],
    probe: LinearProbe,
    *,
    clamp: bool,
) -> NDArray[Any]:
    """What each half adds to a probe on the positives, beyond what it adds elsewhere."""
    difference = Design.of(texts.halves).rows(rows).class_difference(positive[rows])
    if clamp:
        difference = np.maximum(difference, 0)
    return difference * (texts.directions.double().numpy() @ probe.direction())


def firing(texts: PooledTexts, rows: NDArray[Any]) -> NDArray[Any]:
    """Halves that fire on some of the rows."""
    return np.unique(Design.of(texts.halves).rows(rows).values.indices)


def largest(effects: NDArray[Any], n: int) -> NDArray[Any]:
    """The n halves of largest effect, of those with a positive one."""
    order = np.argsort(-effects, kind="stable")[:n]
    return order[effects[order] > 0]


def accuracy(probe: LinearProbe, x: Tensor, rows: NDArray[Any], positive: NDArray[Any]) -> float:
    """Share of the rows that a probe decides rightly."""
    return float(((probe.scores(x[rows]) > 0) == positive[rows]).mean())


def checked_labels(texts: PooledTexts, labels: NDArray[Any]) -> NDArray[Any]:
    """Labels as whole numbers, once there is one for every example."""
    labels = np.asarray(labels)
    if labels.shape != (len(texts.x),):
        raise ShapeError(f"{len(texts.x)} examples need {len(texts.x)} labels; {labels.shape}.")
    return labels.astype(np.int64)
