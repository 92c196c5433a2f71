"""Which scalars does a graph explain? Logits after the last token, as directions.

A token's target is its logit above the mean logit, which is what a softmax sees:

    direction = W_U[:, token] - mean over the vocabulary of W_U

read where the unembedding reads, before any soft cap or scale of the logits. By default the targets
are the smallest set of likeliest tokens that hold a share of the probability.

Source: circuit-tracer (demeaned directions, smallest set of cumulative probability 0.95, at most
10), for Ameisen et al. 2025, "Circuit tracing".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.circuits.frozen import ReadOuts, head_of
from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel

__all__ = ["Asked", "LogitTarget", "likeliest", "read_out", "resolve"]


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LogitTarget:
    """One scalar to explain: direction . (what the unembedding reads) + offset."""

    label: str
    """Its name in the graph; untrusted where it comes from a token."""
    direction: Float[Tensor, " d_model"]
    """In the units of the unembedding's rows."""
    weight: float
    """How much it counts among the targets: a probability, or 1."""
    offset: float = 0.0
    """What is added, an unembedding's bias."""
    token: int | None = None
    """The token whose logit it is; None for anything else, such as a difference."""
    probability: float | None = None
    """What the model gives that token, 0 to 1."""


Asked = int | str | tuple[int | str, int | str] | LogitTarget
"""A target: a token by id or by text, the difference of two tokens, or a direction."""


def likeliest(
    model: LanguageModel, logits: Float[Tensor, " d_vocab"], share: float, at_most: int
) -> list[LogitTarget]:
    """The fewest likeliest tokens that together hold a share of the probability.

    Args:
        model: Whose unembedding is read.
        logits: The model's own scores, after any soft cap.
        share: Of the probability, 0 to 1.
        at_most: No more tokens than this.
    """
    probabilities, order = logits.double().softmax(-1).sort(descending=True)
    needed = int((probabilities.cumsum(0) < share).sum()) + 1
    return resolve(model, logits, [int(token) for token in order[: min(needed, at_most)]])


def resolve(
    model: LanguageModel, logits: Float[Tensor, " d_vocab"], asked: Sequence[Asked]
) -> list[LogitTarget]:
    """Targets as directions; a token weighs its probability, anything else 1.

    Raises:
        ConfigError: Nothing is asked, or a text is not one token.
        ShapeError: A direction is not d_model wide.
    """
    if not asked:
        raise ConfigError("No target was named. Leave targets out to explain the likeliest tokens.")
    _, W_U, bias = head_of(model)
    mean = W_U.mean(dim=0)
    bias = W_U.new_zeros(len(W_U)) if bias is None else bias
    probabilities = logits.double().softmax(-1)

    def of_token(asked: int | str) -> LogitTarget:
        token = _token(model, asked)
        probability = float(probabilities[token])
        return LogitTarget(
            label=model.token_strings([token])[0],
            direction=W_U[token] - mean,
            offset=float(bias[token] - bias.mean()),
            weight=probability,
            token=token,
            probability=probability,
        )

    found = []
    for one in asked:
        if isinstance(one, LogitTarget):
            if one.direction.shape != (model.d_model,):
                raise ShapeError(
                    f"The target {one.label!r} has a direction of shape "
                    f"{list(one.direction.shape)}; d_model of {model.name} is {model.d_model}."
                )
            found.append(one)
        elif isinstance(one, tuple):
            first, second = (of_token(part) for part in one)
            found.append(
                LogitTarget(
                    label=f"{first.label} - {second.label}",
                    direction=first.direction - second.direction,
                    offset=first.offset - second.offset,
                    weight=1.0,
                )
            )
        else:
            found.append(of_token(one))
    return found


def read_out(hook: str, targets: Sequence[LogitTarget], position: int) -> ReadOuts:
    """The targets as read-outs at one position."""
    directions = torch.stack([target.direction for target in targets])
    return ReadOuts(
        hook,
        torch.full((len(targets),), position, device=directions.device),
        directions,
        torch.tensor([target.offset for target in targets]).to(directions),
    )


def _token(model: LanguageModel, asked: int | str) -> int:
    ids = [asked] if isinstance(asked, int) else model.encode(asked)
    if len(ids) != 1:
        raise ConfigError(
            f"{asked!r} is {len(ids)} tokens of {model.name}, and a target is one. Mind the space "
            f"in front of a word: the tokens are {model.token_strings(ids)}."
        )
    if not 0 <= ids[0] < model.d_vocab:
        raise ConfigError(
            f"Token id {ids[0]} is outside the vocabulary of {model.name}, 0 to "
            f"{model.d_vocab - 1}."
        )
    return ids[0]
