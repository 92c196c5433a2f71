"""How good is a steered text, all in all? Three ratings of 0, 1 or 2, and their harmonic mean.

    concept    how much more of the concept there is than without steering
    fluency    how much less likely the unsteered model finds the text than its own
    relevance  how much of its bond with the prompt is left

A text that fails in one fails altogether: the harmonic mean is 0 if any rating is. The best
strength is chosen on one half of the prompts and reported on the other.

Source: Wu et al. 2025, "AxBench", with a model's own losses in place of its judge: no number here
can be compared with the paper's.
"""

from collections.abc import Sequence

from saelab.errors import ConfigError

__all__ = ["concept_rating", "fluency_rating", "halves", "harmonic_mean", "relevance_rating"]

REPETITION_BAR = 0.3
"""A rise of the share of repeated bigrams beyond this takes one from the rating of fluency: a
text that goes in circles is likely by any model's account."""


def harmonic_mean(ratings: Sequence[int | float]) -> float:
    """n / sum(1 / rating); 0 if any is 0.

    >>> harmonic_mean([2, 2, 2]), harmonic_mean([2, 2, 0]), harmonic_mean([1, 2, 2])
    (2.0, 0.0, 1.5)
    """
    if not ratings or min(ratings) < 0:
        raise ConfigError(f"A harmonic mean needs ratings of at least 0; found {list(ratings)}.")
    return 0.0 if min(ratings) == 0 else len(ratings) / sum(1 / rating for rating in ratings)


def concept_rating(gain: float, bars: Sequence[float]) -> int:
    """0 below the first bar, 1 from there on, 2 from the second.

    >>> [concept_rating(gain, (1.0, 3.0)) for gain in (0.9, 1.0, 3.0)]
    [0, 1, 2]
    """
    return int(gain >= bars[0]) + int(gain >= bars[1])


def fluency_rating(loss_change: float, repetition_change: float, bars: Sequence[float]) -> int:
    """2 up to the first bar, 1 up to the second, 0 beyond; one less for going in circles.

    Args:
        loss_change: Nats per token that the unsteered model finds the text less likely than its
            own continuation; log of the ratio of perplexities.
        repetition_change: Rise of the share of bigrams that were there before in the text.
        bars: In nats.

    >>> [fluency_rating(change, 0.0, (0.5, 1.5)) for change in (0.5, 1.5, 1.6)]
    [2, 1, 0]
    """
    rating = int(loss_change <= bars[0]) + int(loss_change <= bars[1])
    return max(0, rating - int(repetition_change > REPETITION_BAR))


def relevance_rating(relevance: float, clean: float, bars: Sequence[float]) -> int:
    """0 below the first share of the unsteered text's relevance, 2 from the second on.

    Relevance is (log P(text | prompt) - log P(text)) per token, by the unsteered model. Where the
    unsteered text owes nothing to its prompt there is nothing to lose, and every text gets 2.

    >>> [relevance_rating(share, 1.0, (0.25, 0.5)) for share in (0.2, 0.25, 0.5)]
    [0, 1, 2]
    """
    if clean <= 0:
        return 2
    return int(relevance >= bars[0] * clean) + int(relevance >= bars[1] * clean)


def halves(n: int) -> tuple[list[int], list[int]]:
    """Prompts that choose the strength, and prompts that report it: even and odd places.

    A single prompt does both, which `SteeringReport` says.

    >>> halves(5)
    ([0, 2, 4], [1, 3])
    """
    if n < 2:
        return list(range(n)), list(range(n))
    return list(range(0, n, 2)), list(range(1, n, 2))
