"""How is an atlas built?"""

from dataclasses import asdict, dataclass
from typing import Any, final

from saelab.errors import ConfigError

__all__ = ["AtlasConfig"]


@final
@dataclass(frozen=True, kw_only=True)
class AtlasConfig:
    """How an atlas is built; the same configuration always gives the same tables.

    >>> AtlasConfig(top=4).intervals
    5
    """

    max_tokens: int | None = None
    """Whole rows are read until this many token positions are; all of them if None."""
    rows_per_batch: int = 16
    """Token rows (contexts) in one forward pass."""
    tokens_per_shard: int = 65536
    """Token positions per shard of codes: what an interruption costs at most."""
    outlier_factor: float | None = 4.0
    """Positions whose norm is above this many times the median of the first batch are left out:
    attention sinks. None keeps all."""
    before: int = 16
    """Tokens of context kept before the peak of an example, within its document."""
    after: int = 8
    """Tokens of context kept after it."""
    top: int = 12
    """Strongest examples per latent and sign, at most one per token row."""
    intervals: int = 5
    """Equal-width intervals of |activation| from 0 to the tail's maximum."""
    per_interval: int = 3
    """Examples drawn at random from each interval."""
    quantiles: int = 5
    """Equal-count strata of the tail's activations, weakest first."""
    per_quantile: int = 3
    """Examples drawn at random from each quantile."""
    near_misses: int = 6
    """Contexts per latent and sign where one of its own tokens stands but it stays silent."""
    bins: int = 50
    """Bins of each activation histogram, from 0 to the tail's maximum."""
    logits: int = 10
    """Promoted, and suppressed, tokens per latent."""
    profile: int = 10
    """Tokens and n-grams listed per latent, sign and ranking."""
    neighbors: int = 10
    """Nearest decoder directions per latent."""
    cooccurring: int = 10
    """Latents listed that fire on the same tokens, per latent and sign."""
    cooccurrence_tokens: int = 500_000
    """Measured tokens that are enough to count co-occurrence; beyond them, a random sample."""
    direct_effects: int = 0
    """Top examples per latent and sign whose direct effect on the loss is measured; each costs
    about as much as running the model on two tokens per token where the latent is active."""
    n_heads: int | None = None
    """Heads of the attention layer, for dictionaries of hook_z; asked of the model if None."""
    keep_codes: bool = True
    """Keep the sparse codes (8 bytes per latent that fires), which comparison by activation
    needs."""
    band_pairs: int = 4_000_000
    """Latent-token pairs worked on at once: memory is about 100 bytes each."""
    seed: int = 0
    """Draws the random examples."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        positive = (
            "rows_per_batch", "tokens_per_shard", "top", "intervals", "quantiles", "bins",
            "band_pairs", "cooccurrence_tokens",
        )  # fmt: skip
        for name, value in asdict(self).items():
            if isinstance(value, bool) or value is None or name in ("outlier_factor", "seed"):
                continue
            least = 1 if name in (*positive, "max_tokens", "n_heads") else 0
            if value < least:
                raise ConfigError(f"AtlasConfig({name}={value}): it must be at least {least}.")
        if self.outlier_factor is not None and not self.outlier_factor > 1:
            raise ConfigError(
                f"AtlasConfig(outlier_factor={self.outlier_factor}) would leave out ordinary "
                "activations: it multiplies the median norm. Use a number above 1, or None."
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)
