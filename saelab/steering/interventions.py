"""What can be done to a latent while the model runs? Four edits, each a small record.

With h the activation at the dictionary's hook point, f = encode(h), d_i the decoder direction of
latent i in the model's units, and the sums over the named latents:

    push    h + sum strength_i d_i
    clamp   h + sum (value_i - f_i) d_i            or (max(value_i, f_i) - f_i) with at_least
    scale   h + sum (factor_i - 1) f_i d_i         0 ablates, -1 turns around
    splice  decode(f)                              the error h - decode(f) is dropped

All named latents are read from one code before any is changed. For codes that select, such as
TopK, f_i is the latent's value in the code as selected, and the others keep theirs: a clamped
latent takes nobody's place. That is decode of the code with f_i replaced, plus the error.

Source: the primitives of Templeton et al. 2024 and of Neuronpedia's steering, with the error kept.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import CheckpointError, ConfigError
from saelab.files import read_json, write_json
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = [
    "Clamp",
    "Intervention",
    "Push",
    "Scale",
    "Splice",
    "load_interventions",
    "save_interventions",
]

FORMAT = "saelab-interventions"
VERSION = 1


class Intervention(abc.ABC):
    """One edit of the activations that one dictionary writes.

    It changes every position that is edited by itself: nothing depends on other positions.
    """

    kind: ClassVar[str]
    """Its name in files."""
    needs_input: ClassVar[bool] = True
    """Whether it looks at what the dictionary reads, and not only at what it writes."""
    sae: SAE
    """The dictionary."""

    @abc.abstractmethod
    def change(
        self, read: Float[Tensor, "token d_in"], written: Float[Tensor, "token d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """What is put in place of `written`.

        Args:
            read: Activations at the dictionary's hook point.
            written: Activations where it writes; the same in an autoencoder.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Kind and numbers, without the dictionary."""


@dataclass(frozen=True, eq=False)
class _OfLatents(Intervention, abc.ABC):
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

    def change(self, read: Tensor, written: Tensor) -> Tensor:  # noqa: ARG002
        """h + sum strength_i d_i."""
        return self._add(written, self.numbers.expand(len(written), -1))


@final
@dataclass(frozen=True, eq=False)
class Clamp(_OfLatents):
    """Hold latents at given activations, or at no less than those."""

    at_least: bool = False
    """Only raise: an activation above the value is left alone."""

    kind = "clamp"

    def change(self, read: Tensor, written: Tensor) -> Tensor:
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

    def change(self, read: Tensor, written: Tensor) -> Tensor:
        """h + sum (factor_i - 1) f_i d_i."""
        own = activations_of(self.sae.encode(read), self.latents)
        return self._add(written, (self.numbers - 1) * own)


@final
@dataclass(frozen=True, eq=False)
class Splice(Intervention):
    """Put the reconstruction in place of the activation: the error is dropped."""

    sae: SAE
    kind = "splice"

    def change(self, read: Tensor, written: Tensor) -> Tensor:
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


def save_interventions(path: str | Path, interventions: Sequence[Intervention]) -> None:
    """Write edits as a small JSON file; dictionaries are named by their hook points, not copied.

    Args:
        path: Where the file goes.
        interventions: In the order they are applied.
    """
    rows = [
        {
            **one.to_json(),
            "hook": one.sae.hook,
            "hook_out": one.sae.hook_out,
            "d_sae": one.sae.d_sae,
        }
        for one in interventions
    ]
    write_json(Path(path), {"format": FORMAT, "version": VERSION, "interventions": rows})


def load_interventions(path: str | Path, saes: Sequence[SAE]) -> list[Intervention]:
    """Read what `save_interventions` wrote.

    Args:
        path: The file.
        saes: Dictionaries; each edit takes the one of its hook points.

    Raises:
        CheckpointError: The file is not of this format.
        ConfigError: No dictionary given, or several, fit an edit.
    """
    found = read_json(Path(path), "a file of interventions")
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is not a file of interventions of version {VERSION}: it says "
            f"{found.get('format')!r}, {found.get('version')!r}."
        )
    return [_read(path, row, saes) for row in found.get("interventions", [])]


def _read(path: str | Path, row: Mapping[str, Any], saes: Sequence[SAE]) -> Intervention:
    try:
        place = (row["hook"], row["hook_out"], row["d_sae"])
        kind = row["kind"]
        values = {int(latent): float(value) for latent, value in row.get("values", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} holds an incomplete intervention: {error}.") from None
    fitting = [sae for sae in saes if (sae.hook, sae.hook_out, sae.d_sae) == place]
    if len(fitting) != 1:
        raise ConfigError(
            f"{path} edits {place[0]} with a dictionary of {place[2]} latents; of the "
            f"{len(saes)} given, {len(fitting)} fit. Give exactly one."
        )
    if kind == Push.kind:
        return Push(fitting[0], values)
    if kind == Clamp.kind:
        return Clamp(fitting[0], values, at_least=bool(row.get("at_least", False)))
    if kind == Scale.kind:
        return Scale(fitting[0], values)
    if kind == Splice.kind:
        return Splice(fitting[0])
    raise CheckpointError(f"{path} has an intervention of unknown kind {kind!r}.")
