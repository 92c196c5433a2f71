"""Run folders: atomic, checksummed, versioned files, and never a pickle.

Every write goes to a temporary name in the same folder, is synced, and is renamed, so a reader
sees the old file or the new one and never half of either.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors
from torch import Tensor

from saelab.errors import (
    CheckpointError,
    DiskFullError,
    FolderBusyError,
    SaelabError,
)

__all__ = [
    "check_disk",
    "folder_lock",
    "format_bytes",
    "provenance",
    "read_json",
    "read_tensors",
    "sha256_of",
    "write_bytes",
    "write_json",
    "write_tensors",
]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RECORDED_PACKAGES = ("saelab", "torch", "transformers", "transformer-lens", "safetensors", "numpy")


def write_bytes(path: str | Path, data: bytes) -> str:
    """Write a file atomically and durably.

    Args:
        path: Where the file goes; missing parent folders are made.
        data: Its whole content.

    Returns:
        The content's SHA-256, as lower-case hex.

    Raises:
        DiskFullError: The disk has no room; the old file, if there was one, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in _NO_ROOM:
            raise DiskFullError(
                f"No room to write {path} ({format_bytes(len(data))}): {error.strerror}. "
                "What was finished before is kept; free some space and run the same command again."
            ) from error
        raise
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot sync a folder; the rename still happened
        pass
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> str:
    """Write `value` as readable JSON, atomically; returns the SHA-256 of the file."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())


def read_json(
    path: str | Path, what: str, error: type[SaelabError] = CheckpointError
) -> dict[str, Any]:
    """Read a JSON object written by `write_json`.

    Args:
        path: The file.
        what: What the file is, for the message: "a store manifest".
        error: Raised when the file is missing or is not a JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"No {what} at {path}: the file is missing.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise error(f"{path} should be {what} but is not valid JSON: {cause}.") from None
    if not isinstance(value, dict):
        raise error(f"{path} should be {what} but holds a JSON {type(value).__name__}.")
    return value


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> str:
    """Write tensors as safetensors, atomically; returns the SHA-256 of the file."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, _save_tensors(ready, dict(notes) if notes else None))


def read_tensors(
    path: str | Path,
    sha256: str | None = None,
    error: type[SaelabError] = CheckpointError,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Read a safetensors file, checking its SHA-256 when one was recorded.

    Raises:
        error: The file is missing, truncated, altered, or not safetensors.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} is missing.") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise error(
            f"{path} is not the file that was written: its SHA-256 differs from the manifest's "
            "(truncated or altered). Restore it, or delete it and run the same command again."
        )
    try:
        tensors = _load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as cause:
        raise error(f"{path} is not a complete safetensors file: {cause}.") from None
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, as lower-case hex, reading 16 MiB at a time."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while block := handle.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold the right to write a run folder; the lock ends with the process, however it ends.

    Raises:
        FolderBusyError: Another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise FolderBusyError(
                f"{folder} is being written by another process (pid {holder}). "
                "Wait for it to end, or choose another folder."
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def check_disk(folder: str | Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: Where the files will go; it need not exist yet.
        needed: Bytes that will be written.

    Raises:
        DiskFullError: Fewer than `needed` bytes (and 1 % to spare) are free.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed * 1.01 > free:
        raise DiskFullError(
            f"{folder} would need {format_bytes(needed)} but only {format_bytes(free)} are free. "
            "Use fewer tokens or hook points, a smaller dtype, another disk, or streaming."
        )


def format_bytes(count: int | float) -> str:
    """1536 as '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def provenance() -> dict[str, Any]:
    """What made a result: package versions, Python, platform and the source commit if known."""
    versions = {}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "packages": versions,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "commit": _source_commit(),
    }


def _source_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
