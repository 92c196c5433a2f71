"""Which tokens does a latent promote or suppress, if what it writes went straight to the logits?"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ModelError
from saelab.models import LanguageModel
from saelab.sae import SAE

__all__ = ["LogitEffects", "logit_effects_of"]

RESIDUAL_KINDS = frozenset({"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})
"""Hook points whose activations are added into the residual stream, where logits are read."""


@final
@dataclass(frozen=True, eq=False)
class LogitEffects:
    """What one unit of each latent adds to the logits, through the final norm's gain only.

    The negative side of a signed latent does the opposite: it promotes what is suppressed here.
    """

    promoted: Int[Tensor, "latent n"]
    """Token ids, most promoted first."""
    promoted_by: Float[Tensor, "latent n"]
    """Their logit effects, relative to the mean over the vocabulary."""
    suppressed: Int[Tensor, "latent n"]
    """Token ids, most suppressed first."""
    suppressed_by: Float[Tensor, "latent n"]
    """Their logit effects."""

    def __getitem__(self, places: Int[Tensor, " picked"]) -> "LogitEffects":
        """The effects of some latents."""
        return LogitEffects(
            self.promoted[places],
            self.promoted_by[places],
            self.suppressed[places],
            self.suppressed_by[places],
        )


def logit_effects_of(
    sae: SAE, model: LanguageModel, latents: Int[Tensor, " latent"], n: int = 10, chunk: int = 256
) -> tuple[LogitEffects | None, str]:
    """The `n` most promoted and suppressed tokens of each latent.

    Args:
        sae: The dictionary.
        model: The model it reads.
        latents: Which latents.
        n: Tokens at each end.
        chunk: Latents at once; memory is chunk * d_vocab floats.

    Returns:
        The effects and "", or None and why there are none.
    """
    kind = model.hook_point(str(sae.hook)).kind
    if sae.d_out != model.d_model or kind not in RESIDUAL_KINDS:
        return None, f"{sae.hook} does not write to the residual stream directly."
    directions = sae.W_dec.detach()[latents.to(sae.device)] / sae.normalization.scale_out
    parts: list[tuple[Tensor, ...]] = []
    try:
        for some in directions.split(chunk):
            effects = model.logit_effects(some.to(model.device)).float()
            up = effects.topk(min(n, effects.shape[1]), dim=1)
            down = effects.topk(min(n, effects.shape[1]), dim=1, largest=False)
            parts.append((up.indices, up.values, down.indices, down.values))
    except ModelError as error:
        return None, str(error)
    return LogitEffects(*(torch.cat(column).cpu() for column in zip(*parts, strict=True))), ""
