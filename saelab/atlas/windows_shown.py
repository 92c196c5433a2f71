"""Which windows explain a latent, which test the explanation, and how are they written down?

No window is in both sets. Tests are balanced by scoring, not by numbers: a judge that says "none"
to 4 active and 10 silent windows is right 10 times in 14, and its balanced accuracy is one half.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from saelab.atlas.cards import TailCard
from saelab.atlas.records import Example

__all__ = [
    "Judgement",
    "TestSet",
    "active_tokens",
    "numbers_in",
    "shuffled",
    "split_examples",
    "written_example",
]

ACTIVE_SHARE = 0.3
"""Tokens are highlighted from this share of the window's strongest activation on."""


@final
@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Windows in the order they are shown, and which of them should be named."""

    __test__ = False  # pytest would collect it by its name

    windows: tuple[Example, ...]
    """What is shown."""
    positive: tuple[bool, ...]
    """Whether each should be named."""


@final
@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge named, against what it should have."""

    hits: int
    """Positives named."""
    positives: int
    """Positives."""
    false_alarms: int
    """Negatives named."""
    negatives: int
    """Negatives."""

    @classmethod
    def of(cls, named: Sequence[int], positive: Sequence[bool]) -> "Judgement":
        """From the numbers a judge named, counted from 1."""
        said = {number - 1 for number in named if 1 <= number <= len(positive)}
        return cls(
            hits=sum(positive[place] for place in said),
            positives=sum(positive),
            false_alarms=sum(not positive[place] for place in said),
            negatives=len(positive) - sum(positive),
        )

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the share of positives named and of negatives not named; 0.5 is chance.

        >>> none = Judgement(hits=0, positives=4, false_alarms=0, negatives=10)
        >>> none.balanced_accuracy, round(none.accuracy, 3)
        (0.5, 0.714)
        """
        return (self.hits / self.positives + 1 - self.false_alarms / self.negatives) / 2

    @property
    def accuracy(self) -> float:
        """Share of windows judged right: depends on how many of each there are."""
        right = self.hits + self.negatives - self.false_alarms
        return right / (self.positives + self.negatives)

    @property
    def precision(self) -> float | None:
        """Share of the named that are positive; None if none was named."""
        named = self.hits + self.false_alarms
        return self.hits / named if named else None

    @property
    def recall(self) -> float:
        """Share of the positives that were named."""
        return self.hits / self.positives

    @property
    def f1(self) -> float:
        """2 hits / (named + positives)."""
        return 2 * self.hits / (self.hits + self.false_alarms + self.positives)

    def to_json(self) -> dict[str, float | None]:
        """All of them."""
        names = ("balanced_accuracy", "accuracy", "precision", "recall", "f1")
        counts = ("hits", "positives", "false_alarms", "negatives")
        return {name: getattr(self, name) for name in (*names, *counts)}


def split_examples(
    tail: TailCard, n_top: int, n_drawn: int, n_test: int
) -> tuple[list[Example], list[Example]]:
    """Windows to explain from, and others to test with, spread over the quantiles.

    The first are the strongest and one draw of each quantile; the second are draws only, taken in
    turn from every quantile. No token row is in both.
    """
    explaining = [*tail.top()[:n_top]]
    quantiles = range(max(0, len(tail.quantile_edges) - 1))
    firsts = [one for q in reversed(quantiles) for one in tail.of_quantile(q)[:1]]
    explaining += [one for one in firsts if one not in explaining][:n_drawn]
    taken = {one.row for one in explaining}
    by_rank = sorted(
        (one for q in quantiles for one in tail.of_quantile(q)),
        key=lambda one: (one.quantile_rank, -(one.quantile or 0)),
    )
    testing: list[Example] = []
    for one in (*reversed(by_rank), *reversed(tail.examples)):
        if one.row not in taken and len(testing) < n_test:
            testing.append(one)
            taken.add(one.row)
    return explaining, testing


def shuffled(positives: Sequence[Example], negatives: Sequence[Example], seed: str) -> TestSet:
    """Both kinds in a random order that depends on the seed alone."""
    both = [(one, True) for one in positives] + [(one, False) for one in negatives]
    random.Random(seed).shuffle(both)
    return TestSet(
        windows=tuple(one for one, _ in both), positive=tuple(right for _, right in both)
    )


def written_example(one: Example, marked: Sequence[int] = ()) -> str:
    """A window as one line, some of its tokens between << and >>."""
    chosen = set(marked)
    pieces = [
        f"<<{token}>>" if place in chosen else token for place, token in enumerate(one.tokens)
    ]
    return " ".join("".join(pieces).split())


def active_tokens(one: Example) -> list[int]:
    """Places at which the tail of an example is at least ACTIVE_SHARE of its strongest."""
    strength = [one.sign * value for value in one.activations]
    top = max(strength, default=0.0)
    return [
        place for place, value in enumerate(strength) if top > 0 and value >= ACTIVE_SHARE * top
    ]


def numbers_in(reply: str) -> list[int] | None:
    """The numbers of a reply such as "[1, 4]" or "none"; None if it says neither.

    >>> numbers_in("Windows 2 and 5."), numbers_in("None of them"), numbers_in("I think so")
    ([2, 5], [], None)
    """
    listed = (
        reply[reply.find("[") + 1 : reply.find("]")] if "[" in reply and "]" in reply else reply
    )
    digits = "".join(one if one.isdigit() and one.isascii() else " " for one in listed).split()
    if digits:
        return [int(one) for one in digits if len(one) < 6]
    empty = "[" in reply and "]" in reply and not listed.strip()
    return [] if empty or "none" in reply.lower() else None
