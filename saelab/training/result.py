"""What does training say while it runs, and leave when it is done?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from saelab.sae import SAE

__all__ = ["Progress", "TrainResult", "crossed", "in_words"]

Progress = Callable[[int, int, str], None]
"""Called with tokens done, tokens in all, and a few words about how it goes."""


@final
@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run leaves."""

    sae: SAE
    """The trained dictionary; the same object that was passed in."""
    metrics: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    events: list[dict[str, Any]]
    """The rows of events.jsonl."""
    seconds: float
    """Wall time of the steps, over all the run's starts."""


def in_words(row: Mapping[str, Any]) -> str:
    """A step's numbers.

    >>> in_words({"fvu": 0.25, "l0": 32.0, "dead_share": 0.01})
    'fvu 0.250, l0 32.0, dead 1.0%'
    """
    return f"fvu {row['fvu']:.3f}, l0 {row['l0']:.1f}, dead {row['dead_share']:.1%}"


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a count passed a multiple of `every`: something is due.

    >>> crossed(90, 110, 100), crossed(10, 90, 100)
    (True, False)
    """
    return before // every != after // every
