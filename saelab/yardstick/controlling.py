"""Test 2: can few latents change one attribute and nothing else?

Two prompts differ in one attribute; a_s and a_t are their activations at a place, f_s and f_t their
codes. Of the latents in which the codes differ, k are given the values they have on the other side,

    a_s + sum over the k of (f_t - f_s)_i d_i        chosen one by one, each the nearest to a_t

and the actual activation is edited, so what the dictionary misses of it stays. The edit counts as
right where the model's answer is that of the run with a_t itself put there. Nothing but the codes
is looked at: which latents "mean" the attribute does not matter.

Two differences from the source: a latent that is on in both is always set to its other value (there
its removal and its addition can be chosen apart), and all k are taken even where another edit would
be nearer, so that all latents together give exactly the difference of the two reconstructions.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError

__all__ = ["Control", "agreement", "greedy_edit", "weights_of"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """Edits of some activations."""

    edited: Float[Tensor, "example d"]
    """The activations after the edit."""
    changed: Bool[Tensor, "example d_sae"]
    """Which latents were changed."""
    removed: Float[Tensor, " example"]
    """Share of the reconstruction that the changed latents had carried; see `weights_of`."""


def greedy_edit(
    x: Float[Tensor, "example d"],
    source: Float[Tensor, "example d_sae"],
    target: Float[Tensor, "example d_sae"],
    wanted: Float[Tensor, "example d"],
    directions: Float[Tensor, "d_sae d"],
    k: int,
) -> Control:
    """Give k latents of each example the values of another, each the best one next.

    Args:
        x: a_s.
        source: Codes of a_s, dense.
        target: Codes of a_t.
        wanted: a_t.
        directions: What one unit of each latent writes, in the units of x.
        k: Latents changed; all that differ where those are fewer.

    Raises:
        ConfigError: k is not positive.
        ShapeError: The codes are not of the same dictionary.
    """
    if k < 1:
        raise ConfigError(f"k={k} latents cannot be changed; at least one.")
    if source.shape != target.shape or source.shape[1] != len(directions):
        raise ShapeError(
            f"Codes of {list(source.shape)} and {list(target.shape)} do not fit {len(directions)} "
            "directions."
        )
    edited = x.clone()
    changed = torch.zeros_like(source, dtype=torch.bool)
    for row in range(len(x)):
        differ = (source[row] != target[row]).nonzero().flatten()
        parts = (target[row] - source[row])[differ, None] * directions[differ]
        left, free = wanted[row] - x[row], torch.ones(len(differ), dtype=torch.bool)
        for _ in range(min(k, len(differ))):
            # |left - part|^2 is smallest where 2 left . part - |part|^2 is largest
            gain = 2 * parts @ left - parts.square().sum(1)
            best = int(gain.masked_fill(~free, -torch.inf).argmax())
            free[best] = False
            left = left - parts[best]
            edited[row] += parts[best]
        changed[row, differ[~free]] = True
    weights = weights_of(source, directions)
    return Control(edited=edited, changed=changed, removed=(weights * changed).sum(1))


def weights_of(
    codes: Float[Tensor, "example d_sae"], directions: Float[Tensor, "d_sae d"]
) -> Float[Tensor, "example d_sae"]:
    """What part of its reconstruction each latent carries; the parts of an example sum to 1.

    weight(i) = (f_i d_i) . (a-hat - b) / |a-hat - b|^2, with a-hat - b the sum over all latents.
    """
    whole = codes @ directions
    along = whole @ directions.T
    return codes * along / whole.square().sum(1, keepdim=True).clamp_min(1e-12)


def agreement(found: Int[Tensor, " example"], wanted: Int[Tensor, " example"]) -> float:
    """Share of examples with the same answer, 0 to 1.

    Read it beside the agreement of doing nothing: where an attribute hardly matters to the answer,
    most examples agree already.
    """
    if found.shape != wanted.shape or not len(found):
        raise ShapeError(f"{len(found)} and {len(wanted)} answers cannot be compared.")
    return float((found == wanted).double().mean())
