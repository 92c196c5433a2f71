"""Training checkpoints: everything the next step depends on, in one atomically renamed folder.

    checkpoints/00000120/state.safetensors   weights, optimizer moments, counters
    checkpoints/00000120/state.json          step, cursor, checksum; present only when complete

A newer checkpoint is in place before the older one is removed, so one is always there.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.errors import CheckpointError
from saelab.files import read_json, read_tensors, write_json, write_tensors

__all__ = ["latest_checkpoint", "read_checkpoint", "under", "write_checkpoint"]

STATE_VERSION = 1


def write_checkpoint(
    folder: str | Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write the state after `step` steps, then remove older checkpoints.

    Raises:
        DiskFullError: No room; the previous checkpoint is untouched.
    """
    folder = Path(folder)
    final = folder / f"{step:08d}"
    temporary = folder / f".{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    try:
        sha256 = write_tensors(temporary / "state.safetensors", tensors)
        manifest = {"version": STATE_VERSION, "step": step, "sha256": sha256, **state}
        write_json(temporary / "state.json", manifest)
        temporary.replace(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for older in _complete(folder):
        if older != final:
            shutil.rmtree(older, ignore_errors=True)
    return final


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of a run's `checkpoints` folder, or None."""
    found = _complete(Path(folder))
    return found[-1] if found else None


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one checkpoint, verifying its checksum.

    Raises:
        CheckpointError: It is incomplete, altered, or of a newer version.
    """
    path = Path(path)
    state = read_json(path / "state.json", "a checkpoint's state")
    if state.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state.get('version')!r}; this saelab reads "
            f"{STATE_VERSION}. Continue the run with the version that started it."
        )
    return read_tensors(path / "state.safetensors", state.get("sha256")), state


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if re.fullmatch(r"\d{8}", path.name)]
    return sorted(path for path in named if (path / "state.json").exists())
