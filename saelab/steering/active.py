"""Interventions at work: context managers that edit the running model and always restore it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel, PositionEdit
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.steering.interventions import Clamp, Intervention, Push, Scale, Splice

__all__ = ["Positions", "ablate", "clamp", "intervene", "scale", "splice", "steer"]

Positions = slice | Bool[Tensor, "*row pos"] | None
"""Which positions are edited: a slice of them, a mask [pos] or [row, pos] (positions beyond it,
as in generation, count as True), or None for all but the model's first token. `slice(n, None)`
with n the prompt's length edits what is generated only; `slice(-1, None)` edits the last position
of every pass, so in generation the newest one and no other."""


def steer(
    model: LanguageModel,
    sae: SAE,
    strengths: Mapping[int, float],
    *,
    positions: Positions = None,
) -> AbstractContextManager[None]:
    """Add strength * W_dec[latent] to the activation, in the latent's own units.

    Args:
        model: The running model.
        sae: A dictionary of one of its hook points.
        strengths: By latent; negative pushes the other way. A latent's largest activation on
            ordinary text (`FirstLook`, atlas) is a natural unit.
        positions: Which positions are edited.

    Raises:
        ConfigError: There is no such latent, or the dictionary names no hook point.
        ModelError: The dictionary belongs to another model.
    """
    return intervene(model, [Push(sae, dict(strengths))], positions=positions)


def clamp(
    model: LanguageModel,
    sae: SAE,
    values: Mapping[int, float],
    *,
    at_least: bool = False,
    positions: Positions = None,
) -> AbstractContextManager[None]:
    """Hold latents at given activations; with `at_least`, only raise those below; as `steer`."""
    return intervene(model, [Clamp(sae, dict(values), at_least=at_least)], positions=positions)


def scale(
    model: LanguageModel,
    sae: SAE,
    factors: Mapping[int, float],
    *,
    positions: Positions = None,
) -> AbstractContextManager[None]:
    """Multiply latents' own activations; as `steer`."""
    return intervene(model, [Scale(sae, dict(factors))], positions=positions)


def ablate(
    model: LanguageModel,
    sae: SAE,
    latents: Sequence[int],
    *,
    positions: Positions = None,
) -> AbstractContextManager[None]:
    """Set latents to zero; everything else, the error included, stays; as `steer`."""
    return intervene(model, [Scale(sae, dict.fromkeys(latents, 0.0))], positions=positions)


def splice(
    model: LanguageModel, sae: SAE, *, positions: Positions = None
) -> AbstractContextManager[None]:
    """Put the dictionary's reconstruction in place of the activation: the error is dropped."""
    return intervene(model, [Splice(sae)], positions=positions)


@contextmanager
def intervene(
    model: LanguageModel,
    interventions: Sequence[Intervention],
    *,
    positions: Positions = None,
) -> Iterator[None]:
    """Apply edits of one or several dictionaries, at one or several hook points, in order.

    At one hook point a later edit sees what an earlier one left.

    Raises:
        ConfigError: No edit is given, or a dictionary names no hook point.
        ModelError: A dictionary belongs to another model.
    """
    if not interventions:
        raise ConfigError("intervene() was given no intervention.")
    if positions is None:
        positions = slice(0 if model.bos_token_id is None else 1, None)
    edits: dict[str, list[PositionEdit]] = {}
    for one in interventions:
        if one.dictionary is not None:
            require_same_model(one.dictionary, model.identity.to_json())
        for hook, edit in _edits(one, positions).items():
            edits.setdefault(hook, []).append(edit)
    with model.editing({hook: _InTurn(some) for hook, some in edits.items()}):
        yield


def _edits(one: Intervention, positions: "slice | Tensor") -> dict[str, PositionEdit]:
    """What is done at each hook point: a transcoder is read at one and written at another."""
    if one.hook_out == one.hook or not one.needs_input:
        return {one.hook_out: _Change(one, positions)}
    look = _Look()
    return {one.hook: look, one.hook_out: _Change(one, positions, look)}


@final
class _Look(PositionEdit):
    """Changes nothing, and remembers what it saw until the same pass writes."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def from_position(self, x: Tensor, start: int) -> Tensor:  # noqa: ARG002
        self.seen = x
        return x

    def alike(self, before: int, after: int) -> int:
        return min(before, after)


@final
class _Change(PositionEdit):
    """One intervention at the chosen positions."""

    def __init__(
        self, one: Intervention, positions: "slice | Tensor", look: _Look | None = None
    ) -> None:
        self.one, self.positions, self.look = one, positions, look

    def from_position(self, x: Tensor, start: int) -> Tensor:
        chosen = _chosen(self.positions, len(x), start + x.shape[1], x.device)[:, start:]
        read = x if self.look is None or self.look.seen is None else self.look.seen
        if not bool(chosen.any()):
            return x
        place = torch.arange(start, start + x.shape[1], device=x.device).expand(len(x), -1)
        changed = x.clone()
        changed[chosen] = self.one.change(read[chosen], x[chosen], place[chosen])
        return changed

    def alike(self, before: int, after: int) -> int:
        # Only what a slice counts from the end moves as rows grow; a mask never does.
        if not isinstance(self.positions, slice):
            return min(before, after)
        shorter, longer = (_chosen(self.positions, 1, n)[0] for n in (before, after))
        shared = min(before, after)
        return int((shorter[:shared] == longer[:shared]).long().cumprod(0).sum())


@final
class _InTurn(PositionEdit):
    """Several edits of one place, one after the other."""

    def __init__(self, edits: Sequence[PositionEdit]) -> None:
        self.edits = edits

    def from_position(self, x: Tensor, start: int) -> Tensor:
        for edit in self.edits:
            x = edit.from_position(x, start)
        return x

    def alike(self, before: int, after: int) -> int:
        return min(edit.alike(before, after) for edit in self.edits)


def _chosen(
    positions: "slice | Tensor", rows: int, length: int, device: torch.device | None = None
) -> Bool[Tensor, "row pos"]:
    """The positions of rows of some length that are edited."""
    chosen = torch.zeros(rows, length, dtype=torch.bool, device=device)
    if isinstance(positions, slice):
        chosen[:, positions] = True
        return chosen
    mask = positions.to(chosen.device).bool()
    if mask.ndim not in (1, 2) or (mask.ndim == 2 and len(mask) not in (1, rows)):
        raise ShapeError(
            f"positions has shape {tuple(mask.shape)}; it must be [pos] or [row, pos] with "
            f"{rows} rows."
        )
    mask = mask.expand(rows, -1)
    shared = min(length, mask.shape[1])
    chosen[:, :shared] = mask[:, :shared]
    chosen[:, shared:] = True
    return chosen
