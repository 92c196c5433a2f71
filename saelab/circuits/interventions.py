"""Does the model do what the graph says when a latent is changed?

Three effects of the same change of latents' values on the same read-outs:

    direct     everything held constant but what is written: exactly what the edges say
    paths      direct, and through other traced latents, each moving with its pre-activation
    measured   the model itself, run with the change; attention patterns held or not

A change adds (new value - value) W_dec[latent] to what the MLP writes. Direct effects are an
identity, so they test the code; the measured ones test the graph.

Source: Ameisen et al. 2025, "Circuit tracing", on validating graphs by perturbation.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits.freezing import Held, freezing
from saelab.circuits.frozen import ReadOuts
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.targets import read_out
from saelab.circuits.tracing import Traced
from saelab.errors import ConfigError, ShapeError
from saelab.models import Edit

__all__ = [
    "AblationCheck",
    "Agreement",
    "agreement",
    "check_ablations",
    "direct_effects",
    "measured_effects",
    "path_effects",
]


@final
@dataclass(frozen=True, slots=True)
class Agreement:
    """How well effects that were predicted fit those that were measured."""

    cosine: float
    """Of the two lists of effects, -1 to 1; 1 if they are proportional."""
    slope: float
    """Least squares through the origin: measured = slope x predicted; 1 if nothing is missing."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class AblationCheck:
    """Latents set to zero one by one, and what became of the targets."""

    latents: Int[Tensor, " latent"]
    """Places among the active latents, most influential first."""
    direct: Float[Tensor, "latent target"]
    """Predicted by the edges into the targets."""
    paths: Float[Tensor, "latent target"]
    """Predicted by all paths through traced latents."""
    held: Float[Tensor, "latent target"]
    """Measured with attention patterns held."""
    free: Float[Tensor, "latent target"]
    """Measured with nothing held."""

    def summary(self) -> dict[str, Agreement]:
        """How well both predictions fit both measurements."""
        return {
            f"{name} against {measured}": agreement(getattr(self, name), getattr(self, measured))
            for name in ("direct", "paths")
            for measured in ("held", "free")
        }


def direct_effects(
    replacement: LocalReplacement, changes: Mapping[int, float], readouts: Sequence[ReadOuts]
) -> Float[Tensor, " readout"]:
    """Change of read-outs when latents get other values and all that is not linear is held.

    Args:
        replacement: The prompt.
        changes: New value by place among `replacement.latents`.
        readouts: What is read.
    """
    values = replacement.map.values
    changed = {cut: values[cut] + delta for cut, delta in _deltas(replacement, changes).items()}
    after = replacement.map.at(changed)
    before = replacement.map.reads
    return torch.cat([some.values(after) - some.values(before) for some in readouts])


def measured_effects(
    replacement: LocalReplacement,
    changes: Mapping[int, float],
    readouts: Sequence[ReadOuts],
    *,
    hold_patterns: bool = False,
) -> Float[Tensor, " readout"]:
    """Change of read-outs when the model itself is run with latents at other values.

    Both runs, with the change and without, are the model's own: rounding is the same in both.

    Args:
        replacement: The prompt.
        changes: New value by place among `replacement.latents`; at least one.
        readouts: What is read; queries and keys cannot be.
        hold_patterns: Whether attention patterns stay those of the prompt.
    """
    _check_changes(replacement, changes)
    before = _run(replacement, {}, readouts, hold_patterns)
    return _run(replacement, changes, readouts, hold_patterns) - before


def path_effects(traced: Traced) -> Float[Tensor, "latent target"]:
    """What one unit of each traced latent adds to every target, along all paths between latents.

    With B[t, s] the slope of latent t's pre-activation by latent s's value, effects are the sum of
    products of slopes over all paths: U (I + B + B^2 + ...). A latent moves with its
    pre-activation, as it does while the activation function keeps it.

    Norm scales are held, which the running model does not do: where a latent is a large part of the
    stream, pushing it rescales everything after it, and the sum over paths can then predict worse
    than the direct edges alone. `check_ablations` says how it is on a prompt.
    """
    found = traced.attribution
    value = traced.replacement.latents.value[found.traced]
    slopes = found.contributions.latents[:, found.traced].double() / value.double()
    n = len(traced.targets)
    onto_targets, between = slopes[:n], slopes[n:]
    total, step = onto_targets.clone(), onto_targets
    for _ in range(len(value)):
        step = step @ between
        if not bool(step.any()):
            break
        total += step
    return total.T


