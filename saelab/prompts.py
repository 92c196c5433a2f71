"""What does a dictionary see in one text? Every token, its strongest latents, and what is missed.

    error share of token t = |y_t - recons_t|^2 / |y_t - center|^2

with y what the dictionary reconstructs and the center b_dec of an autoencoder, or zero where there
is none: 0 is a perfect reconstruction, 1 is as bad as the center.

And which of its latents speak for a next token v? The direct effect through the frozen final norm:

    effect of latent i at t on v = f_i (W_dec[i] diag(gain) W_U[:, v] - its mean over v) / s_t

with s_t the scale the final norm divided by at t. With the scale held, the logits are a sum over
everything that was ever written into the last residual stream, so the effects of the latents, of
the error, of the bias and of the rest add up to the logit (relative to the vocabulary's mean,
before a soft cap, the norm's own bias left out). What later layers make of a latent is not in it.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, CorpusError
from saelab.logit_effects import RESIDUAL_KINDS
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.sparse_codes import SparseCodes

__all__ = ["ActiveLatent", "DirectEffects", "PromptReading", "direct_effects", "read_prompt"]

MAX_TOKENS = 1024
"""Longer texts are refused: a page of them can be read neither quickly nor at a glance."""
N_NEXT = 5
"""Most likely next tokens kept per token."""


@final
@dataclass(frozen=True, slots=True)
class ActiveLatent:
    """One latent that is active on one token."""

    latent: int
    """Which."""
    value: float
    """Its signed activation."""
    share: float
    """Its part of the token's code: squared length of what it writes, over the sum of those of all
    active latents; 0 to 1."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PromptReading:
    """A text, token by token, as a dictionary sees it."""

    ids: Int[Tensor, " token"]
    """Token ids, the model's first token included where it has one."""
    tokens: tuple[str, ...]
    """Their text."""
    codes: SparseCodes
    """Latents of every token."""
    lengths: Float[Tensor, " d_sae"]
    """Length of every decoder direction, in the model's units."""
    error_share: Float[Tensor, " token"]
    """Share of each activation's squared distance from the center that is missed."""
    next_ids: Int[Tensor, "token n"]
    """Most likely next tokens, likeliest first."""
    next_tokens: tuple[tuple[str, ...], ...]
    """Their text."""
    next_probabilities: Float[Tensor, "token n"]
    """Their probabilities."""
    first: int
    """The first token of the text itself; those before it were put there for the model."""
    recons: Float[Tensor, "token d_out"]
    """The reconstruction of each activation, in the model's units."""
    missed: Float[Tensor, "token d_out"]
    """What the reconstruction leaves out of each activation, in the model's units."""
    stream: Float[Tensor, "token d_model"]
    """The last residual stream, which the final norm reads."""

    def strongest(self, position: int, n: int = 20) -> list[ActiveLatent]:
        """The latents of one token, by the length of what they write."""
        start, stop = (int(i) for i in self.codes.offsets[position : position + 2])
        latents, values = self.codes.indices[start:stop].long(), self.codes.values[start:stop]
        written = values.abs() * self.lengths[latents]
        total = float(written.square().sum()) or 1.0
        order = written.argsort(descending=True)[:n].tolist()
        return [
            ActiveLatent(int(latents[i]), float(values[i]), float(written[i] ** 2) / total)
            for i in order
        ]

    def over_text(self, latent: int) -> list[float]:
        """One latent's activation on every token."""
        values = torch.zeros(len(self.ids))
        at = self.codes.indices == latent
        values[self.codes.tokens[at]] = self.codes.values[at].float()
        return values.tolist()

    def ranked(self, n: int = 30) -> list[tuple[int, float, int]]:
        """Latents by their largest |activation| on the text: latent, value, position."""
        inside = self.codes.tokens >= self.first
        latents, values = self.codes.indices[inside].long(), self.codes.values[inside].float()
        tokens = self.codes.tokens[inside]
        best: dict[int, tuple[float, int]] = {}
        for latent, value, token in zip(
            latents.tolist(), values.tolist(), tokens.tolist(), strict=True
        ):
            if latent not in best or abs(value) > abs(best[latent][0]):
                best[latent] = (value, token)
        order = sorted(best, key=lambda i: -abs(best[i][0]) * float(self.lengths[i]))[:n]
        return [(latent, *best[latent]) for latent in order]


@final
@dataclass(frozen=True, kw_only=True)
class DirectEffects:
    """What was written at one token, and what it adds to the logit of one next token.

    `latents + error + bias + rest` is `total`. Logits are relative to the vocabulary's mean.
    """

    target: int
    """Id of the next token."""
    by_latent: tuple[tuple[int, float], ...]
    """Each active latent and its effect, largest |effect| first."""
    latents: float
    """The sum of these."""
    error: float
    """Of what the dictionary misses."""
    bias: float
    """Of the dictionary's bias, and of its skip connection where it has one."""
    rest: float
    """Of all that other layers wrote, and did not go through the dictionary."""
    total: float
    """Of the whole stream: the logit, where the final norm has no bias and logits no cap."""


