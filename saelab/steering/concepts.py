"""What is a model steered towards, and how much of it is in a text? Three ways to say it.

    Words      how likely the steered model finds the concept's words, at every generated token
    Scorer     any function of the generated text: a classifier, a count, a judge
    Detector   a direction, such as a probe's, read by the unsteered model on the generated text

The last two look at the text only, so a push that moves the scores without changing what is
written counts for nothing. The first sees a shift before it changes a single word.
"""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.models import LanguageModel
from saelab.steering.directions import Direction

__all__ = ["Concept", "Continuation", "Detector", "Scorer", "Words", "word_tokens"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Continuation:
    """What a model made of a prompt."""

    prompt: str
    """The prompt."""
    text: str
    """What followed."""
    ids: Int[Tensor, " pos"]
    """Token ids: the model's first token, the prompt, what followed."""
    start: int
    """Position of the first generated token."""
    predictions: Float[Tensor, "new vocab"]
    """Log-probabilities with which the model that wrote it predicted each generated token."""


class Concept(abc.ABC):
    """A number per text; more of it is more of the concept."""

    name: str
    """What it measures, for figures."""
    unit: str
    """In what it measures."""
    bars: tuple[float, float]
    """Gains over the unsteered text that are rated 1 and 2 (of 2) in the overall score."""

    @abc.abstractmethod
    def score(self, model: LanguageModel, one: Continuation) -> float:
        """The number for one text. Called outside every intervention."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What tells it from other concepts."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Words(Concept):
    """Mean over generated tokens of log sum of P(word) over the concept's words, in nats.

    P is the steered model's own prediction at each place of its own text. A gain of 1 makes the
    words e times as likely. Words of more than one token are left out, since their first tokens
    begin other words too.
    """

    words: Sequence[str]
    """The words, without spaces; each is looked up with a space before it and without."""
    name: str = ""
    """What to call them; the first three if not given."""
    bars: tuple[float, float] = (1.0, 3.0)
    unit = "nats"

    def __post_init__(self) -> None:
        _check_bars(self.bars)
        if not self.words or isinstance(self.words, str):
            raise ConfigError("Words needs a list of at least one word.")
        if not self.name:
            more = " ..." if len(self.words) > 3 else ""
            object.__setattr__(self, "name", ", ".join(self.words[:3]) + more)

    def score(self, model: LanguageModel, one: Continuation) -> float:
        """The mean log-probability."""
        ids = word_tokens(model, self.words).to(one.predictions.device)
        return float(one.predictions[:, ids].logsumexp(-1).double().mean())

    def to_json(self) -> dict[str, Any]:
        """Kind, name, words and bars."""
        kind = {"kind": "words", "name": self.name, "unit": self.unit}
        return {**kind, "words": list(self.words), "bars": list(self.bars)}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer(Concept):
    """Any function of the generated text."""

    function: Callable[[str], Any]
    """Takes the generated text, without its prompt; gives a number."""
    name: str
    """Names the function; results are kept by it, so change it when the function changes."""
    bars: tuple[float, float]
    unit: str = "score"

    def __post_init__(self) -> None:
        _check_bars(self.bars)

    def score(self, model: LanguageModel, one: Continuation) -> float:  # noqa: ARG002
        """The function's number."""
        value = float(self.function(one.text))
        if not math.isfinite(value):
            raise DataError(f"The scorer {self.name!r} returned {value} for {one.text!r}.")
        return value

    def to_json(self) -> dict[str, Any]:
        """Kind, name and bars."""
        kind = {"kind": "scorer", "name": self.name, "unit": self.unit}
        return {**kind, "bars": list(self.bars)}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Detector(Concept):
    """Mean over generated tokens of h . v / |v|, h read by the unsteered model on that text."""

    direction: Direction
    """A direction that tells the concept, such as a probe's or a difference in means."""
    bars: tuple[float, float]
    """Gains in the model's units; the distance between the two classes is a natural unit."""
    name: str = "detector"
    unit = "model's units"

    def __post_init__(self) -> None:
        _check_bars(self.bars)
        if self.direction.vector.ndim != 1:
            raise ConfigError("A detector needs a direction [d], not one with a row per position.")

    def score(self, model: LanguageModel, one: Continuation) -> float:
        """The mean projection."""
        hook, v = self.direction.hook, self.direction.of_norm(1.0).vector
        h = model.activations(one.ids[None], [hook])[hook][0, one.start :].float().cpu()
        return float((h @ v).double().mean())

    def to_json(self) -> dict[str, Any]:
        """Kind, name, bars and how the direction was made."""
        known: Mapping[str, Any] = self.direction.made
        kind = {"kind": "detector", "name": self.name, "unit": self.unit}
        numbers = {"sum": float(self.direction.vector.double().sum()), "norm": self.direction.norm}
        return {**kind, "bars": list(self.bars), "made": dict(known), **numbers}


def word_tokens(model: LanguageModel, words: Sequence[str]) -> Int[Tensor, " token"]:
    """Tokens that are one of the words, alone or after a space; ascending.

    Raises:
        ConfigError: No word is a single token of this model.
    """
    found = set()
    for word in words:
        for spelled in (word, f" {word}"):
            ids = model.encode(spelled)
            if len(ids) == 1:
                found.add(ids[0])
    if not found:
        raise ConfigError(
            f"None of the words {list(words)} is a single token of {model.name}. Give shorter or "
            "more common words."
        )
    return torch.tensor(sorted(found))


def _check_bars(bars: tuple[float, float]) -> None:
    if not 0 < bars[0] <= bars[1]:
        raise ConfigError(f"bars={bars} must be two positive gains, the smaller first.")