def check_ablations(traced: Traced, n_latents: int = 20) -> AblationCheck:
    """Set the latents that add most to the targets, along all paths, to zero one by one.

    Two passes of the model a latent.

    Raises:
        ConfigError: Nothing was traced.
    """
    replacement, found = traced.replacement, traced.attribution
    if not len(found.traced):
        raise ConfigError("No latent was traced, so none can be ablated. Raise max_latents.")
    last = len(replacement.tokens) - 1
    readouts = [read_out(replacement.map.head, traced.targets, last)]
    value = replacement.latents.value[found.traced].double()
    paths = -path_effects(traced) * value[:, None]
    weights = torch.tensor([target.weight for target in traced.targets]).to(paths)
    order = (paths.abs() @ weights).argsort(descending=True)[:n_latents]
    places = found.traced[order]
    direct = -found.contributions.latents[: len(traced.targets), places].T
    changes = [{int(place): 0.0} for place in places]
    measured = []
    for hold_patterns in (True, False):
        before = _run(replacement, {}, readouts, hold_patterns)
        after = [_run(replacement, change, readouts, hold_patterns) for change in changes]
        measured.append(torch.stack(after) - before)
    return AblationCheck(places, direct, paths[order], *measured)


def agreement(
    predicted: Float[Tensor, "*predicted"], measured: Float[Tensor, "*measured"]
) -> Agreement:
    """Cosine of two lists of effects, and the slope of the second on the first.

    >>> agreement(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]))
    Agreement(cosine=1.0, slope=0.5)
    """
    if predicted.shape != measured.shape:
        raise ShapeError(
            f"Effects of shape {list(predicted.shape)} cannot be compared with "
            f"{list(measured.shape)}."
        )
    x, y = predicted.double().flatten(), measured.double().flatten()
    product, tiny = float(x @ y), torch.finfo(torch.float64).tiny
    cosine = product / max(float(x.norm() * y.norm()), tiny)
    return Agreement(round(cosine, 12), product / max(float(x @ x), tiny))


def _run(
    replacement: LocalReplacement,
    changes: Mapping[int, float],
    readouts: Sequence[ReadOuts],
    hold_patterns: bool,
) -> Float[Tensor, " readout"]:
    """Read-outs of the model itself, run with latents at other values."""

    def add(delta: Tensor) -> Edit:
        return lambda activation: activation + delta.to(activation)

    deltas = _deltas(replacement, changes) if changes else {}
    edits = {cut: add(delta) for cut, delta in deltas.items()}
    model, map_ = replacement.map.model, replacement.map
    held = Held(patterns=dict(map_.held.patterns))
    patterns = freezing(model.module, held, norms=False) if hold_patterns else nullcontext()
    with torch.no_grad(), patterns, model.editing(edits):
        _, found = model.whole_pass(map_.tokens[None], sorted({some.hook for some in readouts}))
    return torch.cat([some.values({h: x[0] for h, x in found.items()}) for some in readouts])


def _deltas(
    replacement: LocalReplacement, changes: Mapping[int, float]
) -> dict[str, Float[Tensor, "pos d_out"]]:
    """What the changes add at every place written."""
    _check_changes(replacement, changes)
    places = torch.tensor(sorted(changes), device=replacement.tokens.device)
    new = torch.tensor([float(changes[int(place)]) for place in places])
    value, position = replacement.latents.value[places], replacement.latents.position[places]
    difference = new.to(value) - value
    found = {}
    for cut, rows in replacement.vectors(places).items():
        base = torch.zeros_like(replacement.map.values[cut])
        found[cut] = base.index_add(0, position, (rows * difference[:, None]).to(base))
    return found


def _check_changes(replacement: LocalReplacement, changes: Mapping[int, float]) -> None:
    n = len(replacement.latents)
    if not changes or not all(0 <= place < n for place in changes):
        raise ConfigError(
            f"Changes at {sorted(changes)[:5]}: name at least one of the {n} active latents, by "
            "its place among `replacement.latents`."
        )
