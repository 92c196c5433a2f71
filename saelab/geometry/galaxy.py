"""What shape is the cloud of decoder directions? Its spectrum, its clusters, its dimensions.

    slope       of log10 eigenvalue against log10 rank of the covariance, over a stated range of
                ranks: 0 for a ball, steeper where few directions hold most of the spread
    volume      sum of log eigenvalues over the same ranks
    clustering  entropy of a Gaussian of the same mean and covariance less that of the cloud, in
                nats: 0 if the second moments say it all, more if the cloud has clumps or filaments
    dimensions  four definitions of how many directions it uses: saelab.effective_dimension

Source: Li et al. 2024, "The geometry of concepts"; clustering entropy as in
saelab.geometry.clouds.
"""

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.effective_dimension import Dimensions, dimensions_of
from saelab.errors import ConfigError, DataError
from saelab.geometry.clouds import clustering_entropy
from saelab.geometry.nulls import AgainstNull, checked_directions

__all__ = [
    "Galaxy",
    "PowerLaw",
    "galaxy",
    "oriented",
    "power_law",
]

RANKS = (10, 150)
"""Ranks the published slopes are fitted over, the first is 1."""


@final
@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """A straight line through log10 value against log10 rank."""

    slope: float
    """Usually negative."""
    r2: float
    """Share of the variance of log10 value over the range that the line explains, at most 1."""
    ranks: tuple[int, int]
    """First and last rank of the fit, both included."""
    volume: float
    """Sum of natural logarithms of the values over the range."""


@final
@dataclass(frozen=True, kw_only=True)
class Galaxy:
    """The cloud of a dictionary's directions, each number beside a null."""

    n_latents: int
    """Directions."""
    d: int
    """Their width."""
    spectrum: tuple[float, ...]
    """Eigenvalues of the covariance, the largest first."""
    null_spectrum: tuple[float, ...]
    """The same of one cloud of random directions."""
    law: PowerLaw
    """Of the spectrum."""
    steepness: AgainstNull
    """-slope; null: random directions, as many and as wide."""
    clustering: AgainstNull
    """Clustering entropy in nats; null: Gaussian clouds of the same covariance in its place."""
    dimensions: Dimensions
    """Four definitions, of the spectrum."""
    null_dimensions: Dimensions
    """The same of random directions; `d` would be the most, and fewer latents give fewer."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        nulls = {"steepness": self.steepness.to_json(), "clustering": self.clustering.to_json()}
        return {**asdict(self), **nulls}

    def __str__(self) -> str:
        """Some lines."""
        low, high = self.law.ranks
        rows = [
            f"{self.n_latents:,} directions in {self.d} dimensions",
            f"  -slope over ranks {low} to {high} {self.steepness}; R2 {self.law.r2:.3f}",
            f"  clustering entropy, nats {self.clustering}",
        ]
        for name in ("n_99", "effective_rank", "spectral_rank", "participation"):
            own, null = getattr(self.dimensions, name), getattr(self.null_dimensions, name)
            rows.append(f"  {name} {own:.1f} (random directions {null:.1f})")
        return "\n".join(rows)


def power_law(spectrum: Float[Tensor, " rank"], ranks: tuple[int, int] = RANKS) -> PowerLaw:
    """Fit a power law to a spectrum by least squares on logarithms.

    Args:
        spectrum: Positive values, the largest first.
        ranks: First and last rank of the fit; the largest value has rank 1.

    Raises:
        ConfigError: The range holds fewer than three ranks, or leaves the spectrum.
        DataError: A value in the range is not positive.

    >>> round(power_law(torch.arange(1, 200).double() ** -0.5).slope, 6)
    -0.5
    """
    first, last = ranks
    if not 1 <= first <= last - 2 or last > len(spectrum):
        raise ConfigError(
            f"ranks={ranks} must hold at least three ranks within 1 to {len(spectrum)}."
        )
    values = spectrum[first - 1 : last].double()
    if not bool((values > 0).all()):
        raise DataError(
            f"An eigenvalue of ranks {first} to {last} is zero: the cloud has fewer dimensions. "
            "Fit over lower ranks."
        )
    x = torch.arange(first, last + 1, dtype=torch.float64).log10()
    y = values.log10()
    x, y = x - x.mean(), y - y.mean()
    slope = (x * y).sum() / x.square().sum()
    spread = y.square().sum()
    missed = (y - slope * x).square().sum()
    return PowerLaw(
        slope=float(slope),
        r2=float(1 - missed / spread) if spread > 1e-18 else 1.0,
        ranks=(first, last),
        volume=float(values.log().sum()),
    )


def oriented(
    directions: Float[Tensor, "latent d"], mean_latent: Float[Tensor, " latent"]
) -> Float[Tensor, "latent d"]:
    """Flip each direction so that its latent is positive on average.

    A signed latent and its direction can both change sign without changing anything; numbers that
    are not made of |cosine| need one choice for all.

    >>> oriented(torch.eye(2), torch.tensor([1.0, -3.0]))[1].tolist()
    [-0.0, -1.0]
    """
    signs = torch.where(mean_latent < 0, -1.0, 1.0).to(directions)
    return directions * signs[:, None]


def galaxy(
    directions: Float[Tensor, "latent d"],
    *,
    ranks: tuple[int, int] | None = None,
    n_dimensions: int = 100,
    max_points: int = 4096,
    n_null: int = 5,
    seed: int = 0,
) -> Galaxy:
    """Measure the cloud of a dictionary's unit directions.

    Args:
        directions: Decoder rows, of any length; those of a signed dictionary `oriented` first.
        ranks: Ranks of the power law; 10 to 150, or the middle of a smaller spectrum.
        n_dimensions: Principal components the entropy is measured in.
        max_points: Directions the entropy is measured on.
        n_null: Random clouds for each null.
        seed: Of all draws.
    """
    unit = checked_directions(directions, 4).cpu()
    n, d = unit.shape
    full = min(n - 1, d)
    if ranks is None:
        ranks = RANKS if full >= RANKS[1] else (max(1, full // 10), max(3, full * 3 // 4))
    generator = torch.Generator().manual_seed(seed)
    spectrum = _spectrum(unit)
    clouds = [
        _spectrum(checked_directions(torch.randn(n, d, generator=generator))) for _ in range(n_null)
    ]
    law = power_law(spectrum, ranks)
    return Galaxy(
        n_latents=n,
        d=d,
        spectrum=tuple(spectrum.tolist()),
        null_spectrum=tuple(clouds[0].tolist()),
        law=law,
        steepness=AgainstNull(
            value=-law.slope,
            draws=tuple(-power_law(cloud, ranks).slope for cloud in clouds),
            null="random directions",
        ),
        clustering=clustering_entropy(
            unit,
            n_dimensions=min(n_dimensions, min(n, max_points) // 2),
            max_points=max_points,
            n_null=max(2, n_null),
            seed=seed,
        ),
        dimensions=dimensions_of(spectrum),
        null_dimensions=dimensions_of(clouds[0]),
    )


def _spectrum(unit: Tensor) -> Tensor:
    centered = unit.double() - unit.double().mean(0)
    return torch.linalg.eigvalsh(centered.T @ centered / len(unit)).flip(0).clamp_min(0)
