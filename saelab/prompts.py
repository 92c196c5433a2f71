"""What does a dictionary see in one text? Every token, its strongest latents, and what is missed.

    error share of token t = |x_t - recons_t|^2 / |x_t - center|^2

with the center b_dec of an autoencoder, or zero where there is none: 0 is a perfect
reconstruction, 1 is as bad as the center.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, CorpusError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.sparse_codes import SparseCodes

__all__ = ["ActiveLatent", "PromptReading", "read_prompt"]

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
    x = model.activations(row, [sae.hook])[sae.hook][0].float()
    probabilities = model.logits(row)[0].float().softmax(-1).topk(N_NEXT)
    codes = sae.encode(x)
    recons = sae.decode(codes, x)
    center = sae.b_dec / sae.normalization.scale_out if sae.pre_bias else torch.zeros_like(x[0])
    missed = (x - recons).square().sum(1) / (x - center).square().sum(1).clamp_min(1e-30)
    return PromptReading(
        ids=row[0],
        tokens=tuple(model.token_strings(row[0].tolist())),
        codes=codes,
        lengths=(sae.W_dec.detach().norm(dim=1) / sae.normalization.scale_out).float(),
        error_share=missed.detach(),
        next_ids=probabilities.indices,
        next_tokens=tuple(
            tuple(model.token_strings(some)) for some in probabilities.indices.tolist()
        ),
        next_probabilities=probabilities.values,
        first=first,
    )
