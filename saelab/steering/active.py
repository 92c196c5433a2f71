"""Interventions at work: context managers that edit the running model and always restore it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.models import Edit, LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.steering.interventions import Clamp, Intervention, Push, Scale, Splice

__all__ = ["Positions", "ablate", "clamp", "intervene", "scale", "splice", "steer"]

Positions = slice | Bool[Tensor, "*row pos"] | None
"""Which positions are edited: a slice of them, a mask [pos] or [row, pos] (positions beyond it,
as in generation, count as True), or None for all but the model's first token."""


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
    edits: dict[str, list[Edit]] = {}
    for one in interventions:
        if one.sae.hook is None:
            raise ConfigError("The dictionary does not say which hook point it reads.")
        require_same_model(one.sae, model.identity.to_json())
        for hook, edit in _edits(one, positions).items():
            edits.setdefault(hook, []).append(edit)
    with model.editing({hook: _in_turn(some) for hook, some in edits.items()}):
        yield


def _edits(one: Intervention, positions: "slice | Tensor") -> dict[str, Edit]:
    """What is done at each hook point: a transcoder is read at one and written at another."""
    seen: dict[str, Tensor] = {}

    def remember(x: Tensor) -> Tensor:
        seen["read"] = x
        return x

    def change(x: Tensor) -> Tensor:
        chosen = _chosen(positions, x)
        read = seen.get("read", x)[chosen]
        if not len(read):
            return x
        changed = x.clone()
        changed[chosen] = one.change(read, x[chosen])
        return changed

    out = one.sae.hook_out or one.sae.hook or ""
    if one.sae.hook_out is not None and one.needs_input:
        return {one.sae.hook or "": remember, out: change}
    return {out: change}


def _in_turn(edits: Sequence[Edit]) -> Edit:
    def all_of_them(x: Tensor) -> Tensor:
        for edit in edits:
            x = edit(x)
        return x

    return all_of_them


def _chosen(positions: "slice | Tensor", x: Tensor) -> Bool[Tensor, "row pos"]:
    """The positions of an activation [row, pos, d] that are edited."""
    rows, length = x.shape[:2]
    chosen = torch.zeros(rows, length, dtype=torch.bool, device=x.device)
    if isinstance(positions, slice):
        chosen[:, positions] = True
        return chosen
    mask = positions.to(x.device).bool()
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
