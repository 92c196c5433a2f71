"""What does a page about one latent show? Plain records, filled from the tables, free of the model.

Every `sign` is +1 or -1: the side of zero. A dictionary whose latents are never negative has only
the positive side. Activations keep their sign everywhere; `strength` and `max` are sizes.
"""

from dataclasses import dataclass
from typing import final

from saelab.atlas.records import (
    Annotation,
    Cooccurring,
    Example,
    Histogram,
    Interval,
    Label,
    Neighbor,
    ProfileEntry,
    TokenEffect,
)

__all__ = ["LatentCard", "TailCard"]


@final
@dataclass(frozen=True, kw_only=True)
class TailCard:
    """One side of a latent."""

    sign: int
    """+1 or -1."""
    count: int
    """Measured tokens on which it fires."""
    density: float
    """`count` over all measured tokens."""
    max: float
    """Largest |activation|; 0 if it never fires."""
    mean: float
    """Mean |activation| where it fires; 0 if it never does."""
    label: str
    """Best label: a person's, else a language model's, else the automatic one."""
    histogram: Histogram
    """|activation| where it fires."""
    intervals: tuple[Interval, ...]
    """Equal-width parts, weakest first; empty if it never fires."""
    quantile_edges: tuple[float, ...]
    """Smallest |activation| of each quantile, and the maximum; empty if it never fires."""
    examples: tuple[Example, ...]
    """Top examples first by rank, then the draws by strength, strongest first."""
    near_misses: tuple[Example, ...]
    """One of its own tokens stands there, and it stays silent."""
    profile: tuple[ProfileEntry, ...]
    """Tokens and n-grams, by family and count."""
    cooccurring: tuple[Cooccurring, ...]
    """By phi, largest first."""
    positions: tuple[float, ...]
    """Share of measured tokens on which it fires, by equal parts of the row."""
    n_documents: int
    """Documents in which it fires."""
    top_documents: tuple[tuple[str, int], ...]
    """Documents in which it fires most, with the number of tokens."""
    promoted: tuple[TokenEffect, ...]
    """Tokens that this side promotes, most promoted first (effects are of one unit this way)."""
    suppressed: tuple[TokenEffect, ...]
    """Tokens that it suppresses."""
    labels: tuple[Label, ...]
    """Every label of this side."""

    def top(self) -> tuple[Example, ...]:
        """The strongest examples, in order."""
        found = [one for one in self.examples if one.top_rank is not None]
        return tuple(sorted(found, key=lambda one: one.top_rank or 0))

    def of_interval(self, interval: int) -> tuple[Example, ...]:
        """The examples drawn from one equal-width interval, in the order of the draw."""
        found = [
            one
            for one in self.examples
            if one.interval == interval and one.interval_rank is not None
        ]
        return tuple(sorted(found, key=lambda one: one.interval_rank or 0))

    def of_quantile(self, quantile: int) -> tuple[Example, ...]:
        """The examples drawn from one equal-count stratum, in the order of the draw."""
        found = [
            one
            for one in self.examples
            if one.quantile == quantile and one.quantile_rank is not None
        ]
        return tuple(sorted(found, key=lambda one: one.quantile_rank or 0))


@final
@dataclass(frozen=True, kw_only=True)
class LatentCard:
    """Everything a page about one latent shows."""

    latent: int
    """Which latent."""
    label: str
    """Best label of the whole: a person's, else its heavier side's."""
    signed: bool
    """Whether latents of this dictionary can be below zero."""
    n_tokens: int
    """Tokens measured: the denominator of every density."""
    count: int
    """Tokens on which it is not zero."""
    density: float
    """`count / n_tokens`."""
    max: float
    """Largest |activation| on either side."""
    bias: float
    """Its entry of b_enc."""
    enc_norm: float
    """Length of its encoder direction."""
    dec_norm: float
    """Length of what one unit of it writes, in the model's units."""
    enc_dec_cosine: float | None
    """Cosine of its encoder and decoder directions; None if they differ in width."""
    tails: tuple[TailCard, ...]
    """The positive side, and the negative one if the dictionary is signed."""
    effects_missing: str
    """Why there are no promoted tokens; empty if there are."""
    logit_histogram: Histogram | None
    """Logit effects of one positive unit over the whole vocabulary."""
    logit_kurtosis: float | None
    """Excess kurtosis of those: high where a few tokens are meant."""
    neighbors: tuple[Neighbor, ...]
    """Nearest decoder directions, nearest first."""
    heads: tuple[float, ...]
    """For a dictionary of hook_z: share of the decoder direction's length per head, which add up
    to 1. Empty for others."""
    annotations: tuple[Annotation, ...]
    """What people wrote, for the whole and for each side."""
    labels: tuple[Label, ...]
    """Every label: people's, language models' and automatic ones."""

    @property
    def dead(self) -> bool:
        """Whether it never fired."""
        return self.count == 0

    @property
    def starred(self) -> bool:
        """Whether someone starred it, or a side of it."""
        return any(one.starred for one in self.annotations)

    @property
    def positive(self) -> TailCard:
        """The side above zero."""
        return self.tails[0]

    @property
    def negative(self) -> TailCard | None:
        """The side below zero; None if latents are never negative."""
        return self.tails[1] if len(self.tails) > 1 else None

    def _repr_html_(self) -> str:
        """The card as a notebook shows it."""
        from saelab.atlas.inline import card_html  # which needs the classes of this file

        return card_html(self)
