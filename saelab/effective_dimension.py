"""How many dimensions do the activations of a hook point really use?

With sigma_i the singular values of the centered activations and lambda_i = sigma_i^2:

    n_99            least k with sum of the k largest lambda >= 0.99 of their sum
    effective_rank  exp(-sum p_i log p_i),  p_i = sigma_i / sum sigma
    spectral_rank   the same with p_i = lambda_i / sum lambda
    participation   (sum lambda)^2 / sum lambda^2

The four disagree by design: the first ignores a long tail, the last hears only the largest
directions. A single dimension that is hundreds of times larger than the others, as the residual
stream of most models has, brings all of them to about 1, so each is also given with every
dimension standardized and with the largest dimensions left out.

Sources: Roy and Vetterli 2007 for the effective rank. That attention outputs need far fewer
dimensions than the residual stream is reported in arXiv 2508.16929, with n_99.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.store import ActivationStore

__all__ = [
    "Dimensions",
    "SiteDimensions",
    "covariance",
    "dimensions_of",
    "effective_dimension",
    "effective_dimensions",
    "site_dimensions",
]

READ_ROWS = 4096
"""Activations of every hook point held at a time."""


@final
@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The four numbers of one spectrum, each between 1 and the width."""

    n_99: int
    """Directions that hold 99 % of the variance."""
    effective_rank: float
    """Exponential of the entropy of the singular values."""
    spectral_rank: float
    """Exponential of the entropy of the variances."""
    participation: float
    """Inverse participation ratio of the variances."""


