"""How is a survey made? Its settings, which are kept with its numbers."""

from dataclasses import asdict, dataclass
from typing import Any, final

from saelab.errors import ConfigError
from saelab.geometry.affinities import AffinityKind

__all__ = ["SurveyConfig"]


@final
@dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """How a survey of a dictionary's geometry is made; the same settings give the same numbers.

    >>> SurveyConfig(lobes=(1,))
    Traceback (most recent call last):
    ...
    saelab.errors.ConfigError: SurveyConfig(lobes=(1,)): name numbers of lobes, each 2 or more.
    """

    max_tokens: int = 60_000
    """Activations read, from the beginning of the store."""
    chunk_tokens: int = 32
    """Tokens of a chunk: latents that fire in one occur together."""
    lobes: tuple[int, ...] = (2, 8, 24)
    """Numbers of lobes; repeatable."""
    affinity: AffinityKind = "phi"
    """How strongly two latents occur together."""
    near: int = 10
    """Nearest directions of a latent that are asked whether they are of its lobe."""
    max_latents: int = 8192
    """Latents that are clustered; of more, as many are drawn at random."""
    draws: int = 3
    """Draws of the costly nulls: random directions, Gaussian clouds, fits to shuffled lobes."""
    shuffles: int = 100
    """Draws of the cheap nulls: lobes or relations shuffled."""
    words: bool = True
    """Whether the model reads pairs of words, to look for parallelograms among them."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if not self.lobes or min(self.lobes) < 2:
            raise ConfigError(
                f"SurveyConfig(lobes={self.lobes}): name numbers of lobes, each 2 or more."
            )
        counts = ("max_tokens", "chunk_tokens", "near", "max_latents", "draws", "shuffles")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise ConfigError(
                f"SurveyConfig({low[0]}={getattr(self, low[0])}): it must be at least 1."
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "lobes": list(self.lobes)}
