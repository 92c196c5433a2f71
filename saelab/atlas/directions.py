"""What do a latent's weights say? Norms, neighbors, heads, and the tokens its direction pushes."""

from dataclasses import dataclass
from typing import Any, final

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ModelError
from saelab.logit_effects import RESIDUAL_KINDS
from saelab.models import LanguageModel
from saelab.sae import SAE

__all__ = [
    "LogitShape",
    "head_shares",
    "heads_of",
    "logit_shapes",
    "nearest",
    "output_hook",
    "written",
]

_FLOATS_AT_ONCE = 2**24
N_BINS = 50


@final
@dataclass(frozen=True, eq=False)
class LogitShape:
    """Logit effects of one unit of some latents, over the whole vocabulary."""

    promoted: Int[Tensor, "latent n"]
    """Token ids, most promoted first."""
    promoted_by: Float[Tensor, "latent n"]
    """Their effects."""
    suppressed: Int[Tensor, "latent n"]
    """Token ids, most suppressed first."""
    suppressed_by: Float[Tensor, "latent n"]
    """Their effects."""
    low: Float[Tensor, " latent"]
    """Smallest effect."""
    high: Float[Tensor, " latent"]
    """Largest effect."""
    counts: Int[Tensor, "latent bin"]
    """Tokens per equal-width bin from `low` to `high`."""
    std: Float[Tensor, " latent"]
    """Their spread."""
    skew: Float[Tensor, " latent"]
    """Their skewness."""
    kurtosis: Float[Tensor, " latent"]
    """Their excess kurtosis."""


def written(sae: SAE) -> Float[Tensor, "latent d_out"]:
    """What one unit of each latent writes, in the model's units, on the CPU."""
    return (sae.W_dec.detach().float() / sae.normalization.scale_out).cpu()


def output_hook(sae: SAE) -> str:
    """The hook point a dictionary writes: the one it reads, unless it says another."""
    return str(getattr(sae, "hook_out", None) or sae.hook)


def logit_shapes(
    sae: SAE, model: LanguageModel, directions: Float[Tensor, "latent d_out"], n: int
) -> tuple[LogitShape | None, str]:
    """Effects of directions through the final norm's gain and the unembedding.

    Returns:
        The effects and "", or None and why there are none.
    """
    hook = output_hook(sae)
    if sae.d_out != model.d_model or model.hook_point(hook).kind not in RESIDUAL_KINDS:
        return None, f"{hook} does not write to the residual stream directly."
    parts: list[tuple[Tensor, ...]] = []
    try:
        for some in directions.split(max(1, _FLOATS_AT_ONCE // model.d_vocab)):
            parts.append(_shape(model.logit_effects(some.to(model.device)).float(), n))
    except ModelError as error:
        return None, str(error)
    return LogitShape(*(torch.cat(column) for column in zip(*parts, strict=True))), ""


def _shape(effects: Float[Tensor, "latent d_vocab"], n: int) -> tuple[Tensor, ...]:
    n = min(n, effects.shape[1])
    up, down = effects.topk(n, dim=1), effects.topk(n, dim=1, largest=False)
    low, high = effects.amin(1), effects.amax(1)
    width = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    bins = ((effects - low[:, None]) / width[:, None] * N_BINS).long().clamp(0, N_BINS - 1)
    flat = bins + N_BINS * torch.arange(len(bins), device=bins.device)[:, None]
    counts = torch.bincount(flat.flatten(), minlength=len(bins) * N_BINS).reshape(-1, N_BINS)
    centered = (effects - effects.mean(1, keepdim=True)).double()
    variance = centered.square().mean(1)
    safe = variance.clamp_min(1e-300)
    skew = centered.pow(3).mean(1) / safe.pow(1.5)
    kurtosis = centered.pow(4).mean(1) / safe.square() - 3
    columns = (up.indices, up.values, down.indices, down.values, low, high, counts)
    moments = (variance.sqrt().float(), skew.float(), kurtosis.float())
    return tuple(column.cpu() for column in (*columns, *moments))


def nearest(
    unit: Float[Tensor, "latent d_out"], rows: Int[Tensor, " row"], n: int, by_size: bool
) -> tuple[Int[Tensor, "row n"], Float[Tensor, "row n"]]:
    """The other latents whose directions are nearest.

    Args:
        unit: Unit directions of every latent.
        rows: Which to answer for.
        n: How many of each.
        by_size: Rank by |cosine|: in a signed dictionary an opposite direction says the same.

    Returns:
        Their numbers and cosines (signed), nearest first.
    """
    n = min(n, len(unit) - 1)
    found: list[tuple[Tensor, Tensor]] = []
    for some in rows.split(max(1, _FLOATS_AT_ONCE // len(unit))):
        cosine = unit[some] @ unit.T
        score = cosine.abs() if by_size else cosine.clone()
        score[torch.arange(len(some)), some] = -2
        other = score.topk(n, dim=1).indices
        found.append((other, cosine.gather(1, other)))
    return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])


def heads_of(sae: SAE, model: LanguageModel, stated: int | None) -> int | None:
    """Heads of the attention layer a dictionary writes; None if it is not one of hook_z."""
    if model.hook_point(output_hook(sae)).kind != "attn_z":
        return None
    config: Any = getattr(getattr(model, "module", None), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    n_heads = stated or getattr(config, "num_attention_heads", getattr(config, "n_heads", None))
    if n_heads and sae.d_out % n_heads:
        raise ConfigError(
            f"n_heads={n_heads} does not divide the width {sae.d_out} of {output_hook(sae)}. Say "
            "how many heads there are with AtlasConfig(n_heads=...)."
        )
    return n_heads


def head_shares(
    directions: Float[Tensor, "latent d_out"], n_heads: int
) -> Float[Tensor, "latent head"]:
    """Length of a direction within each head's block, over the sum of these lengths.

    >>> head_shares(torch.tensor([[3.0, 4.0, 0.0, -5.0]]), 2).tolist()
    [[0.5, 0.5]]
    """
    norms = rearrange(directions, "latent (head d) -> latent head d", head=n_heads).norm(dim=2)
    return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
