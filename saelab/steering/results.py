"""What did steering do, and what did it cost? Numbers for every direction, strength and prompt.

SteeringReport
    clean         Measured        strength 0: what everything is compared with
    curves        Curve           one per direction, the controls last
      points      Measured        one per strength
        outcomes  PromptOutcome   one per prompt
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from saelab.errors import CheckpointError, ConfigError
from saelab.files import read_json, write_bytes, write_json
from saelab.steering.ratings import (
    concept_rating,
    fluency_rating,
    halves,
    harmonic_mean,
    relevance_rating,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Chosen", "Curve", "Measured", "PromptOutcome", "SteeringReport"]

FORMAT = "saelab-steering"
VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class PromptOutcome:
    """One prompt, continued under steering."""

    prompt: str
    """The prompt."""
    text: str
    """What the steered model wrote after it."""
    concept: float
    """The concept's score, in its unit."""
    loss: float
    """Mean -log P of the text's tokens after the prompt under the unsteered model, in nats."""
    relevance: float
    """(log P(text | prompt) - log P(text)) per token under the unsteered model, in nats."""
    repetition: float
    """Share of the text's bigrams that occur earlier in it, 0 to 1."""
    kl: float
    """KL(unsteered || steered) of the next token, mean over the text's tokens, in nats."""


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """One direction at one strength."""

    strength: float
    """Length of the push in multiples of the mean |h| at its hook point."""
    length: float
    """Length of the push in the model's units."""
    outcomes: tuple[PromptOutcome, ...]
    """In the order of the prompts."""
    ce_held_out: float
    """Cross-entropy on the held-out text, steered, in nats per prediction."""
    kl_held_out: float
    """KL(unsteered || steered) there, mean per prediction, in nats."""

    @property
    def concept(self) -> float:
        """Mean concept score over prompts."""
        return self._mean("concept")

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of the texts under the unsteered model; at least 1."""
        return exp(min(self._mean("loss"), 700.0))

    @property
    def repetition(self) -> float:
        """Mean share of repeated bigrams."""
        return self._mean("repetition")

    @property
    def kl(self) -> float:
        """Mean KL from the unsteered model on the steered texts, in nats."""
        return self._mean("kl")

    def _mean(self, field: str) -> float:
        return fsum(getattr(one, field) for one in self.outcomes) / len(self.outcomes)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measured":
        """What `dataclasses.asdict` made of it."""
        rest = {name: number for name, number in value.items() if name != "outcomes"}
        return cls(outcomes=tuple(PromptOutcome(**one) for one in value["outcomes"]), **rest)


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """One direction at several strengths."""

    name: str
    """What it is called."""
    hook: str
    """Where it is added."""
    norm: float
    """Its own length: divide `Measured.length` by it for a latent's own strength."""
    made: Mapping[str, Any]
    """How it was made."""
    control: bool
    """Whether it is a control: a random direction or latent."""
    points: tuple[Measured, ...]
    """By ascending strength."""

    def at(self, strength: float) -> Measured:
        """The point of one strength.

        Raises:
            ConfigError: It was not measured.
        """
        for one in self.points:
            if one.strength == strength:
                return one
        raise ConfigError(
            f"{self.name} was not measured at strength {strength}; it was at "
            f"{', '.join(str(one.strength) for one in self.points)}."
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Curve":
        """What `dataclasses.asdict` made of it."""
        rest = {name: part for name, part in value.items() if name != "points"}
        return cls(points=tuple(Measured.from_json(one) for one in value["points"]), **rest)


@final
@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The strength that half of the prompts chose, and what the other half say of it."""

    strength: float
    """In multiples of the mean |h|."""
    score: float
    """Mean overall score on the prompts that had no part in the choice, 0 to 2."""
    score_choosing: float
    """The same on those that chose: too good by the luck of the choice."""


@final
@dataclass(frozen=True, kw_only=True)
class SteeringReport:
    """Everything `measure_steering` measured."""

    concept: Mapping[str, Any]
    """Kind, name, unit and bars of the concept."""
    config: Mapping[str, Any]
    """The settings."""
    about: Mapping[str, Any]
    """Model, held-out text and counts."""
    norms: Mapping[str, float]
    """Mean |h| at each hook point that was pushed, on the prompts, first token left out."""
    clean: Measured
    """The unsteered model."""
    curves: tuple[Curve, ...]
    """One per direction, the controls last."""

    def curve(self, name: str) -> Curve:
        """One direction's curve.

        Raises:
            ConfigError: There is none of this name.
        """
        for one in self.curves:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.curves)
        raise ConfigError(f"No direction is called {name!r}; there are {known}.")

    def gain(self, point: Measured) -> float:
        """Rise of the concept's score over the unsteered texts, in its unit."""
        return point.concept - self.clean.concept

    def ce_change(self, point: Measured) -> float:
        """Rise of the cross-entropy on held-out text, in nats."""
        return point.ce_held_out - self.clean.ce_held_out

    def ratings(self, point: Measured) -> list[tuple[int, int, int]]:
        """Concept, fluency and relevance of every prompt, each 0, 1 or 2."""
        found = []
        for one, clean in zip(point.outcomes, self.clean.outcomes, strict=True):
            found.append(
                (
                    concept_rating(one.concept - clean.concept, self.concept["bars"]),
                    fluency_rating(
                        one.loss - clean.loss,
                        one.repetition - clean.repetition,
                        self.config["fluency_bars"],
                    ),
                    relevance_rating(one.relevance, clean.relevance, self.config["relevance_bars"]),
                )
            )
        return found

    def score(self, point: Measured, prompts: Sequence[int] | None = None) -> float:
        """Mean over prompts of the harmonic mean of the three ratings, 0 to 2.

        Args:
            point: A direction at a strength.
            prompts: Which; all by default.
        """
        ratings = self.ratings(point)
        places = range(len(ratings)) if prompts is None else prompts
        return fsum(harmonic_mean(ratings[place]) for place in places) / len(places)

    def chosen(self, curve: Curve) -> Chosen:
        """The strength that does best on the even prompts, and its score on the odd ones.

        Of strengths that tie, the weakest is taken. With a single prompt both halves are it.
        """
        choosing, reporting = halves(len(self.clean.outcomes))
        best = max(curve.points, key=lambda one: (self.score(one, choosing), -abs(one.strength)))
        return Chosen(
            strength=best.strength,
            score=self.score(best, reporting),
            score_choosing=self.score(best, choosing),
        )

    def figure(self, cost: str = "kl_held_out") -> "Figure":
        """Cost against effect: a line per direction, a mark per strength, controls dashed.

        Args:
            cost: "kl_held_out", "ce_held_out", "perplexity", "kl" or "repetition".
        """
        from saelab.steering.figures import cost_against_effect

        return cost_against_effect(self, cost)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        write_json(path, {"format": FORMAT, "version": VERSION, **asdict(self)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "SteeringReport":
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is missing, of another format, or was altered.
        """
        found = read_json(path, "a steering report")
        if found.pop("format", None) != FORMAT or found.pop("version", None) != VERSION:
            raise CheckpointError(f"{path} is not a steering report of version {VERSION}.")
        try:
            clean = Measured.from_json(found.pop("clean"))
            curves = tuple(Curve.from_json(one) for one in found.pop("curves"))
            return cls(clean=clean, curves=curves, **found)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} was altered: {error}.") from None

    def save_html(self, path: str | Path) -> Path:
        """Write it as one self-contained page."""
        from saelab.steering.page import steering_page

        write_bytes(path, steering_page(self).encode())
        return Path(path)
