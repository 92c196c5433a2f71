"""What does a page about one latent show? Plain records, filled from the tables, free of the model.

Every `sign` is +1 or -1: the side of zero. A dictionary whose latents are never negative has only
the positive side. Activations keep their sign everywhere; `strength` and `max` are sizes.
"""

from dataclasses import dataclass
from typing import final

__all__ = [
    "Annotation",
    "Cooccurring",
    "Example",
    "Histogram",
    "Interval",
    "Label",
    "LatentCard",
    "Neighbor",
    "ProfileEntry",
    "SearchHit",
    "TailCard",
    "TokenEffect",
]


@final
@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Equal-width bins."""

    low: float
    """Where the first bin begins."""
    high: float
    """Where the last bin ends."""
    counts: tuple[int, ...]
    """How many values are in each; the last bin includes `high`."""

    @property
    def edges(self) -> tuple[float, ...]:
        """Ends of the bins, one more than there are bins."""
        n = len(self.counts)
        return tuple(self.low + (self.high - self.low) * i / n for i in range(n + 1))


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """One equal-width part of a tail, from 0 (excluded) to its maximum."""

    low: float
    """Smallest |activation|."""
    high: float
    """Largest |activation|."""
    count: int
    """Tokens in it."""
    share: float
    """`count` over the tokens on which the latent has this sign."""


@final
@dataclass(frozen=True, kw_only=True)
class Example:
    """One stretch of text with the latent's activation on each of its tokens."""

    latent: int
    """Which latent."""
    sign: int
    """Which side of zero its peak is on."""
    number: int
    """Identifies the example among those of its latent and sign, from 0."""
    token_ids: tuple[int, ...]
    """The tokens shown, cut to the document of the peak."""
    tokens: tuple[str, ...]
    """Their text."""
    activations: tuple[float, ...]
    """The latent's signed activation on each; 0 where silent or not measured."""
    peak: int
    """Which of the tokens the example was chosen for."""
    strength: float
    """|activation| there; 0 for a near miss."""
    row: int
    """Token row."""
    position: int
    """Position of the peak in its row."""
    document: str
    """Name of the document."""
    cut: tuple[bool, bool]
    """Whether the document's text goes on before, and after, what is shown."""
    top_rank: int | None = None
    """Rank among the strongest, from 0; None if it was drawn at random."""
    interval: int | None = None
    """Its equal-width interval, weakest first."""
    interval_rank: int | None = None
    """Order of the draw in its interval; None if it was not drawn from it."""
    quantile: int | None = None
    """Its equal-count stratum, weakest first."""
    quantile_rank: int | None = None
    """Order of the draw in its quantile; None if it was not drawn from it."""
    direct: tuple[float | None, ...] | None = None
    """For each token, what the latent added to the log-probability of this token through the
    final norm alone (nats); None where it was silent one token before, or not measured."""
    ablation: tuple[float | None, ...] | None = None
    """The same for the whole model: log-probability as it is, minus that with the latent at zero
    in this row (nats)."""


@final
@dataclass(frozen=True, kw_only=True)
class TokenEffect:
    """What one unit of a latent adds to a token's logit."""

    token_id: int
    """The token."""
    token: str
    """Its text."""
    effect: float
    """Logit effect per unit of activation, relative to the mean over the vocabulary."""


@final
@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """A latent whose decoder direction is close."""

    latent: int
    """Which."""
    cosine: float
    """Of the two directions, signed."""
    label: str
    """What it is called."""


@final
@dataclass(frozen=True, kw_only=True)
class Cooccurring:
    """A latent, on one side of zero, that fires on the same tokens."""

    latent: int
    """Which."""
    sign: int
    """Its side."""
    both: int
    """Tokens on which both fire, among those counted."""
    phi: float
    """Correlation of the two as binary variables, -1 to 1."""
    jaccard: float
    """Tokens of both over tokens of either, 0 to 1."""
    npmi: float
    """Normalized pointwise mutual information, -1 to 1."""
    label: str
    """What it is called."""


@final
@dataclass(frozen=True, kw_only=True)
class ProfileEntry:
    """A token, or a run of tokens, and how a tail relates to it."""

    family: str
    """"token": the token it fires on; "bigram", "trigram": that and the ones before it; "next":
    the token after it."""
    token_ids: tuple[int, ...]
    """The token or tokens."""
    text: str
    """Their text."""
    fires: int
    """Measured tokens with this key on which the tail fires."""
    corpus: int
    """Measured tokens with this key."""
    share: float
    """`fires` over the tokens on which the tail fires."""
    precision: float
    """`fires / corpus`: how likely it is to fire here."""
    lift: float
    """How many times likelier the key is where the tail fires than anywhere."""
    mean: float
    """Mean |activation| where it fires on this key."""
    count_rank: int | None
    """Rank by `fires`, from 0; None beyond those listed."""
    enriched_rank: int | None
    """Rank by fires * log(lift), from 0; None beyond those listed."""


@final
@dataclass(frozen=True, kw_only=True)
class Label:
    """A description of one tail, how it was found, and how well it does."""

    latent: int
    """Which latent."""
    sign: int
    """Which side; 0 for the latent as a whole."""
    kind: str
    """"token", "bigram", "trigram", "next", "context", "output" without a language model; "llm"
    from one; "human"."""
    text: str
    """The description."""
    score: float | None
    """How well it does; `score_name` says in what. None if it was not scored."""
    score_name: str
    """"F1", "balanced accuracy", "z", "detection", ..., or ""."""
    precision: float | None = None
    """Share of the tokens (or windows) it points at on which the latent fires."""
    recall: float | None = None
    """Share of those on which the latent fires that it points at."""
    source: str = "saelab"
    """Who made it: "saelab", a language model's name, or a person."""


@final
@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What people wrote about a latent."""

    latent: int
    """Which latent."""
    sign: int
    """+1 or -1 for one side, 0 for the latent as a whole."""
    label: str = ""
    """A name; empty if it has none."""
    note: str = ""
    """Free text."""
    starred: bool = False
    """Whether it is marked to be found again."""
    author: str = ""
    """Who wrote it last."""
    updated: str = ""
    """When, UTC, ISO 8601."""


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


@final
@dataclass(frozen=True, kw_only=True)
class SearchHit:
    """A latent that a search found, and where."""

    latent: int
    """Which latent."""
    sign: int
    """Which side; 0 for the whole."""
    field: str
    """Where it was found: "number", "human", "note", "llm", "label", "token" (fires on it),
    "promoted" (pushes it), "example" (text of an example)."""
    text: str
    """What was found there."""
    score: float
    """Larger is better; comparable within one search only."""
    label: str
    """What the latent is called."""