def read_prompt(sae: SAE, model: LanguageModel, text: str) -> PromptReading:
    """Run one text through the model and encode every token.

    Args:
        sae: The dictionary.
        model: The model it was trained on.
        text: Any text; a first token is put before it where the model wants one.

    Raises:
        ConfigError: The dictionary names no hook point.
        CorpusError: The text is empty, or longer than 1,024 tokens.
        ModelError: The dictionary belongs to another model.
    """
    if sae.hook is None:
        raise ConfigError("The dictionary does not say which hook point it reads.")
    require_same_model(sae, model.identity.to_json())
    ids = model.encode(text)
    if not ids:
        raise CorpusError("The text is empty: there is no token to read.")
    longest = min(MAX_TOKENS, model.n_ctx or MAX_TOKENS) - 1
    if len(ids) > longest:
        raise CorpusError(
            f"The text has {len(ids):,} tokens; at most {longest:,} are read at once. Shorten it."
        )
    first = 0 if model.bos_token_id is None else 1
    row = torch.tensor([[model.bos_token_id, *ids] if first else ids])
    written, last = sae.hook_out or sae.hook, f"blocks.{model.n_layers - 1}.hook_resid_post"
    with torch.no_grad():
        logits, found = model.whole_pass(row, list(dict.fromkeys([sae.hook, written, last])))
        x, y = (found[hook][0].float().to(sae.device) for hook in (sae.hook, written))
        codes = sae.encode(x)
        recons = sae.decode(codes, x)
    missed = y - recons
    probabilities = logits[0].float().softmax(-1).topk(N_NEXT)
    center = sae.b_dec / sae.normalization.scale_out if sae.pre_bias else torch.zeros_like(y[0])
    spread = (y - center).square().sum(1).clamp_min(1e-30)
    return PromptReading(
        ids=row[0],
        tokens=tuple(model.token_strings(row[0].tolist())),
        codes=codes,
        lengths=(sae.W_dec.detach().norm(dim=1) / sae.normalization.scale_out).float(),
        error_share=(missed.square().sum(1) / spread).detach(),
        next_ids=probabilities.indices,
        next_tokens=tuple(
            tuple(model.token_strings(some)) for some in probabilities.indices.tolist()
        ),
        next_probabilities=probabilities.values,
        first=first,
        recons=recons,
        missed=missed,
        stream=found[last][0].float(),
    )


@torch.no_grad()
def direct_effects(
    reading: PromptReading, sae: SAE, model: LanguageModel, position: int, target: int
) -> DirectEffects:
    """What each latent of one token adds to the logit of a next token, by itself and at once.

    Args:
        reading: Of the text.
        sae: The dictionary it was read with.
        model: The model it was read with.
        position: The token after which `target` would come.
        target: Id of a next token.

    Raises:
        ConfigError: The dictionary does not write into the residual stream.
        ModelError: The model's final norm or unembedding is not known.
    """
    hook = sae.hook_out or str(sae.hook)
    if sae.d_out != model.d_model or model.hook_point(hook).kind not in RESIDUAL_KINDS:
        raise ConfigError(
            f"{hook} does not write into the residual stream, so its latents have no direct effect "
            "on the logits."
        )
    start, stop = (int(i) for i in reading.codes.offsets[position : position + 2])
    latents = reading.codes.indices[start:stop].long()
    values = reading.codes.values[start:stop].float()
    written = values[:, None] * sae.W_dec[latents].float() / sae.normalization.scale_out
    stream, error = (some[position].to(written) for some in (reading.stream, reading.missed))
    recons = reading.recons[position].to(written)
    bias = recons - written.sum(0)
    parts = torch.cat([written, torch.stack([error, bias, stream - recons - error, stream])])
    effects = model.logit_effects(parts)[:, target].double() / _final_scale(model, stream)
    own = effects[: len(latents)]
    order = own.abs().argsort(descending=True).tolist()
    error_by, bias_by, rest_by, total = effects[len(latents) :].tolist()
    return DirectEffects(
        target=target,
        by_latent=tuple((int(latents[i]), float(own[i])) for i in order),
        latents=float(own.sum()),
        error=error_by,
        bias=bias_by,
        rest=rest_by,
        total=total,
    )


def _final_scale(model: LanguageModel, stream: Float[Tensor, " d_model"]) -> float:
    """What the final norm divides by, its small epsilon left out.

    A norm that removes the mean shows it: a stream that is all mean has no effect.
    """
    level = model.logit_effects(torch.ones(1, len(stream)))
    x = stream.double()
    if float(level.abs().max()) < 1e-4:
        x = x - x.mean()
    return float(x.square().mean().sqrt().clamp_min(1e-30))
