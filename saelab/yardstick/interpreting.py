"""Test 3: does a latent stand for a value of an attribute, or for a union of values?

For every latent and attribute, the values are ordered by the share of their examples on which it is
on, and the unions of the first 1, 2, ... of them are compared with the examples on which it is on:

    F1 = 2 hits / (examples that have a value of the union + examples on which the latent is on)

Unions are chosen on one half of the examples, and F1 is that of the other half.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError

__all__ = ["Matched", "matched_values", "share_of_values"]


@final
@dataclass(frozen=True, kw_only=True)
class Matched:
    """The values that one latent stands for best."""

    latent: int
    """Which."""
    attribute: str
    """Of which attribute."""
    values: tuple[int, ...]
    """The union."""
    f1: float
    """On examples that did not choose it, 0 to 1."""


def matched_values(
    codes: Float[Tensor, "example d_sae"],
    attributes: Mapping[str, Int[Tensor, " example"]],
    *,
    most: int = 10,
    min_on: int = 5,
) -> list[Matched]:
    """What each latent stands for: of all attributes and unions the one of best F1.

    Even examples choose, odd ones measure.

    Args:
        codes: Latents, dense; a signed latent is on where it is not zero.
        attributes: The value of every attribute on every example.
        most: Values in a union, at most.
        min_on: Examples of the choosing half on which a latent must be on to be looked at.

    Raises:
        ConfigError: `most` is not positive.
        DataError: There are fewer than two examples.
    """
    if most < 1:
        raise ConfigError(f"most={most}: a union needs a value at least.")
    if len(codes) < 2:
        raise DataError(f"{len(codes)} examples cannot be divided into two halves.")
    on = codes != 0
    chosen = (on[::2].sum(0) >= min_on).nonzero().flatten()
    best: dict[int, tuple[float, Matched]] = {}
    for name, values in attributes.items():
        # no more than half of an attribute's values: a union of all says nothing
        limit = max(1, min(most, (int(values.max()) + 1) // 2))
        for found, own in zip(
            _unions(on[::2][:, chosen], values[::2], limit), chosen.tolist(), strict=True
        ):
            f1 = _f1(on[1::2, own], torch.isin(values[1::2], torch.tensor(found[1])))
            if own not in best or found[0] > best[own][0]:
                one = Matched(latent=own, attribute=name, values=tuple(found[1]), f1=f1)
                best[own] = (found[0], one)
    return [one for _, one in (best[latent] for latent in sorted(best))]


def share_of_values(found: list[Matched], attribute: str, n_values: int, f1: float = 0.5) -> float:
    """Share of an attribute's values that are in some latent's union of F1 at least so much.

    What a dictionary has no latent for, such as names that a larger attribute occludes, is missing.
    """
    kept = [one for one in found if one.attribute == attribute and one.f1 >= f1]
    return len({value for one in kept for value in one.values}) / n_values


def _unions(
    on: Bool[Tensor, "example latent"], values: Int[Tensor, " example"], most: int
) -> list[tuple[float, list[int]]]:
    """For each latent the best F1 over unions, and the values of that union."""
    hot = torch.nn.functional.one_hot(values.long()).float()
    hits, sizes, active = hot.T @ on.float(), hot.sum(0), on.float().sum(0)
    rate = hits / sizes.clamp_min(1)[:, None]
    order = rate.argsort(dim=0, descending=True, stable=True)[:most]
    total = hits.gather(0, order).cumsum(0)
    size = sizes[order].cumsum(0)
    f1, count = (2 * total / (size + active).clamp_min(1)).max(0)
    return [
        (float(f1[latent]), order[: int(count[latent]) + 1, latent].tolist())
        for latent in range(on.shape[1])
    ]


def _f1(on: Bool[Tensor, " example"], true: Bool[Tensor, " example"]) -> float:
    total = int(on.sum()) + int(true.sum())
    return 2 * int((on & true).sum()) / total if total else 0.0
