"""Which latents can steer? Those that, pushed once, make the model say what they should promote.

The output score of latent j, from one pass over a neutral prompt with j raised at the last
position only:

    M      the tokens that j promotes through the unembedding (logit lens)
    S_out  max over M of P(t)  *  (1 - min over M of rank(t) / d_vocab)

P and rank (0 for the likeliest) are those of the next token under the push. j is raised by
`factor` times the largest activation that any latent has at that position.

Source: Arad et al. 2025, "SAEs are good for steering, if you select the right features", and its
code, which raises a latent by 10 times the largest activation of any latent at the last position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.logit_effects import logit_effects_of
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.steering.contrasts import token_rows
from saelab.steering.directions import Direction, written_by

__all__ = [
    "NEUTRAL_PROMPT",
    "OutputScores",
    "latents_for_words",
    "output_scores",
    "promoted_words",
]

NEUTRAL_PROMPT = "From my experience,"
"""The prompt of the source."""
ROWS = 32
"""Latents in one forward pass."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class OutputScores:
    """Output scores of some latents, one for each pole."""

    latents: Int[Tensor, " latent"]
    """Which, in the order they were asked for."""
    raised: Float[Tensor, " latent"]
    """S_out of the positive pole, 0 to 1."""
    lowered: Float[Tensor, " latent"] | None
    """S_out of the negative pole, pushed the other way; None where latents have only one."""
    length: float
    """Activation by which each latent was raised."""
    prompt: str
    """The neutral prompt."""

    @property
    def best(self) -> Float[Tensor, " latent"]:
        """The better pole's score."""
        return self.raised if self.lowered is None else torch.maximum(self.raised, self.lowered)


@torch.no_grad()
def output_scores(
    model: LanguageModel,
    sae: SAE,
    latents: Sequence[int],
    *,
    tokens: Int[Tensor, " token"] | None = None,
    prompt: str = NEUTRAL_PROMPT,
    n_tokens: int = 20,
    factor: float = 10.0,
) -> OutputScores:
    """The output score of each latent; of a signed dictionary, of both poles.

    Args:
        model: The model.
        sae: A dictionary that writes to the residual stream.
        latents: Which latents.
        tokens: A set M of your own, the same for every latent, such as a concept's words.
        prompt: The neutral prompt.
        n_tokens: Size of M where each latent has its own.
        factor: Of the largest activation at the prompt's last position.

    Raises:
        ConfigError: There is no such latent, the dictionary does not write to the residual
            stream, or no latent is active on the prompt.
        ModelError: The dictionary belongs to another model.
    """
    chosen = _checked(sae, latents)
    require_same_model(sae, model.identity.to_json())
    poles = (1.0, -1.0) if sae.activation.signed else (1.0,)
    sets = (
        _promoted(model, sae, chosen, n_tokens, len(poles))
        if tokens is None
        else [tokens.expand(len(chosen), -1)] * len(poles)
    )
    row = token_rows(model, [prompt])[0]
    length = factor * _largest(model, sae, row)
    hook, vectors = written_by(sae), sae.W_dec.detach()[chosen] / sae.normalization.scale_out
    scores: list[list[Tensor]] = [[] for _ in poles]
    for start in range(0, len(chosen), ROWS):
        some = vectors[start : start + ROWS].float()
        for place, sign in enumerate(poles):
            logits = _pushed_last(model, hook, row, sign * length * some)
            scores[place].append(_score(logits, sets[place][start : start + ROWS]))
    raised, *lowered = [torch.cat(parts) for parts in scores]
    return OutputScores(
        latents=chosen.cpu(),
        raised=raised,
        lowered=lowered[0] if lowered else None,
        length=length,
        prompt=prompt,
    )


