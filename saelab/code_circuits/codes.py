"""How does a head's output become an integer? The latent that fires most, of one small autoencoder.

    f = ReLU(r W_enc + b_enc)        r: one head's output on one example, scaled
    loss = mean |r - f W_dec - b_dec|^2 / d + l1 mean sum |f|
    code = argmax over latents of f; -1 where none fires

One autoencoder is trained on the outputs of all heads on all examples, without looking at which are
positive; only then is anything discrete. What the published description leaves open is a setting
here: how outputs are scaled, the size, and how long it trains.

Source: O'Neill and Bui 2024 (arXiv 2405.12522). The defaults of `CodeConfig` are this library's.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.activation_functions import ReLU
from saelab.errors import ConfigError, DataError
from saelab.sae import SAE

__all__ = ["NO_CODE", "CodeConfig", "head_codes"]

NO_CODE = -1
"""The code of an output on which no latent fires; it is no evidence of anything."""


@final
@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """How codes are made; every field but the seed is a choice the source leaves open."""

    d_sae: int = 200
    """Latents, so at most as many codes."""
    l1: float = 0.02
    """Weight of the sum of latents."""
    lr: float = 3e-3
    """Of Adam, with all examples in every step."""
    epochs: int = 200
    """Steps."""
    scale: Literal["head", "all", "none"] = "all"
    """Outputs less their mean and over their root mean square: of each head, of all, or as is. Of
    each head, one that writes next to nothing is as loud as any other."""
    seed: int = 0
    """Of the autoencoder's first weights."""

    def __post_init__(self) -> None:
        if self.d_sae < 2 or self.epochs < 1 or self.lr <= 0 or self.l1 < 0:
            raise ConfigError(
                f"CodeConfig(d_sae={self.d_sae}, epochs={self.epochs}, lr={self.lr}, "
                f"l1={self.l1}): give two latents, one epoch, a positive rate and no negative l1."
            )


def head_codes(
    outputs: Float[Tensor, "example layer head d"], config: CodeConfig | None = None
) -> Int[Tensor, "example layer head"]:
    """One integer for every head on every example.

    Args:
        outputs: Of `head_outputs`, positives and negatives together.
        config: How.

    Raises:
        DataError: There are fewer than two examples, or numbers that are not finite.
    """
    config = config or CodeConfig()
    if len(outputs) < 2 or not bool(outputs.isfinite().all()):
        raise DataError(
            f"{len(outputs)} examples of head outputs, finite: {bool(outputs.isfinite().all())}. "
            "Give at least two, a positive and a negative, without NaN."
        )
    x = _scaled(outputs.float(), config.scale)
    rows = x.flatten(0, 2)
    sae = _trained(rows, config)
    with torch.no_grad():
        latents = (rows @ sae.W_enc + sae.b_enc).relu()
        largest, codes = latents.max(dim=1)
    return codes.masked_fill(largest <= 0, NO_CODE).unflatten(0, x.shape[:3])


def _scaled(x: Float[Tensor, "example layer head d"], scale: str) -> Tensor:
    if scale == "none":
        return x
    # The mean is each head's own: a constant that it adds everywhere is no news.
    x = x - x.mean(0, keepdim=True)
    axes = (0,) if scale == "head" else (0, 1, 2)
    size = x.square().mean((*axes, 3), keepdim=True).sqrt()
    return x / size.clamp_min(torch.finfo(x.dtype).tiny)


def _trained(rows: Float[Tensor, "row d"], config: CodeConfig) -> SAE:
    sae = SAE(rows.shape[1], config.d_sae, ReLU(), pre_bias=False, seed=config.seed)
    optimizer = torch.optim.Adam([sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec], lr=config.lr)
    with torch.enable_grad():
        for _ in range(config.epochs):
            latents = (rows @ sae.W_enc + sae.b_enc).relu()
            missed = rows - latents @ sae.W_dec - sae.b_dec
            loss = missed.square().mean() + config.l1 * latents.sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():  # else latents would shrink and directions grow
                sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return sae
