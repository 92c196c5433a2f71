"""What is done to which latents, as the address says it: push=123:8.0,77:-3."""

import math

from saelab.errors import ConfigError
from saelab.sae import SAE
from saelab.steering import Clamp, Intervention, Push, Scale

__all__ = ["HOW", "MOST", "Pushes", "interventions", "parsed", "written"]

Pushes = tuple[tuple[int, float], ...]
"""Latents with their numbers."""

HOW: dict[str, type[Push] | type[Clamp] | type[Scale]] = {
    "add": Push,
    "hold at": Clamp,
    "multiply by": Scale,
}
"""What a number means: strength x decoder direction, an activation, or a factor."""
MOST = 8
"""Latents steered with at once, at most."""


def parsed(words: str, d_sae: int) -> Pushes:
    """Latents and numbers.

    >>> parsed("3:2.5,7:-1", 10)
    ((3, 2.5), (7, -1.0))

    Raises:
        ConfigError: It is not a list of latents of the dictionary with finite numbers.
    """
    found: dict[int, float] = {}
    for part in filter(None, words.split(",")):
        latent, _, number = part.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not latent.isdecimal() or int(latent) >= d_sae or not abs(value) < 1e6:
            raise ConfigError(
                f"push={words[:80]!r} in the address must name latents from 0 to {d_sae - 1:,}, "
                "each with a number, such as push=3:2.5,7:-1."
            )
        found[int(latent)] = value
    if len(found) > MOST:
        raise ConfigError(f"push in the address names {len(found)} latents; at most {MOST} do.")
    return tuple(found.items())


def written(pushes: Pushes) -> str:
    """What `parsed` reads.

    >>> written(((3, 2.5), (7, -1.0)))
    '3:2.5,7:-1'
    """
    return ",".join(f"{latent}:{value:.4g}" for latent, value in pushes)


def interventions(sae: SAE, how: str, pushes: Pushes) -> list[Intervention]:
    """The edits to apply; with nothing to push, latent 0 is pushed by nothing."""
    return [HOW[how](sae, dict(pushes) or {0: 0.0})]
