"""What does an intervention do to one prompt? The text, the next token and the price, both ways."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp
from typing import Any, final

import torch
from torch import Tensor

from saelab.errors import ConfigError
from saelab.fidelity import next_token_kl, next_token_loss
from saelab.models import LanguageModel
from saelab.steering.active import Positions, intervene
from saelab.steering.contrasts import token_rows
from saelab.steering.interventions import Intervention

__all__ = ["NextToken", "SideBySide", "side_by_side"]


@final
@dataclass(frozen=True, kw_only=True)
class NextToken:
    """A token that could follow the prompt."""

    token: str
    """Its text."""
    id: int
    """Its id."""
    clean: float
    """Its probability without the intervention."""
    steered: float
    """Its probability with it."""


@final
@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """One prompt, continued with an intervention and without."""

    prompt: str
    """The prompt."""
    clean: str
    """What the model wrote after it."""
    steered: str
    """What it wrote under the intervention."""
    next_tokens: tuple[NextToken, ...]
    """The tokens right after the prompt whose probability changed most, most changed first."""
    kl_prompt: float
    """KL(unsteered || steered) of the token right after the prompt, in nats."""
    kl_text: float
    """The same, mean over the tokens of the steered text."""
    perplexity_clean: float
    """exp(mean loss) of the unsteered text under the unsteered model; at least 1."""
    perplexity_steered: float
    """exp(mean loss) of the steered text under the unsteered model; the price in fluency."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def side_by_side(
    model: LanguageModel,
    interventions: Sequence[Intervention],
    prompt: str,
    *,
    max_new_tokens: int = 40,
    n_next: int = 10,
    positions: Positions = None,
) -> SideBySide:
    """Continue a prompt greedily, with interventions and without.

    Args:
        model: The model.
        interventions: As for `intervene`.
        prompt: The prompt; the model's first token is put before it.
        max_new_tokens: Tokens to generate.
        n_next: Next tokens to report.
        positions: Which positions are edited, as for `intervene`.

    Raises:
        ConfigError: `max_new_tokens` is not positive, or the row would be too long.
        CorpusError: The prompt is empty or too long.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    row = token_rows(model, [prompt])[0]
    start = len(row)
    clean_ids = model.generate(row[None], max_new_tokens)[0]
    with intervene(model, interventions, positions=positions):
        steered_ids = model.generate(row[None], max_new_tokens)[0]
        steered = model.logits(steered_ids[None])[0, start - 1 : -1]
    clean = model.logits(steered_ids[None])[0, start - 1 : -1]
    own = model.logits(clean_ids[None])[0, start - 1 : -1]
    kl = next_token_kl(clean, steered)
    return SideBySide(
        prompt=prompt,
        clean=model.decode(clean_ids[start:].tolist()),
        steered=model.decode(steered_ids[start:].tolist()),
        next_tokens=_changes(model, clean[0], steered[0], n_next),
        kl_prompt=float(kl[0]),
        kl_text=float(kl.mean()),
        perplexity_clean=_perplexity(own, clean_ids[start:]),
        perplexity_steered=_perplexity(clean, steered_ids[start:]),
    )


def _changes(model: LanguageModel, clean: Tensor, steered: Tensor, n: int) -> tuple[NextToken, ...]:
    before, after = clean.float().softmax(-1), steered.float().softmax(-1)
    order = (after - before).abs().topk(min(n, len(before))).indices.tolist()
    texts = model.token_strings(order)
    return tuple(
        NextToken(token=text, id=one, clean=float(before[one]), steered=float(after[one]))
        for one, text in zip(order, texts, strict=True)
    )


def _perplexity(logits: Tensor, targets: Tensor) -> float:
    return exp(min(float(next_token_loss(logits, torch.as_tensor(targets)).mean()), 700.0))
