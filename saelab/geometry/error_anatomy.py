"""What is in the error of a dictionary? Its linear and its nonlinear part.

    e = x - recons                         the error, dark matter
    xA, A = argmin sum |e - x A|^2         linear: what is missing as a fixed map of x (no constant)
    e - xA                                 nonlinear: what the encoder adds, or what is not linear

A is fitted on some tokens and everything is measured on others: on the tokens of the fit, R^2 grows
to 1 as they become fewer than the width. The published R^2 is the mean over output dimensions of
the R^2 of each; pooled is 1 - sum of squares left / sum of squares about the mean.

Sources: Engels, Riggs and Tegmark 2024, "Decomposing the dark matter of sparse autoencoders", which
leaves out the first 200 positions of each context and measures some numbers on the tokens of the
fit.
"""

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.geometry.least_squares import Fit, r2
from saelab.geometry.nulls import AgainstNull
from saelab.pursuit import gradient_pursuit
from saelab.sae import SAE

__all__ = ["DarkMatter", "dark_matter"]


@final
@dataclass(frozen=True, kw_only=True)
class DarkMatter:
    """The error on tokens that were not fitted to, in parts."""

    n_fit: int
    """Tokens A was fitted on."""
    n_test: int
    """Tokens everything was measured on."""
    fvu: float
    """Squared error as a share of the variance of x."""
    linear: float
    """1 - |e - xA|^2 / |e|^2, summed over tokens: share of the error that a linear map gives."""
    fvu_nonlinear: float
    """|e - xA|^2 as a share of the variance of x."""
    r2_error: AgainstNull
    """Mean over output dimensions of R^2 of e by xA; null: the errors of other tokens fitted."""
    r2_pooled: float
    """The same over all dimensions at once."""
    r2_norm: AgainstNull
    """R^2 of |e|^2 by a linear map of x and a constant; null: the norms of other tokens."""
    r2_norm_length: float
    """R^2 of |e|^2 by |x|^2 and a constant alone, which anything proportional to x would have."""
    pursuit: dict[str, float] | None
    """fvu, linear and fvu_nonlinear with codes by gradient pursuit, the same decoder; or None."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        nulls = {"r2_error": self.r2_error.to_json(), "r2_norm": self.r2_norm.to_json()}
        return {**asdict(self), **nulls}

    def __str__(self) -> str:
        """Some lines."""
        lines = [
            f"{self.n_test:,} tokens, fitted on {self.n_fit:,} others: FVU {self.fvu:.4f}, "
            f"{self.linear:.1%} of it linear, nonlinear FVU {self.fvu_nonlinear:.4f}",
            f"  R2 of the error by dimension {self.r2_error}; pooled {self.r2_pooled:.3f}",
            f"  R2 of its squared norm {self.r2_norm}; by |x|^2 alone {self.r2_norm_length:.3f}",
        ]
        if self.pursuit is not None:
            lines.append(
                "  by gradient pursuit: FVU {fvu:.4f}, {linear:.1%} of it linear, nonlinear FVU "
                "{fvu_nonlinear:.4f}".format(**self.pursuit)
            )
        return "\n".join(lines)


@torch.no_grad()
def dark_matter(
    sae: SAE,
    fit: Float[Tensor, "token d_in"],
    test: Float[Tensor, "held_out d_in"],
    *,
    pursuit: bool = False,
    n_null: int = 3,
    seed: int = 0,
) -> DarkMatter:
    """Split a dictionary's error into a linear and a nonlinear part.

    Drop beginning-of-sequence and other tokens of extreme norm first: they would decide
    everything. Neighboring tokens are alike, so fit and test should be of different contexts.

    Args:
        sae: An autoencoder.
        fit: Activations to fit on; at least twice as many as the width.
        test: Others to measure on.
        pursuit: Also split the error of codes by gradient pursuit, as many latents a token as the
            encoder's mean: what is left of the nonlinear part is not the encoder's fault.
        n_null: Fits to errors of other tokens.
        seed: Of those.

    Raises:
        DataError: Too few tokens, where a fit would be perfect without meaning.
    """
    _refuse(sae, len(fit), len(test))
    codes = sae.encode(fit)
    x, y = fit.double().cpu(), test.double().cpu()
    e_fit, e = x - sae.decode(codes).double().cpu(), y - sae(test).double().cpu()
    spread = float((y - y.mean(0)).square().sum())
    generator = torch.Generator().manual_seed(seed)
    plain, affine = Fit(x, constant=False), Fit(x, constant=True)
    left = e - plain.predict(e_fit, y)
    norm_fit, norm = e_fit.square().sum(1, keepdim=True), e.square().sum(1, keepdim=True)
    null_error, null_norm = [], []
    for _ in range(n_null):
        order = torch.randperm(len(x), generator=generator)
        null_error.append(_r2_mean(e, plain.predict(e_fit[order], y)))
        null_norm.append(r2(norm, affine.predict(norm_fit[order], y)))
    lengths = Fit(x.square().sum(1, keepdim=True), constant=True)
    by_length = lengths.predict(norm_fit, y.square().sum(1, keepdim=True))
    other = None
    if pursuit:
        l0 = max(1, round(codes.n_pairs / len(codes)))
        errors = [
            z.double().cpu() - sae.decode(gradient_pursuit(sae, z, l0)).double().cpu()
            for z in (fit, test)
        ]
        other = _shares(errors[1], errors[1] - plain.predict(errors[0], y), spread)
    return DarkMatter(
        n_fit=len(x),
        n_test=len(y),
        **_shares(e, left, spread),
        r2_error=AgainstNull(
            value=_r2_mean(e, e - left), draws=tuple(null_error), null="errors of other tokens"
        ),
        r2_pooled=r2(e, e - left),
        r2_norm=AgainstNull(
            value=r2(norm, affine.predict(norm_fit, y)),
            draws=tuple(null_norm),
            null="norms of other tokens",
        ),
        r2_norm_length=r2(norm, by_length),
        pursuit=other,
    )


def _refuse(sae: SAE, n_fit: int, n_test: int) -> None:
    if sae.is_transcoder:
        raise ConfigError("dark_matter explains an error by what was read; use an autoencoder.")
    if n_fit < 2 * sae.d_in or n_test < 10:
        raise DataError(
            f"{n_fit} tokens to fit a map of width {sae.d_in} on and {n_test} to measure on: "
            f"at least {2 * sae.d_in} and 10 are needed."
        )


def _shares(error: Tensor, left: Tensor, spread: float) -> dict[str, float]:
    total, nonlinear = float(error.square().sum()), float(left.square().sum())
    if total == 0 or spread == 0:
        raise DataError("There is no error to split: the reconstruction is exact.")
    return {
        "fvu": total / spread,
        "linear": 1 - nonlinear / total,
        "fvu_nonlinear": nonlinear / spread,
    }


def _r2_mean(y: Tensor, predicted: Tensor) -> float:
    spread = (y - y.mean(0)).square().sum(0)
    kept = spread > 0
    left = (y - predicted).square().sum(0)
    return float((1 - left[kept] / spread[kept]).mean())