@final
@dataclass(frozen=True, kw_only=True)
class SiteDimensions:
    """How many dimensions one site uses, seen three ways."""

    width: int
    """Width of the activations."""
    n_tokens: int
    """Activations measured; fewer than about ten times the width make every number too small."""
    plain: Dimensions
    """Of the activations as they are."""
    standardized: Dimensions
    """With every dimension divided by its standard deviation."""
    trimmed: Dimensions
    """Without the dimensions of largest variance."""
    removed: list[int]
    """The dimensions that `trimmed` leaves out."""
    top_share: float
    """Share of the variance that the largest single dimension holds, 0 to 1."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def dimensions_of(variances: Float[Tensor, " direction"]) -> Dimensions:
    """The four numbers of a spectrum of variances (eigenvalues of the covariance).

    Raises:
        DataError: No variance is positive.

    >>> dimensions_of(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    Dimensions(n_99=3, effective_rank=3.0, spectral_rank=3.0, participation=3.0)
    """
    found = variances.double().clamp_min(0).sort(descending=True).values
    total = found.sum()
    if not total > 0:
        raise DataError("The activations do not vary, so they use no dimension at all.")
    # Rounding leaves a constant direction with a variance next to zero, whose root is not small.
    found = torch.where(found > 1e-12 * found[0], found, 0)
    reached = found.cumsum(0) / found.sum() >= 0.99 - 1e-12
    return Dimensions(
        n_99=int(reached.nonzero()[0]) + 1,
        effective_rank=_entropic(found.sqrt()),
        spectral_rank=_entropic(found),
        participation=round(float(found.sum().square() / found.square().sum()), 6),
    )


def covariance(batches: Iterable[Float[Tensor, "_ width"]]) -> tuple[Tensor, int]:
    """Covariance of activations that come in batches, in float64, and how many there were.

    Means are merged batch by batch, so activations far from the origin lose no digits.

    Raises:
        DataError: Fewer than two activations, or one that is not finite.
    """
    moments = _Moments()
    for batch in batches:
        moments.add(batch)
    return moments.covariance(), moments.count


def site_dimensions(
    covariance: Float[Tensor, "width width_again"], n_tokens: int, remove: int = 3
) -> SiteDimensions:
    """Every definition, of one site.

    Args:
        covariance: Of its activations.
        n_tokens: What it was measured on.
        remove: How many dimensions of largest variance `trimmed` leaves out.
    """
    width = len(covariance)
    if not 0 <= remove < width:
        raise ConfigError(f"remove={remove} must be at least 0 and less than the width {width}.")
    variances = covariance.diagonal()
    order = variances.argsort(descending=True)
    kept = order[remove:].sort().values
    deviations = variances.clamp_min(0).sqrt()
    used = (deviations > 1e-6 * deviations.max()).nonzero().squeeze(1)
    scaled = covariance / torch.outer(deviations, deviations).clamp_min(1e-300)
    return SiteDimensions(
        width=width,
        n_tokens=n_tokens,
        plain=dimensions_of(torch.linalg.eigvalsh(covariance)),
        standardized=dimensions_of(torch.linalg.eigvalsh(scaled[used][:, used])),
        trimmed=dimensions_of(torch.linalg.eigvalsh(covariance[kept][:, kept])),
        removed=order[:remove].tolist(),
        top_share=float(variances.max() / variances.sum()),
    )


def effective_dimension(
    store: ActivationStore, hook: str | None = None, *, max_tokens: int = 50_000, remove: int = 3
) -> SiteDimensions:
    """How many dimensions one hook point of a store uses.

    >>> plane = torch.randn(400, 2) @ torch.eye(2, 6)
    >>> effective_dimension(ActivationStore.from_tensor(plane), remove=0).plain.n_99
    2
    """
    at = store if hook is None else store.at(hook)
    total = min(max_tokens, at.n_tokens)
    ranges = ((s, min(s + READ_ROWS, total)) for s in range(0, total, READ_ROWS))
    found, n_tokens = covariance(at.rows(start, stop).activations for start, stop in ranges)
    return site_dimensions(found, n_tokens, min(remove, at.d_in - 1))


def effective_dimensions(
    store: ActivationStore,
    *,
    max_tokens: int = 50_000,
    remove: int = 3,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, SiteDimensions]:
    """How many dimensions every hook point of a store uses, all from one pass over it.

    Rows are read once for all hook points, so a model whose activations are streamed runs once.

    Args:
        store: On disk, in memory, or streamed from a model.
        max_tokens: Activations measured at each hook point.
        remove: How many dimensions of largest variance `trimmed` leaves out.
        progress: Called with the activations read, of how many, and what is going on.

    Raises:
        DataError: Activations that do not vary or are not finite.

    >>> plane = torch.randn(400, 2) @ torch.eye(2, 6)
    >>> store = ActivationStore.from_tensor({"plane": plane, "ball": torch.randn(400, 5)})
    >>> {hook: site.plain.n_99 for hook, site in effective_dimensions(store, remove=0).items()}
    {'plane': 2, 'ball': 5}
    """
    total = min(max_tokens, store.n_tokens)
    moments = {hook: _Moments() for hook in store.hooks}
    for start in range(0, total, READ_ROWS):
        stop = min(start + READ_ROWS, total)
        activations = store.rows(start, stop, store.hooks).activations
        for hook, found in moments.items():
            found.add(activations[hook])
        if progress is not None:
            progress(stop, total, "activations")
    return {
        hook: site_dimensions(found.covariance(), found.count, min(remove, store.widths[hook] - 1))
        for hook, found in moments.items()
    }


class _Moments:
    """Count, mean and scatter of activations that come in batches."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, batch: Float[Tensor, "_ width"]) -> None:
        x = batch.double()
        if self._mean is None or self._scatter is None:
            self._mean = x.new_zeros(x.shape[1])
            self._scatter = x.new_zeros(x.shape[1], x.shape[1])
        own = x.mean(0)
        centered, step = x - own, own - self._mean
        total = self.count + len(x)
        self._scatter.addmm_(centered.T, centered)
        self._scatter.addr_(step, step, alpha=self.count * len(x) / total)
        self._mean += step * (len(x) / total)
        self.count = total

    def covariance(self) -> Tensor:
        if self._scatter is None or self.count < 2:
            raise DataError(
                f"A covariance needs at least two activations; there were {self.count}."
            )
        if not torch.isfinite(self._scatter).all():
            raise DataError("An activation is NaN or infinite, so there is no covariance.")
        return self._scatter / self.count


def _entropic(weights: Float[Tensor, " direction"]) -> float:
    shares = weights[weights > 0] / weights.sum()
    return round(float(torch.exp(-(shares * shares.log()).sum())), 6)
