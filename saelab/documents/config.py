"""How are documents read? What counts as one, and how much of it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from saelab.errors import ConfigError

__all__ = ["DocumentConfig"]


@final
@dataclass(frozen=True, kw_only=True)
class DocumentConfig:
    """How texts become documents; the same settings always give the same documents.

    >>> DocumentConfig(unit="passage", length=64).max_rows is None
    True
    """

    unit: Literal["document", "passage"] = "document"
    """What one row of the result is: a whole text, or a passage of `length` tokens. Passages are of
    nearly equal length, which keeps length out of comparisons, and know the text they are of."""
    length: int = 128
    """Tokens the model reads at once, its BOS not counted."""
    max_rows: int | None = None
    """Passages of `length` tokens that are read of each text, from its start; None for all."""
    max_documents: int | None = None
    """Documents that are made at most; None for all."""
    least_tokens: int = 8
    """Documents with fewer tokens that count are left out."""
    rows_per_batch: int = 16
    """Passages in one forward pass."""
    rows_per_shard: int = 1024
    """Passages held in memory as firings before they are written, at least one text's."""
    outlier_factor: float | None = 4.0
    """Tokens with an activation longer than this many times the median do not count (attention
    sinks); None counts all."""

    def __post_init__(self) -> None:
        for name in ("length", "least_tokens", "rows_per_batch", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("max_rows", "max_documents"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ConfigError(f"{name}={given} must be at least 1, or None for all.")
        if self.unit not in ("document", "passage"):
            raise ConfigError(f"unit={self.unit!r} must be 'document' or 'passage'.")
        if self.outlier_factor is not None and not self.outlier_factor > 1:
            raise ConfigError(
                f"outlier_factor={self.outlier_factor} would leave out ordinary tokens; use a "
                "number above 1 (4 is usual), or None."
            )

    def to_json(self) -> dict[str, Any]:
        """What the documents depend on."""
        return asdict(self)
