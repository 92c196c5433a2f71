"""How well does a dictionary reconstruct? One definition of each number, and no other.

`ReconstructionMetrics` takes batches in any order and any size and keeps float64 sums and integer
counts, so how the data was split changes nothing. The plain functions (`fvu`, `cosine`, ...) are
that accumulator fed once.

Axes: token is a row of activations, latent a coordinate of the dictionary.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = [
    "Reconstruction",
    "ReconstructionMetrics",
    "cosine",
    "density",
    "density_histogram",
    "explained_variance",
    "fvu",
    "l2_ratio",
    "mse",
    "relative_bias",
]

SUMMED = ("error", "spread", "x_squared", "recons_squared", "dot", "cosine", "ratio", "l1")
L0_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@final
@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Every reconstruction and sparsity number of one evaluation set; None where undefined."""

    n_tokens: int
    """Tokens measured, after exclusions."""
    fvu: float | None
    """sum |x - recons|^2 / sum |x - mean(x)|^2; 0 is perfect, 1 is as good as the mean."""
    explained_variance: float | None
    """1 - fvu."""
    explained_variance_uncentered: float | None
    """1 - sum |x - recons|^2 / sum |x|^2: flattered by a large mean."""
    mse: float
    """Mean over tokens of |x - recons|^2, summed over dimensions."""
    cosine: float | None
    """Mean over tokens of cos(x, recons)."""
    l2_ratio: float | None
    """Mean over tokens of |recons| / |x|; below 1 is shrinkage."""
    relative_bias: float | None
    """sum |recons|^2 / sum x.recons; below 1 is shrinkage, and c for recons = c x."""
    l0: float | None
    """Mean number of latents that are not zero, per token."""
    l1: float | None
    """Mean over tokens of the sum of |latent|."""
    l0_quantiles: dict[str, int]
    """The smallest L0 that at least this share of tokens do not exceed."""
    l0_counts: list[int]
    """How many tokens have an L0 of 0, 1, 2, ..."""
    dead: int | None
    """Latents that fired on no token of this set; the set's size is the token budget."""
    dead_share: float | None
    """dead / d_sae."""
    firing_positive: list[int]
    """Tokens on which each latent is above zero."""
    firing_negative: list[int]
    """Tokens on which each latent is below zero; all zeros unless the dictionary is signed."""

    @property
    def density(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which each latent is not zero, whatever its sign."""
        counts = torch.tensor(self.firing_positive) + torch.tensor(self.firing_negative)
        return counts.double() / self.n_tokens

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Reconstruction":
        """What `to_json` wrote."""
        return cls(**value)


@final
class ReconstructionMetrics:
    """Streaming sums behind `Reconstruction`; batches may be split and merged in any way.

    The variance uses Chan's merging of means in float64, so activations far from the origin lose
    no digits: adding a constant to `x` and `recons` changes nothing.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> metrics = ReconstructionMetrics()
    >>> metrics.update(x, torch.tensor([[0.0], [1.0]]))
    >>> metrics.result().fvu
    0.5
    """

    def __init__(self) -> None:
        """Start with no tokens."""
        self.n_tokens = 0
        self._mean: Float[Tensor, " d"] | None = None
        self._sums: dict[str, float] = dict.fromkeys(SUMMED, 0.0)
        self._n_nonzero = 0
        self._l0 = torch.zeros(0, dtype=torch.int64)
        self._positive: Int[Tensor, " latent"] | None = None
        self._negative: Int[Tensor, " latent"] | None = None

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Mean of the activations so far, float64, on the CPU."""
        if self._mean is None:
            raise DataError("The mean of no tokens was asked; update() with some first.")
        return self._mean

    def update(
        self,
        x: Float[Tensor, "token d"],
        recons: Float[Tensor, "token d"],
        codes: SparseCodes | None = None,
    ) -> None:
        """Add a batch.

        Args:
            x: Activations, in the model's own units.
            recons: What the dictionary made of them, same units.
            codes: The latents; without them the sparsity numbers stay None.

        Raises:
            ShapeError: The three do not describe the same tokens.
            DataError: Something is NaN or infinite.
        """
        _check(x, recons, codes, self._mean)
        if not len(x):
            return
        x, recons = x.detach().double(), recons.detach().double()
        sums = _batch_sums(x, recons)
        if not all(map(math.isfinite, sums.values())):
            raise DataError("An activation or its reconstruction is NaN or infinite.")
        self._add_spread(len(x), x.mean(0).cpu(), sums.pop("spread"))
        self._n_nonzero += int(sums.pop("nonzero"))
        for name, value in sums.items():
            self._sums[name] += value
        if codes is not None:
            self._add_codes(codes)

    def merge(self, other: "ReconstructionMetrics") -> None:
        """Add everything another accumulator has seen, as if its batches had come here."""
        if not other.n_tokens:
            return
        self._add_spread(other.n_tokens, other.mean, other._sums["spread"])
        self._n_nonzero += other._n_nonzero
        for name, value in other._sums.items():
            if name != "spread":
                self._sums[name] += value
        if other._positive is not None and other._negative is not None:
            self._add_counts(other._l0, other._positive, other._negative)

    def result(self) -> Reconstruction:
        """The numbers so far."""
        if not self.n_tokens:
            raise DataError("No tokens to measure: every one was excluded, or there were none.")
        sums, n = self._sums, self.n_tokens
        share = _ratio(sums["error"], sums["spread"])
        uncentered = _ratio(sums["error"], sums["x_squared"])
        return Reconstruction(
            n_tokens=n,
            fvu=share,
            explained_variance=None if share is None else 1 - share,
            explained_variance_uncentered=None if uncentered is None else 1 - uncentered,
            mse=sums["error"] / n,
            cosine=_ratio(sums["cosine"], self._n_nonzero),
            l2_ratio=_ratio(sums["ratio"], self._n_nonzero),
            relative_bias=_ratio(sums["recons_squared"], sums["dot"]),
            **self._sparsity(),
        )

    def _sparsity(self) -> dict[str, Any]:
        if self._positive is None or self._negative is None:
            names = ("l0", "l1", "dead", "dead_share")
            lists = {"l0_counts": [], "firing_positive": [], "firing_negative": []}
            return {**dict.fromkeys(names), **lists, "l0_quantiles": {}}
        dead = int((self._positive + self._negative == 0).sum())
        levels = torch.arange(len(self._l0))
        return {
            "l0": int((levels * self._l0).sum()) / self.n_tokens,
            "l1": self._sums["l1"] / self.n_tokens,
            "l0_quantiles": _count_quantiles(self._l0),
            "l0_counts": self._l0.tolist(),
            "dead": dead,
            "dead_share": dead / len(self._positive),
            "firing_positive": self._positive.tolist(),
            "firing_negative": self._negative.tolist(),
        }

    def _add_spread(self, n: int, mean: Tensor, spread: float) -> None:
        total = self.n_tokens + n
        if self._mean is None:
            self._mean = mean.clone()
        else:
            step = mean - self._mean
            spread += float(step.square().sum()) * self.n_tokens * n / total
            self._mean = self._mean + step * (n / total)
        self._sums["spread"] += spread
        self.n_tokens = total

    def _add_codes(self, codes: SparseCodes) -> None:
        values, indices = codes.values.detach(), codes.indices
        self._sums["l1"] += float(values.double().abs().sum())
        self._add_counts(
            torch.bincount(codes.l0()).cpu(),
            torch.bincount(indices[values > 0], minlength=codes.d_sae).cpu(),
            torch.bincount(indices[values < 0], minlength=codes.d_sae).cpu(),
        )

    def _add_counts(self, l0: Tensor, positive: Tensor, negative: Tensor) -> None:
        short, long = sorted((self._l0, l0), key=len)
        self._l0 = torch.cat([short, short.new_zeros(len(long) - len(short))]) + long
        if self._positive is None or self._negative is None:
            self._positive, self._negative = torch.zeros_like(positive), torch.zeros_like(negative)
        if len(self._positive) != len(positive):
            raise ShapeError(
                f"These codes have {len(positive)} latents; the earlier ones had "
                f"{len(self._positive)}. One accumulator measures one dictionary."
            )
        self._positive, self._negative = self._positive + positive, self._negative + negative


def _check(x: Tensor, recons: Tensor, codes: SparseCodes | None, mean: Tensor | None) -> None:
    if x.ndim != 2 or x.shape != recons.shape:
        raise ShapeError(
            f"x is {tuple(x.shape)} and recons is {tuple(recons.shape)}; "
            "both must be [token, d], the same."
        )
    if codes is not None and codes.n_tokens != len(x):
        raise ShapeError(f"x has {len(x)} tokens but the codes have {codes.n_tokens}.")
    if mean is not None and len(mean) != x.shape[1]:
        raise ShapeError(f"x is {x.shape[1]} wide; the batches before it were {len(mean)} wide.")


def _batch_sums(x: Tensor, recons: Tensor) -> dict[str, float]:
    x_norm, recons_norm = x.norm(dim=1), recons.norm(dim=1)
    dot = (x * recons).sum(1)
    nonzero = x_norm > 0  # a token at the origin has no direction and no relative length
    cosines = dot / (x_norm * recons_norm).clamp_min(torch.finfo(torch.float64).tiny)
    sums = {
        "error": (x - recons).square().sum(),
        "spread": (x - x.mean(0)).square().sum(),
        "x_squared": x.square().sum(),
        "recons_squared": recons.square().sum(),
        "dot": dot.sum(),
        "cosine": cosines[nonzero].sum(),
        "ratio": (recons_norm[nonzero] / x_norm[nonzero]).sum(),
        "nonzero": nonzero.sum(),
    }
    return {name: float(value) for name, value in sums.items()}


def _ratio(top: float, bottom: float | int) -> float | None:
    return top / bottom if bottom else None


def _count_quantiles(counts: Int[Tensor, " level"]) -> dict[str, int]:
    below = counts.cumsum(0)
    total = int(below[-1])
    wanted = torch.tensor([max(1, math.ceil(share * total)) for share in L0_QUANTILES])
    levels = torch.searchsorted(below, wanted)
    return {f"{q:g}": int(level) for q, level in zip(L0_QUANTILES, levels, strict=True)}


def _once(x: Tensor, recons: Tensor) -> Reconstruction:
    metrics = ReconstructionMetrics()
    metrics.update(x, recons)
    return metrics.result()


def fvu(x: Float[Tensor, "token d"], recons: Float[Tensor, "token d"]) -> float | None:
    """Share of the activations' variance that the reconstruction misses.

    FVU = sum |x - recons|^2 / sum |x - mean(x)|^2, both sums over every token and dimension, the
    mean over tokens. 0 is perfect; 1 is no better than predicting the mean. None if all tokens
    are alike.

    >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    0.5
    """
    return _once(x, recons).fvu


def explained_variance(
    x: Float[Tensor, "token d"], recons: Float[Tensor, "token d"]
) -> float | None:
    """1 - `fvu`: centered, and over the whole set rather than per token.

    >>> explained_variance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    0.5
    """
    return _once(x, recons).explained_variance


def mse(x: Float[Tensor, "token d"], recons: Float[Tensor, "token d"]) -> float:
    """Mean over tokens of the squared error summed over dimensions.

    >>> mse(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    25.0
    """
    return _once(x, recons).mse


def cosine(x: Float[Tensor, "token d"], recons: Float[Tensor, "token d"]) -> float | None:
    """Mean over tokens of cos(x, recons); tokens at the origin are left out.

    >>> cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]]))
    1.0
    """
    return _once(x, recons).cosine


def l2_ratio(x: Float[Tensor, "token d"], recons: Float[Tensor, "token d"]) -> float | None:
    """Mean over tokens of |recons| / |x|; tokens at the origin are left out.

    >>> l2_ratio(torch.tensor([[4.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
    0.75
    """
    return _once(x, recons).l2_ratio


def relative_bias(x: Float[Tensor, "token d"], recons: Float[Tensor, "token d"]) -> float | None:
    """Relative reconstruction bias: sum |recons|^2 / sum x.recons; c for recons = c x.

    Source: Rajamanoharan et al. 2024 (Gated SAE), as computed by SAELens.

    >>> relative_bias(torch.tensor([[4.0]]), torch.tensor([[2.0]]))
    0.5
    """
    return _once(x, recons).relative_bias


def density(codes: SparseCodes) -> Float[Tensor, " latent"]:
    """Share of tokens on which each latent is not zero, whatever its sign.

    >>> density(SparseCodes.from_dense(torch.tensor([[0.0, 2.0], [0.0, -1.0]]))).tolist()
    [0.0, 1.0]
    """
    return codes.firing_counts().double() / max(1, codes.n_tokens)


def density_histogram(
    density: Float[Tensor, " latent"], n_tokens: int, bins_per_decade: int = 5
) -> tuple[list[float], list[int]]:
    """Histogram of log10 density over the latents that fired.

    Args:
        density: Share of tokens, per latent; zeros (dead latents) are left out.
        n_tokens: The token budget; 1 / n_tokens is the least density it can show.
        bins_per_decade: Resolution.

    Returns:
        Edges in log10(share of tokens), one more than the counts; the last is 0.

    >>> density_histogram(torch.tensor([0.0, 0.05, 1.0]), 100, bins_per_decade=1)
    ([-2.0, -1.0, 0.0], [1, 1])
    """
    decades = max(1, math.ceil(math.log10(max(2, n_tokens))))
    n_bins = decades * bins_per_decade
    logs = density[density > 0].double().log10().cpu()
    places = ((logs + decades) * bins_per_decade).floor().long().clamp(0, n_bins - 1)
    edges = [place / bins_per_decade - decades for place in range(n_bins + 1)]
    return edges, torch.bincount(places, minlength=n_bins).tolist()
