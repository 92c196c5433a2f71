"""Sparse coding: which few latents of a fixed dictionary explain an activation, at what price each?

    objective of a token = 1/2 |x - f D|^2 + sum_i penalty_lam(f_i)

is lowered by proximal gradient steps

    f <- prox_{step * lam}(f + step * (x - f D) D^T),    step = 1 / |D|^2 (spectral norm squared)

where prox(u) = argmin_z 1/2 (z - u)^2 + step * penalty_lam(z) is known for each penalty:

    soft    |z|                     shrinks every latent: the l1 norm
    half    |z|^(1/2)               shrinks large latents less
    log     log(1 + |z| / epsilon)  the same
    hard    [z != 0]                shrinks nothing: the number of active latents
    cel0    a continuous stand-in for `hard` with the same global minima

At the same number of active latents the penalties that shrink less reconstruct better.

Sources: Rentzeperis, Calatroni, Perrinet and Prandi 2023, "Beyond l1 sparse coding in V1", for the
comparison; Xu, Chang, Xu and Zhang 2012 for `half`; Soubies, Blanc-Feraud and Aubert 2015 for
`cel0`; Beck and Teboulle 2009 for acceleration with a step back when the objective would rise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = [
    "PENALTIES",
    "Penalty",
    "code_from_correlations",
    "objective",
    "prox",
    "sparse_code",
    "step_size",
]

LOG_EPSILON = 0.1
"""Where the log penalty bends, in units of a latent."""
CHUNK_BYTES = 16 << 20
"""Size aimed at for one [row, latent] matrix; about six are held at once."""

Prox = Callable[..., Tensor]


@final
@dataclass(frozen=True, slots=True)
class Penalty:
    """One price of a latent, and the step that pays it best."""

    name: str
    value: Callable[[Tensor, float, Tensor | float], Tensor]
    """(latents, lam, atom norms) -> the penalty of each, lam included."""
    prox: Callable[[Tensor, float, float, Tensor | float], Tensor]
    """(u, lam, step, atom norms) -> argmin_z 1/2 (z - u)^2 + step * penalty(z), for u >= 0."""
    lam_at: Callable[[float], float]
    """The lam whose prox with step 1 zeroes exactly what is below a given size."""
    power: float
    """How lam grows with that size: lam_at(s) ~ s ** power."""


def prox(name: str) -> Prox:
    """The proximal operator of a penalty.

    Returns:
        A function `(u, lam, step=1.0, norms=1.0)`, elementwise and odd in u, with

            argmin_z 1/2 (z - u)^2 + step * penalty_lam(z)

        `norms` are the lengths of the atoms, which only `cel0` reads.

    Raises:
        ConfigError: There is no such penalty.

    >>> prox("soft")(torch.tensor([3.0, -0.5]), 1.0).tolist()
    [2.0, -0.0]
    >>> prox("hard")(torch.tensor([3.0, -0.5]), 1.0).tolist()
    [3.0, -0.0]
    """
    penalty = _penalty(name)

    def apply(
        u: Tensor, lam: float, step: float = 1.0, norms: Tensor | float = 1.0
    ) -> Float[Tensor, "..."]:
        return u.sign() * penalty.prox(u.abs(), lam, step, norms)

    return apply


def objective(
    dictionary: Float[Tensor, "latent d"],
    x: Float[Tensor, "token d"],
    latents: Float[Tensor, "token latent"],
    penalty: str,
    lam: float,
) -> Float[Tensor, " token"]:
    """1/2 |x - f D|^2 + the penalties of f, of each token."""
    error = (x - latents @ dictionary).square().sum(1)
    return error / 2 + _penalty(penalty).value(latents, lam, dictionary.norm(dim=1)).sum(1)


@torch.no_grad()
def sparse_code(
    dictionary: Float[Tensor, "latent d"],
    x: Float[Tensor, "token _"],
    penalty: str,
    lam: float,
    steps: int = 100,
    *,
    signed: bool = False,
    accelerate: bool = True,
) -> SparseCodes:
    """Codes of activations under a penalty, by proximal gradient steps from zero.

    The objective of no token rises in any step; see the module for what is minimized. `hard`,
    `half`, `log` and `cel0` are not convex: what is found is a local minimum. `hard` spends the
    first half of its steps on `cel0`, whose local minima are fewer.

    Args:
        dictionary: One atom a row, of any length.
        x: Activations, already centered.
        penalty: A name from `PENALTIES`.
        lam: Weight of the penalty; 0 gives least squares.
        steps: Proximal gradient steps, each about the cost of encoding and decoding.
        signed: Allow negative latents.
        accelerate: Extrapolate from the last two steps, token by token where that helps.

    Returns:
        Sparse codes; unsigned ones are positive.

    Raises:
        ConfigError: There is no such penalty, or lam or steps is out of range.
        ShapeError: The widths of dictionary and activations differ.
    """
    _penalty(penalty)
    if lam < 0 or steps < 1:
        raise ConfigError(f"sparse_code(lam={lam}, steps={steps}): lam >= 0 and steps >= 1.")
    if x.shape[1] != dictionary.shape[1]:
        raise ShapeError(
            f"sparse_code got atoms of width {dictionary.shape[1]} and activations of width "
            f"{x.shape[1]}. They must be the same."
        )
    rows = max(16, CHUNK_BYTES // (dictionary.element_size() * len(dictionary)))
    settings = {"signed": signed, "accelerate": accelerate, "step": step_size(dictionary)}
    parts = [
        code_from_correlations(chunk @ dictionary.T, dictionary, penalty, lam, steps, **settings)
        for chunk in (x[s : s + rows] for s in range(0, max(len(x), 1), rows))
    ]
    return SparseCodes.cat([SparseCodes.from_dense(part) for part in parts])


def step_size(dictionary: Float[Tensor, "latent d"]) -> float:
    """1 / |D|^2, the longest step after which no penalty's objective can rise.

    A hundred-thousandth is taken off for rounding.

    >>> round(step_size(torch.diag(torch.tensor([2.0, 1.0]))), 4)
    0.25
    """
    small = dictionary if dictionary.shape[0] < dictionary.shape[1] else dictionary.T
    largest = torch.linalg.eigvalsh((small @ small.T).double())[-1].item()
    return (1 - 1e-5) / largest if largest > 0 else 1.0


@torch.no_grad()
def code_from_correlations(
    correlations: Float[Tensor, "token latent"],
    dictionary: Float[Tensor, "latent d"],
    penalty: str,
    lam: float,
    steps: int,
    *,
    step: float,
    signed: bool = False,
    accelerate: bool = True,
    start: Float[Tensor, "token latent"] | None = None,
) -> Float[Tensor, "token latent"]:
    """What `sparse_code` does, densely, given x D^T instead of x.

    The objective then misses the constant 1/2 |x|^2, which changes no comparison. `start` is
    where the steps begin; None for zero, and for `hard` for what half as many steps of `cel0`
    reach: a single atom enters from zero only if it is worth |D|^2 times its price.
    """
    settings = {"step": step, "signed": signed, "accelerate": accelerate}
    if start is None and penalty == "hard" and steps > 1:
        half = steps // 2
        start = code_from_correlations(correlations, dictionary, "cel0", lam, half, **settings)
        steps -= half
    rule, norms = _penalty(penalty), dictionary.norm(dim=1)
    latents = torch.zeros_like(correlations) if start is None else start
    recons = latents @ dictionary
    behind, recons_behind = latents, recons  # what is extrapolated from
    value = _value(rule, correlations, latents, recons, lam, norms)
    momentum = correlations.new_ones(len(correlations), 1)
    for _ in range(steps):
        longer = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = (momentum - 1) / longer if accelerate else torch.zeros_like(momentum)
        moved = latents + ahead * (latents - behind)
        moved_recons = recons + ahead * (recons - recons_behind)
        moved.add_(correlations - moved_recons @ dictionary.T, alpha=step)
        size = moved.abs() if signed else moved.clamp_min(0)
        size = rule.prox(size, lam, step, norms)
        moved = size.copysign(moved) if signed else size
        moved_recons = moved @ dictionary
        moved_value = _value(rule, correlations, moved, moved_recons, lam, norms)
        # From where it stands a plain step cannot raise the objective, an extrapolated one can:
        # then the token stays, and takes a plain step next.
        better = (moved_value <= value).unsqueeze(1)
        behind, recons_behind = latents, recons
        latents = torch.where(better, moved, latents)
        recons = torch.where(better, moved_recons, recons)
        value = torch.minimum(value, moved_value)
        momentum = torch.where(better, longer, torch.ones_like(longer))
    return latents


def _value(
    rule: Penalty, correlations: Tensor, latents: Tensor, recons: Tensor, lam: float, norms: Tensor
) -> Float[Tensor, " token"]:
    fit = recons.square().sum(1) / 2 - (correlations * latents).sum(1)
    return fit + rule.value(latents, lam, norms).sum(1)


def _penalty(name: str) -> Penalty:
    if name not in PENALTIES:
        raise ConfigError(f"There is no penalty {name!r}; known are {', '.join(PENALTIES)}.")
    return PENALTIES[name]


def _half(u: Tensor, lam: float, step: float, norms: Tensor | float) -> Tensor:  # noqa: ARG001
    weight = lam * step
    threshold = 1.5 * weight ** (2 / 3)
    above = u > threshold
    inside = weight / 4 * (u.clamp_min(max(threshold, 1e-30)) / 3).pow(-1.5)
    angle = torch.arccos(inside.clamp(max=1.0))
    kept = 2 / 3 * u * (1 + torch.cos(2 * math.pi / 3 - 2 / 3 * angle))
    return torch.where(above, kept, torch.zeros_like(u))


def _log(u: Tensor, lam: float, step: float, norms: Tensor | float) -> Tensor:  # noqa: ARG001
    weight = lam * step
    # Stationary points solve (z - u)(z + epsilon) + weight = 0; the larger one is the minimum.
    root = ((u + LOG_EPSILON).square() - 4 * weight).clamp_min(0).sqrt()
    z = ((u - LOG_EPSILON + root) / 2).clamp_min(0)
    gain = u.square() / 2 - (z - u).square() / 2 - weight * torch.log1p(z / LOG_EPSILON)
    return torch.where(gain > 0, z, torch.zeros_like(u))


def _cel0(u: Tensor, lam: float, step: float, norms: Tensor | float) -> Tensor:
    border = math.sqrt(2 * lam)
    curve = torch.as_tensor(norms, dtype=u.dtype, device=u.device)
    rest = 1 - curve.square() * step
    shrunk = (u - border * curve * step).clamp_min(0) / rest.clamp_min(1e-12)
    hard = torch.where(u > border * math.sqrt(step), u, torch.zeros_like(u))
    return torch.where(rest > 1e-6, torch.minimum(u, shrunk), hard)


def _cel0_value(z: Tensor, lam: float, norms: Tensor | float) -> Tensor:
    curve = torch.as_tensor(norms, dtype=z.dtype, device=z.device)
    short = (math.sqrt(2 * lam) - curve * z.abs()).clamp_min(0)
    return lam - short.square() / 2


PENALTIES: dict[str, Penalty] = {
    "soft": Penalty(
        "soft",
        lambda z, lam, _norms: lam * z.abs(),
        lambda u, lam, step, _norms: (u - lam * step).clamp_min(0),
        lambda size: size,
        1.0,
    ),
    "half": Penalty(
        "half",
        lambda z, lam, _norms: lam * z.abs().sqrt(),
        _half,
        lambda size: (size / 1.5) ** 1.5,
        1.5,
    ),
    "log": Penalty(
        "log",
        lambda z, lam, _norms: lam * torch.log1p(z.abs() / LOG_EPSILON),
        _log,
        lambda size: size * LOG_EPSILON,
        1.0,
    ),
    "hard": Penalty(
        "hard",
        lambda z, lam, _norms: lam * (z != 0).to(z.dtype),
        lambda u, lam, step, _norms: torch.where(
            u > math.sqrt(2 * lam * step), u, torch.zeros_like(u)
        ),
        lambda size: size**2 / 2,
        2.0,
    ),
    "cel0": Penalty("cel0", _cel0_value, _cel0, lambda size: size**2 / 2, 2.0),
}
"""Every penalty by name."""
