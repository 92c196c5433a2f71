"""In which direction can a model be pushed? One record for all of them, whatever made it.

A latent's decoder direction, a difference in means, a probe's normal and a random direction are
the same kind of thing once they exist: something added to the activation at one hook point. So
they are compared as the same kind of thing, at the same length of push.

    latent_direction   what one unit of a latent writes
    random_direction   isotropic, of the length of another: the control for size alone
    random_latents     other latents of the dictionary, of that length: the control for "any latent"

`contrasts` makes directions from labelled texts.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.sae import SAE

__all__ = ["Direction", "latent_direction", "random_direction", "random_latents"]

SALT = 0x51EE2
"""Added to the seed of random directions."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """Something to add to the activation at one hook point."""

    vector: Float[Tensor, "*pos d"]
    """What strength 1 adds, float32, in the model's units: [d] at every position that is edited,
    or [pos, d], row p at position p of each row and nothing further on."""
    hook: str
    """Where it is added."""
    name: str
    """What to call it in a figure."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: `method`, and what that method was given; anything JSON can hold."""

    def __post_init__(self) -> None:
        if self.vector.ndim not in (1, 2) or not self.vector.numel():
            raise ConfigError(
                f"The direction {self.name!r} has shape {list(self.vector.shape)}; it must be [d] "
                "or [pos, d]."
            )
        if not bool(torch.isfinite(self.vector).all()):
            raise ConfigError(f"The direction {self.name!r} holds NaN or infinite numbers.")
        object.__setattr__(self, "vector", self.vector.detach().float().cpu())

    @property
    def norm(self) -> float:
        """Its length; with a row per position, the mean length of the rows that are not zero."""
        lengths = self.vector.double().norm(dim=-1).reshape(-1)
        lengths = lengths[lengths > 0]
        return float(lengths.mean()) if len(lengths) else 0.0

    def of_norm(self, norm: float) -> "Direction":
        """The same direction at another length.

        Raises:
            ConfigError: It has no length, so there is no direction to keep.
        """
        own = self.norm
        if not own:
            raise ConfigError(f"The direction {self.name!r} is zero everywhere: it points nowhere.")
        return Direction(
            vector=self.vector * (norm / own), hook=self.hook, name=self.name, made=self.made
        )

    def __neg__(self) -> "Direction":
        """The opposite direction."""
        made = {**self.made, "negated": not self.made.get("negated", False)}
        return Direction(vector=-self.vector, hook=self.hook, name=f"-{self.name}", made=made)

    def cosine(self, other: "Direction") -> float:
        """Cosine with another direction of the same shape, -1 to 1.

        >>> one = Direction(vector=torch.tensor([3.0, 0.0]), hook="h", name="one")
        >>> one.cosine(-one)
        -1.0
        """
        if self.vector.shape != other.vector.shape:
            raise ConfigError(
                f"{self.name!r} has shape {list(self.vector.shape)}, {other.name!r} has "
                f"{list(other.vector.shape)}: they cannot be compared."
            )
        a, b = self.vector.double().flatten(), other.vector.double().flatten()
        size = float(a.norm() * b.norm())
        return float(a @ b) / size if size else 0.0

    @property
    def is_control(self) -> bool:
        """Whether it says what any push of this size does: a random direction or latent."""
        return str(self.made.get("method", "")).startswith("random")


def latent_direction(sae: SAE, latent: int) -> Direction:
    """What one unit of a latent writes, where the dictionary writes, in the model's units.

    Raises:
        ConfigError: There is no such latent, or the dictionary names no hook point.
    """
    if not 0 <= latent < sae.d_sae:
        raise ConfigError(
            f"There is no latent {latent}: the dictionary has d_sae={sae.d_sae}, so latents run "
            f"from 0 to {sae.d_sae - 1}."
        )
    vector = sae.W_dec.detach()[latent].float() / sae.normalization.scale_out
    made = {"method": "latent", "latent": latent, "d_sae": sae.d_sae}
    return Direction(vector=vector, hook=written_by(sae), name=f"latent {latent}", made=made)


def random_direction(like: Direction, seed: int = 0) -> Direction:
    """A direction drawn isotropically, with the shape and the length of another.

    Row by row where there is a row per position: no row is longer than the one it stands for.
    """
    # Salted: dictionaries, too, draw their first directions from small seeds.
    generator = torch.Generator().manual_seed(SALT + seed)
    drawn = torch.randn(like.vector.shape, generator=generator)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True) * like.vector.norm(dim=-1, keepdim=True)
    made = {"method": "random direction", "like": like.name, "seed": seed}
    return Direction(vector=drawn, hook=like.hook, name=f"random direction {seed}", made=made)


def random_latents(
    sae: SAE,
    n: int = 1,
    *,
    seed: int = 0,
    among: Collection[int] | None = None,
    without: Collection[int] = (),
) -> list[Direction]:
    """Decoder directions of latents drawn evenly, without repeats.

    Args:
        sae: The dictionary.
        n: How many.
        seed: Of the draw.
        among: Draw from these, such as the latents an atlas knows to be alive; all by default.
        without: Never draw these, such as the latent that is studied.

    Raises:
        ConfigError: Fewer than `n` are left to draw from.
    """
    left = sorted(set(range(sae.d_sae) if among is None else among) - set(without))
    if len(left) < n:
        raise ConfigError(f"{n} random latents were asked for; {len(left)} are left to draw from.")
    order = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    found = []
    for place in order:
        one = latent_direction(sae, left[place])
        made = {**one.made, "method": "random latent", "seed": seed}
        name = f"random latent {left[place]}"
        found.append(Direction(vector=one.vector, hook=one.hook, name=name, made=made))
    return found


def written_by(sae: SAE) -> str:
    """The hook point a dictionary writes.

    Raises:
        ConfigError: It names none.
    """
    if sae.hook is None:
        raise ConfigError(
            "The dictionary does not say which hook point it reads. Set sae.hook, for example "
            "sae.hook = 'blocks.15.hook_resid_post'."
        )
    return sae.hook_out or sae.hook


def finite(strength: float, what: str) -> float:
    """A strength that can be used.

    Raises:
        ConfigError: It is NaN or infinite.
    """
    if not math.isfinite(strength):
        raise ConfigError(f"{what} cannot be pushed with strength {strength}.")
    return strength
