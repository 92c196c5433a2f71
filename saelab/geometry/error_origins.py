"""Do wider dictionaries fail on the same tokens, and do other layers know what one misses?

Per token, |e|^2 under several widths: its slope against width on logarithms, and how much the
tokens that the narrowest misses are those the widest misses. Long activations have long errors, so
the correlation is also given with |x|^2 taken out. Across layers, the error at one hook point is
fitted on the reconstruction at another.

Source: Engels, Riggs and Tegmark 2024, "Decomposing the dark matter of sparse autoencoders".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry.least_squares import Fit, r2
from saelab.geometry.nulls import AgainstNull
from saelab.sae import SAE

__all__ = ["ErrorScaling", "cross_layer_prediction", "error_scaling"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorScaling:
    """Squared errors of the same tokens under dictionaries of several widths."""

    widths: tuple[int, ...]
    """Numbers of latents, ascending."""
    errors: Float[Tensor, "width token"]
    """|e|^2 of each token."""
    exponent: float
    """Slope of log mean |e|^2 against log width; negative where width helps."""
    token_exponents: Float[Tensor, " token"]
    """The same of each token; 0 where it is exact."""
    correlation: AgainstNull
    """Of |e|^2 under the narrowest and the widest, over tokens; null: tokens shuffled."""
    partial: float
    """The same after a line in |x|^2 is taken out of both: tokens are not alike by length alone."""

    def __str__(self) -> str:
        """Two lines."""
        low, middle, high = self.token_exponents.quantile(
            self.token_exponents.new_tensor([0.1, 0.5, 0.9])
        ).tolist()
        return (
            f"widths {', '.join(map(str, self.widths))}: mean |e|^2 goes as "
            f"width^{self.exponent:.3f}; token by token {middle:.3f} (10 to 90 %: {low:.3f} to "
            f"{high:.3f})\n"
            f"  narrowest against widest {self.correlation}; given |x|^2 {self.partial:.3f}"
        )


@torch.no_grad()
def error_scaling(
    saes: Mapping[int, SAE] | list[SAE],
    x: Float[Tensor, "token d_in"],
    *,
    n_null: int = 20,
    seed: int = 0,
) -> ErrorScaling:
    """Do wider dictionaries fail on the same tokens?

    Args:
        saes: Dictionaries of one hook point, in a list or by width; widths must differ.
        x: Activations that none was trained on.
        n_null: Shuffles.
        seed: Of those.

    Raises:
        ConfigError: Fewer than two widths.
    """
    given = list(saes.values()) if isinstance(saes, Mapping) else saes
    given = sorted(given, key=lambda sae: sae.d_sae)
    widths = tuple(sae.d_sae for sae in given)
    if len(set(widths)) != len(widths) or len(widths) < 2:
        raise ConfigError(f"Widths {list(widths)}: at least two different ones are needed.")
    if len(x) < 3:
        raise DataError(f"{len(x)} tokens are too few to correlate.")
    errors = torch.stack(
        [(x.double().cpu() - sae(x).double().cpu()).square().sum(1) for sae in given]
    )
    logs = torch.tensor(widths, dtype=torch.float64).log()
    logs = logs - logs.mean()
    exact = (errors <= 0).any(0)
    slopes = (logs[:, None] * errors.clamp_min(1e-300).log()).sum(0) / logs.square().sum()
    means = errors.mean(1).clamp_min(1e-300).log()
    generator = torch.Generator().manual_seed(seed)
    first, last = errors[0], errors[-1]
    draws = tuple(
        _correlation(first, last[torch.randperm(len(last), generator=generator)])
        for _ in range(n_null)
    )
    size = x.double().cpu().square().sum(1, keepdim=True)
    by_size = Fit(size, constant=True)
    rest = [one[:, None] - by_size.predict(one[:, None], size) for one in (first, last)]
    return ErrorScaling(
        widths=widths,
        errors=errors.float(),
        exponent=float((logs * means).sum() / logs.square().sum()),
        token_exponents=torch.where(exact, 0, slopes).float(),
        correlation=AgainstNull(
            value=_correlation(first, last), draws=draws, null="tokens shuffled"
        ),
        partial=_correlation(rest[0].squeeze(1), rest[1].squeeze(1)),
    )


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    bottom = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / bottom) if bottom > 0 else 0.0


@torch.no_grad()
def cross_layer_prediction(
    saes: Mapping[str, SAE],
    fit: Mapping[str, Float[Tensor, "token _"]],
    test: Mapping[str, Float[Tensor, "held_out _"]],
) -> dict[tuple[str, str], tuple[float, float]]:
    """How much of the error at one hook point do the reconstructions at others give?

    Least squares with a constant, of the error at one place on the reconstruction at another, on
    the same tokens.

    Args:
        saes: A dictionary for each hook point.
        fit: Activations of each hook point, rows aligned; at least twice as many as wide.
        test: The same of other tokens.

    Returns:
        (hook of the error, hook of the reconstruction): pooled R^2 on the other tokens, and the
        same with the errors of the fit shuffled, which is 0 or a little less.

    Raises:
        ShapeError: The activations are not of the same tokens.
        DataError: Too few tokens.

    Source: Engels, Riggs and Tegmark 2024 ask this of earlier layers; the protocol here is ours.
    """
    hooks = list(saes)
    for name, given in (("fit", fit), ("test", test)):
        missing = [hook for hook in hooks if hook not in given]
        if missing:
            raise ConfigError(f"{name} has no activations of {', '.join(missing)}.")
        if len({len(given[hook]) for hook in hooks}) > 1:
            raise ShapeError(f"The activations in {name} are not of the same tokens.")
    widest = max(sae.d_out for sae in saes.values())
    if len(fit[hooks[0]]) < 2 * widest or len(test[hooks[0]]) < 10:
        raise DataError(
            f"{len(fit[hooks[0]])} tokens to fit on and {len(test[hooks[0]])} to measure on: at "
            f"least {2 * widest} and 10 are needed."
        )
    recons = [
        {hook: saes[hook](side[hook]).double().cpu() for hook in hooks} for side in (fit, test)
    ]
    errors = [
        {hook: side[hook].double().cpu() - made[hook] for hook in hooks}
        for side, made in zip((fit, test), recons, strict=True)
    ]
    order = torch.randperm(len(fit[hooks[0]]), generator=torch.Generator().manual_seed(0))
    found = {}
    for by in hooks:
        fitted = Fit(recons[0][by], constant=True)
        for at in hooks:
            e, held = errors[0][at], errors[1][at]
            own, null = (r2(held, fitted.predict(y, recons[1][by])) for y in (e, e[order]))
            found[at, by] = (own, null)
    return found
