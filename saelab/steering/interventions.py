"""What can be done to a latent while the model runs? Five edits, each a small record.

With h the activation at the dictionary's hook point, f = encode(h), d_i the decoder direction of
latent i in the model's units, and the sums over the named latents:

    push    h + sum strength_i d_i
    clamp   h + sum (value_i - f_i) d_i            or (max(value_i, f_i) - f_i) with at_least
    scale   h + sum (factor_i - 1) f_i d_i         0 ablates, -1 turns around
    splice  decode(f)                              the error h - decode(f) is dropped
    push along  h + strength v                     any direction v, of a dictionary or not

All named latents are read from one code before any is changed. For codes that select, such as
TopK, f_i is the latent's value in the code as selected, and the others keep theirs: a clamped
latent takes nobody's place. That is decode of the code with f_i replaced, plus the error.

Source: the primitives of Templeton et al. 2024 and of Neuronpedia's steering, with the error kept.
"""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.steering.directions import Direction, finite, written_by

__all__ = [
    "Clamp",
    "DictionaryEdit",
    "Intervention",
    "Push",
    "PushAlong",
    "Scale",
    "Splice",
]


class Intervention(abc.ABC):
    """One edit of the activations at one hook point: the one a dictionary writes, as a rule.

    It changes every position that is edited by itself: nothing depends on other positions.
    """

    kind: ClassVar[str]
    """Its name in files."""
    needs_input: ClassVar[bool] = True
    """Whether it looks at what the dictionary reads, and not only at what it writes."""

    @property
    def dictionary(self) -> SAE | None:
        """The dictionary whose latents it edits, if there is one."""
        return None

    @property
    @abc.abstractmethod
    def hook(self) -> str:
        """The hook point it reads."""

    @property
    @abc.abstractmethod
    def hook_out(self) -> str:
        """The hook point it writes; the same, except for a transcoder."""

    @abc.abstractmethod
    def change(
        self,
        read: Float[Tensor, "token d_in"],
        written: Float[Tensor, "token d_out"],
        place: Int[Tensor, " token"],
    ) -> Float[Tensor, "token d_out"]:
        """What is put in place of `written`.

        Args:
            read: Activations at the dictionary's hook point.
            written: Activations where it writes; the same in an autoencoder.
            place: The position of each token in its row.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Kind and numbers, without the dictionary."""


class DictionaryEdit(Intervention, abc.ABC):
    """An edit of what a dictionary makes of the activations."""

    sae: SAE
    """The dictionary."""

    @property
    def dictionary(self) -> SAE | None:
        """The dictionary."""
        return self.sae

    @property
    def hook(self) -> str:
        """The hook point the dictionary reads.

        Raises:
            ConfigError: It names none.
        """
        return self.sae.hook or written_by(self.sae)

    @property
    def hook_out(self) -> str:
        """The hook point the dictionary writes.

        Raises:
            ConfigError: It names none.
        """
        return written_by(self.sae)


@dataclass(frozen=True, eq=False)
class _OfLatents(DictionaryEdit, abc.ABC):
    """An edit with one number for each of some latents."""

    sae: SAE
    values: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError(f"{type(self).__name__} names no latent: give {{latent: number}}.")
        for latent, value in self.values.items():
            if not 0 <= latent < self.sae.d_sae:
                raise ConfigError(
                    f"There is no latent {latent}: the dictionary has d_sae={self.sae.d_sae}, so "
                    f"latents run from 0 to {self.sae.d_sae - 1}."
                )
            if not math.isfinite(value):
                raise ConfigError(f"Latent {latent} cannot be given the number {value}.")

    @property
    def latents(self) -> Int[Tensor, " latent"]:
        """Which latents, in the order they were given."""
        return torch.tensor(list(self.values), device=self.sae.device)

    @property
    def numbers(self) -> Float[Tensor, " latent"]:
        """Their numbers."""
        return torch.tensor(list(self.values.values()), dtype=torch.float32).to(self.sae.device)

    @property
    def directions(self) -> Float[Tensor, "latent d_out"]:
        """What one unit of each writes, in the model's units."""
        return self.sae.W_dec.detach()[self.latents].float() / self.sae.normalization.scale_out

    def to_json(self) -> dict[str, Any]:
        """Kind and numbers."""
        return {"kind": self.kind, "values": {str(i): float(v) for i, v in self.values.items()}}

    def _add(self, written: Tensor, amounts: Float[Tensor, "token latent"]) -> Tensor:
        # In float32 and only then in the model's type: adding exactly nothing changes no bit.
        pushed = written.float() + (amounts @ self.directions).to(written.device)
        return pushed.to(written.dtype)


