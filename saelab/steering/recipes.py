"""How is an intervention kept in a file? A small JSON, and the directions beside it.

    NAME.json          the edits, in the order they are applied, and the positions
    NAME.safetensors   vectors and prototypes that no dictionary holds; only if there are any

Dictionaries are named by their hook points and sizes, not copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.errors import CheckpointError, ConfigError, SaelabError
from saelab.files import read_json, read_tensors, write_json, write_tensors
from saelab.sae import SAE
from saelab.steering.code_descent import DescendCode, DescentConfig, Prototypes
from saelab.steering.code_push import PushCode
from saelab.steering.directions import Direction
from saelab.steering.forcing import ForceCodes
from saelab.steering.interventions import (
    Clamp,
    Intervention,
    Push,
    PushAlong,
    Scale,
    Splice,
)

__all__ = ["load_interventions", "save_interventions"]

FORMAT = "saelab-interventions"
VERSION = 1


def save_interventions(path: str | Path, interventions: Sequence[Intervention]) -> None:
    """Write edits as a small JSON file; vectors of directions go into a .safetensors beside it.

    Args:
        path: Where the file goes.
        interventions: In the order they are applied.
    """
    path = Path(path)
    vectors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for place, one in enumerate(interventions):
        row = one.to_json()
        if isinstance(one, PushAlong):
            vectors[str(place)] = one.direction.vector.contiguous()
        if isinstance(one, PushCode):
            vectors[str(place)] = one.vector.detach().float().contiguous()
        if isinstance(one, DescendCode):
            vectors[str(place)] = one.prototypes.codes.detach().float().contiguous()
        if (sae := one.dictionary) is not None:
            row |= {"hook": sae.hook, "hook_out": sae.hook_out, "d_sae": sae.d_sae}
        rows.append(row)
    found: dict[str, Any] = {"format": FORMAT, "version": VERSION, "interventions": rows}
    if vectors:
        beside = path.with_suffix(".safetensors")
        found["vectors"] = {"file": beside.name, "sha256": write_tensors(beside, vectors)}
    write_json(path, found)


def load_interventions(path: str | Path, saes: Sequence[SAE] = ()) -> list[Intervention]:
    """Read what `save_interventions` wrote.

    Args:
        path: The file.
        saes: Dictionaries; each edit of latents takes the one of its hook points.

    Raises:
        CheckpointError: The file, or the one beside it, is not of this format or was altered.
        ConfigError: No dictionary given, or several, fit an edit.
    """
    found = read_json(Path(path), "a file of interventions")
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is not a file of interventions of version {VERSION}: it says "
            f"{found.get('format')!r}, {found.get('version')!r}."
        )
    vectors = _vectors(Path(path), found.get("vectors"))
    rows = found.get("interventions", [])
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise CheckpointError(f"{path} holds no list of interventions.")
    return [_read(path, row, saes, vectors.get(str(at))) for at, row in enumerate(rows)]


def _vectors(path: Path, known: Any) -> Mapping[str, Tensor]:
    if known is None:
        return {}
    # The name in the file is not followed: a recipe from elsewhere must not read other files.
    if not isinstance(known, Mapping) or "sha256" not in known:
        raise CheckpointError(f"{path} says nothing of use about the vectors beside it.")
    return read_tensors(path.with_suffix(".safetensors"), str(known["sha256"]))


def _read(
    path: str | Path, row: Mapping[str, Any], saes: Sequence[SAE], vector: Tensor | None
) -> Intervention:
    try:
        kind = row["kind"]
        if kind == PushAlong.kind:
            return _along(path, row, vector)
        place = (row["hook"], row["hook_out"], row["d_sae"])
        values = {int(latent): float(value) for latent, value in row.get("values", {}).items()}
    except SaelabError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} holds an incomplete intervention: {error}.") from None
    fitting = [sae for sae in saes if (sae.hook, sae.hook_out, sae.d_sae) == place]
    if len(fitting) != 1:
        raise ConfigError(
            f"{path} edits {place[0]} with a dictionary of {place[2]} latents; of the "
            f"{len(saes)} given, {len(fitting)} fit. Give exactly one."
        )
    if kind == PushCode.kind:
        return _of_code(path, row, fitting[0], vector)
    if kind == DescendCode.kind:
        return _descent(path, row, fitting[0], vector)
    if kind == ForceCodes.kind:
        codes = [int(code) for code in row.get("codes", ())]
        return ForceCodes(fitting[0], codes, keep_error=bool(row.get("keep_error", False)))
    if kind == Push.kind:
        return Push(fitting[0], values)
    if kind == Clamp.kind:
        return Clamp(fitting[0], values, at_least=bool(row.get("at_least", False)))
    if kind == Scale.kind:
        return Scale(fitting[0], values)
    if kind == Splice.kind:
        return Splice(fitting[0])
    raise CheckpointError(f"{path} has an intervention of unknown kind {kind!r}.")


def _of_code(path: str | Path, row: Mapping[str, Any], sae: SAE, vector: Tensor | None) -> PushCode:
    if vector is None or "strength" not in row or "keep" not in row:
        raise CheckpointError(f"{path} names a push of codes without its vector or strength.")
    return PushCode(sae, vector, float(row["strength"]), str(row["keep"]))


def _descent(
    path: str | Path, row: Mapping[str, Any], sae: SAE, codes: Tensor | None
) -> DescendCode:
    if codes is None or codes.ndim != 2 or "target" not in row or "kinds" not in row:
        raise CheckpointError(f"{path} names a descent without its target or prototypes.")
    known = {one.name for one in fields(DescentConfig)}
    config = DescentConfig(**{name: row[name] for name in known & set(row)})
    kinds = Prototypes(names=tuple(map(str, row["kinds"])), codes=codes)
    return DescendCode(sae, kinds, str(row["target"]), config)


def _along(path: str | Path, row: Mapping[str, Any], vector: Tensor | None) -> PushAlong:
    if vector is None:
        raise CheckpointError(f"{path} names a direction, but its vector is not beside it.")
    known = row["direction"]
    direction = Direction(
        vector=vector,
        hook=str(known["hook"]),
        name=str(known["name"]),
        made=dict(known.get("made", {})),
    )
    return PushAlong(direction, float(row["strength"]))
