"""What does the model say to a prompt whose activation at one place is exchanged?"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel
from saelab.yardstick.ioi import IoiPrompts

__all__ = ["Outcome", "outcome", "read_at"]

ROWS = 16
"""Prompts in one pass."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The model's answers."""

    logits: Float[Tensor, "prompt name"]
    """Of the names, after the prompt."""
    difference: Float[Tensor, " prompt"]
    """logit(IO) - logit(S)."""

    @property
    def choice(self) -> Int[Tensor, " prompt"]:
        """The likeliest name: words that are no name count nowhere."""
        return self.logits.argmax(1)

    @property
    def mean_difference(self) -> float:
        """Mean of `difference`."""
        return float(self.difference.double().mean())


@torch.no_grad()
def read_at(
    model: LanguageModel, prompts: IoiPrompts, hook: str, position: str
) -> Float[Tensor, "prompt d"]:
    """Activations at a named position of every prompt, float32 on the CPU.

    Raises:
        ConfigError: There is no such position.
        HookPointError: There is no such hook point.
    """
    at = _at(prompts, position)
    found = []
    for start in range(0, len(prompts), ROWS):
        rows = slice(start, start + ROWS)
        x = model.activations(prompts.ids[rows], [hook], prompts.mask[rows])[hook].float().cpu()
        found.append(x[torch.arange(len(x)), at[rows]])
    return torch.cat(found)


@torch.no_grad()
def outcome(
    model: LanguageModel,
    prompts: IoiPrompts,
    hook: str | None = None,
    position: str = "END",
    values: Float[Tensor, "prompt d"] | None = None,
) -> Outcome:
    """Run the prompts, with other activations at one place if `values` are given.

    Args:
        model: The model.
        prompts: The prompts.
        hook: Where activations are exchanged.
        position: At which named position of each prompt.
        values: What is put there; None runs the model as it is.

    Raises:
        ConfigError: There is no such position, or values are given without a hook point.
        ShapeError: There is not one row of values per prompt.
    """
    at, end = _at(prompts, position), prompts.positions["END"]
    if values is not None and hook is None:
        raise ConfigError("outcome() was given values and no hook point to put them at.")
    if values is not None and len(values) != len(prompts):
        raise ShapeError(f"{len(prompts)} prompts need as many rows; found {len(values)}.")
    found = []
    for start in range(0, len(prompts), ROWS):
        rows = slice(start, start + ROWS)
        ids, mask = prompts.ids[rows], prompts.mask[rows]
        each = torch.arange(len(ids))
        if values is None or hook is None:
            logits = model.logits(ids, mask)
        else:
            with model.editing({hook: _Put(at[rows], values[rows])}):
                logits = model.logits(ids, mask)
        found.append(logits[each, end[rows]][:, prompts.name_ids].float().cpu())
    logits, known = torch.cat(found), prompts.attributes()
    each = torch.arange(len(logits))
    return Outcome(logits=logits, difference=logits[each, known["IO"]] - logits[each, known["S"]])


@final
class _Put:
    """Put given activations at one position of every row."""

    def __init__(self, at: Tensor, values: Tensor) -> None:
        self.at, self.values = at, values

    def __call__(self, x: Tensor) -> Tensor:
        changed = x.clone()
        changed[torch.arange(len(x)), self.at.to(x.device)] = self.values.to(x)
        return changed


def _at(prompts: IoiPrompts, position: str) -> Tensor:
    if position not in prompts.positions:
        raise ConfigError(
            f"position={position!r} is none of {', '.join(prompts.positions)}, which a prompt has."
        )
    return prompts.positions[position]
