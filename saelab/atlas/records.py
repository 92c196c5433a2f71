"""What is told of a latent, piece by piece: an example, a label, a neighbor, a note. Plain records.

Every `sign` is +1 or -1: the side of zero. Activations keep their sign everywhere; `strength` and
`max` are sizes.
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
    "Neighbor",
    "ProfileEntry",
    "SearchHit",
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
