"""How are the roles of units kept? One JSON file, with the text of every trigger.

Written by `python -m probes.neuron_roles --out FILE`; the explorer looks for it as `roles.json` in
the folder of a run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from saelab.errors import CheckpointError
from saelab.files import read_json, write_json
from saelab.probing.roles import Roles, UnitRole

__all__ = ["FILE", "SavedRoles", "load_roles", "save_roles"]

FILE = "roles.json"
"""Its name in the folder of a run."""
FORMAT, VERSION = "saelab-roles", 1


@final
@dataclass(frozen=True, kw_only=True)
class SavedRoles:
    """Roles as they were kept."""

    hook: str
    """Whose units: latents of a dictionary that reads there, or neurons there."""
    roles: Roles
    """Every unit."""
    control: dict[str, int]
    """How many units shuffled text gives each role."""
    texts: dict[int, tuple[str, ...]]
    """Detector -> the text of its triggers."""


def save_roles(
    path: str | Path,
    hook: str,
    roles: Roles,
    control: Roles,
    decode: Callable[[Sequence[int]], str],
) -> None:
    """Write roles with the text of their triggers.

    Args:
        path: The file.
        hook: Where the units are.
        roles: Of the text.
        control: Of the shuffled text.
        decode: Text of token ids, such as the model's.
    """
    units = []
    for one in roles.units:
        texts = [decode(list(gram)) for gram in one.triggers]
        units.append({**asdict(one), "triggers": [list(gram) for gram in one.triggers],
                      "texts": texts})  # fmt: skip
    about = {"format": FORMAT, "version": VERSION, "hook": hook, "control": control.counts()}
    sizes = {"n_tokens": roles.n_tokens, "n_positions": roles.n_positions}
    write_json(Path(path), {**about, **sizes, "units": units})


def load_roles(path: str | Path) -> SavedRoles:
    """Read what `save_roles` wrote.

    Raises:
        CheckpointError: The file is missing, of another format, or was altered.
    """
    found = read_json(Path(path), "a file of roles")
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is not a file of roles of version {VERSION}: it says "
            f"{found.get('format')!r}, {found.get('version')!r}. Run probes.neuron_roles again."
        )
    try:
        roles = Roles(
            units=[_unit(one) for one in found["units"]],
            n_tokens=int(found["n_tokens"]),
            n_positions=int(found["n_positions"]),
        )
        texts = {
            int(one["unit"]): tuple(map(str, one["texts"]))
            for one in found["units"]
            if one["texts"]
        }
        control = {str(name): int(count) for name, count in found["control"].items()}
        known = roles.counts()
        if set(control) != set(known) or sum(known.values()) != len(roles.units):
            raise ValueError("a role is unknown")
        if [one.unit for one in roles.units] != list(range(len(roles.units))):
            raise ValueError("units are missing or out of order")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} was altered: {error}. Run probes.neuron_roles again."
        ) from None
    return SavedRoles(hook=str(found["hook"]), roles=roles, control=control, texts=texts)


def _unit(one: Mapping[str, Any]) -> UnitRole:
    effect = one["trigger_effect"]
    return UnitRole(
        unit=int(one["unit"]),
        role=one["role"],
        density=float(one["density"]),
        n_covering=int(one["n_covering"]),
        triggers=tuple(tuple(int(token) for token in gram) for gram in one["triggers"]),
        trigger_effect=None if effect is None else float(effect),
        information=float(one["information"]),
        pattern=str(one["pattern"]),
    )