@torch.no_grad()
def latents_for_words(
    model: LanguageModel, sae: SAE, tokens: Int[Tensor, " token"], n: int = 20
) -> list[int]:
    """The latents whose decoder direction promotes some tokens most, on average.

    effect_j = mean over the tokens of d_j's logit effect / its root mean square over the
    vocabulary; of a signed dictionary |effect_j|. A cheap first sieve before `output_scores`: what
    a direction does to the logits is linear, so no [latent, d_vocab] matrix is ever made.

    Args:
        model: The model.
        sae: A dictionary that writes to the residual stream.
        tokens: The tokens to promote, such as `word_tokens` gives.
        n: How many latents.
    """
    axes = torch.eye(model.d_model, device=model.device)
    effects = model.logit_effects(axes).float()  # [d_model, d_vocab], as large as W_U
    wanted = effects[:, tokens.to(effects.device)].mean(1)
    squares = effects @ effects.T / effects.shape[1]
    directions = sae.W_dec.detach().float().to(effects.device)
    size = ((directions @ squares) * directions).sum(1).clamp_min(1e-30).sqrt()
    effect = (directions @ wanted) / size
    effect = effect.abs() if sae.activation.signed else effect
    return effect.topk(min(n, len(effect))).indices.tolist()


@torch.no_grad()
def promoted_words(model: LanguageModel, direction: Direction, n: int = 10) -> list[str]:
    """The words that a direction promotes most through the unembedding: a concept of its own.

    Of the most promoted tokens, those that are words when the spaces around them are taken off;
    with a row per position, the last row counts.

    Raises:
        ConfigError: None of the hundred most promoted tokens is a word.
        ModelError: The final norm or the unembedding is not known.
    """
    vector = direction.vector if direction.vector.ndim == 1 else direction.vector[-1]
    effects = model.logit_effects(vector[None].to(model.device))[0]
    most = effects.topk(min(100, len(effects))).indices.tolist()
    words = [text.strip() for text in model.token_strings(most)]
    known = [word for word in dict.fromkeys(words) if word.isalnum()]
    if not known:
        raise ConfigError(
            f"None of the tokens that {direction.name} promotes is a word. Name the words to look "
            "for."
        )
    return known[:n]


def _checked(sae: SAE, latents: Sequence[int]) -> Int[Tensor, " latent"]:
    if not latents or min(latents) < 0 or max(latents) >= sae.d_sae:
        raise ConfigError(
            f"latents={list(latents)[:5]} must be one or more of 0 to {sae.d_sae - 1}."
        )
    return torch.tensor(list(latents))


def _promoted(
    model: LanguageModel, sae: SAE, latents: Tensor, n: int, n_poles: int
) -> list[Int[Tensor, "latent n"]]:
    effects, missing = logit_effects_of(sae, model, latents, n)
    if effects is None:
        raise ConfigError(f"Output scores need logit effects. {missing}")
    return [effects.promoted, effects.suppressed][:n_poles]


def _largest(model: LanguageModel, sae: SAE, row: Tensor) -> float:
    hook = str(sae.hook)
    x = model.activations(row[None], [hook])[hook][0, -1:].float()
    values = sae.encode(x).values
    largest = float(values.abs().max()) if len(values) else 0.0
    if not largest:
        raise ConfigError("No latent is active at the prompt's last token: use another prompt.")
    return largest


def _pushed_last(
    model: LanguageModel, hook: str, row: Tensor, pushes: Float[Tensor, "latent d"]
) -> Float[Tensor, "latent vocab"]:
    """Scores of the next token, each row with a push of its own at the last position."""

    def push(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[:, -1] = (x[:, -1].float() + pushes.to(x.device)).to(x.dtype)
        return changed

    with model.editing({hook: push}):
        return model.logits(row.expand(len(pushes), -1).contiguous())[:, -1]


def _score(
    logits: Float[Tensor, "latent vocab"], wanted: Int[Tensor, "latent n"]
) -> Float[Tensor, " latent"]:
    wanted = wanted.to(logits.device)
    logits = logits.double()
    best = logits.gather(1, wanted).amax(1)
    probability = (best - logits.logsumexp(1)).exp()
    rank = (logits > best[:, None]).sum(1)
    return (probability * (1 - rank / logits.shape[1])).float().cpu()