@final
@dataclass(frozen=True, eq=False)
class Push(_OfLatents):
    """Add strength times the decoder direction, whatever the latent's own activation."""

    kind = "push"
    needs_input = False

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """h + sum strength_i d_i."""
        return self._add(written, self.numbers.expand(len(written), -1))


@final
@dataclass(frozen=True, eq=False)
class Clamp(_OfLatents):
    """Hold latents at given activations, or at no less than those."""

    at_least: bool = False
    """Only raise: an activation above the value is left alone."""

    kind = "clamp"

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """h + sum (value_i - f_i) d_i."""
        own = activations_of(self.sae.encode(read), self.latents)
        wanted = self.numbers.expand_as(own)
        if self.at_least:
            wanted = torch.maximum(wanted, own)
        return self._add(written, wanted - own)

    def to_json(self) -> dict[str, Any]:
        """Kind, numbers and at_least."""
        return {**super().to_json(), "at_least": self.at_least}


@final
@dataclass(frozen=True, eq=False)
class Scale(_OfLatents):
    """Multiply latents' own activations: 0 ablates them, 1 changes nothing, -1 turns them round."""

    kind = "scale"

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """h + sum (factor_i - 1) f_i d_i."""
        own = activations_of(self.sae.encode(read), self.latents)
        return self._add(written, (self.numbers - 1) * own)


@final
@dataclass(frozen=True, eq=False)
class PushAlong(Intervention):
    """Add strength times a direction, which need not be a latent's."""

    direction: Direction
    strength: float

    kind = "push_along"
    needs_input = False

    def __post_init__(self) -> None:
        finite(self.strength, self.direction.name)

    @property
    def hook(self) -> str:
        """Where the direction is added."""
        return self.direction.hook

    @property
    def hook_out(self) -> str:
        """The same."""
        return self.direction.hook

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """h + strength v; with a row per position, h + strength v[position]."""
        vector = self.direction.vector.to(written.device)
        if vector.shape[-1] != written.shape[-1]:
            raise ShapeError(
                f"The direction {self.direction.name!r} is {vector.shape[-1]} wide; activations at "
                f"{self.hook} are {written.shape[-1]} wide. It belongs to another hook point."
            )
        if vector.ndim == 2:
            inside = place < len(vector)
            rows = vector[place.clamp(max=len(vector) - 1)]
            vector = torch.where(inside[:, None], rows, torch.zeros_like(rows))
        return (written.float() + self.strength * vector).to(written.dtype)

    def to_json(self) -> dict[str, Any]:
        """Kind, strength and how the direction was made; the vector is kept beside."""
        one = self.direction
        return {
            "kind": self.kind,
            "strength": float(self.strength),
            "direction": {"name": one.name, "hook": one.hook, "made": dict(one.made)},
        }


@final
@dataclass(frozen=True, eq=False)
class Splice(DictionaryEdit):
    """Put the reconstruction in place of the activation: the error is dropped."""

    sae: SAE
    kind = "splice"

    def change(self, read: Tensor, written: Tensor, place: Tensor) -> Tensor:  # noqa: ARG002
        """decode(encode(h))."""
        recons = self.sae.decode(self.sae.encode(read), read)
        return recons.to(written.device, written.dtype)

    def to_json(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": self.kind}


def activations_of(
    codes: SparseCodes, latents: Int[Tensor, " latent"]
) -> Float[Tensor, "token latent"]:
    """Some latents' activations on every token, densely."""
    found = torch.zeros(codes.n_tokens, len(latents), device=codes.values.device)
    place = torch.full((codes.d_sae,), -1, device=codes.values.device)
    place[latents] = torch.arange(len(latents), device=codes.values.device)
    column = place[codes.indices.long()]
    asked: Bool[Tensor, " pair"] = column >= 0
    found[codes.tokens[asked], column[asked]] = codes.values[asked].float()
    return found
