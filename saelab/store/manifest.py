"""What does an activation store on disk contain, and which of it is finished?

`manifest.json` is rewritten atomically after every shard. A shard counts as finished when the
manifest lists it; anything else in the folder is left over from an interruption and is replaced.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from saelab.errors import StoreError
from saelab.files import read_json, write_json

__all__ = ["FileRecord", "HookRecord", "Manifest", "SegmentRecord", "ShardRecord", "hook_folders"]

FORMAT = "saelab-activations"
VERSION = 1
NAME = "manifest.json"
ADDRESSES = "addresses"
TOKENS = "tokens"


@final
@dataclass(frozen=True)
class HookRecord:
    """One hook point of the store."""

    name: str
    """Canonical name."""
    folder: str
    """Sub-folder with its shards."""
    width: int
    """Numbers per activation."""
    norm_limit: float | None
    """Activations with a larger Euclidean norm were dropped; None keeps all."""


@final
@dataclass(frozen=True)
class SegmentRecord:
    """Tokens that were harvested together: the first harvest, or one that was appended."""

    tokens: dict[str, Any]
    """Identity of the tokens: sha256, n_rows, length, n_kept, corpus, tokenizer."""
    file: str
    """Where a copy of the tokens is, so that contexts can be shown."""
    first_shard: int
    """Number of its first shard."""
    n_shards: int
    """How many shards it makes."""
    first_row: int
    """Row address of its first token row."""
    first_document: int
    """Document address of its first document."""


@final
@dataclass(frozen=True)
class FileRecord:
    """One file of a shard."""

    bytes: int
    """Its size."""
    sha256: str
    """Of its whole content."""


@final
@dataclass(frozen=True)
class ShardRecord:
    """One finished shard."""

    index: int
    """Its number, which names its files."""
    n_tokens: int
    """Rows stored."""
    n_dropped: int
    """Rows left out because the norm at some hook point was beyond its limit."""
    dropped: dict[str, int]
    """Of those, how many each hook point asked for."""
    files: dict[str, FileRecord]
    """By sub-folder."""


@final
@dataclass(frozen=True)
class Manifest:
    """Everything about a store except its numbers."""

    config: dict[str, Any]
    """The harvest configuration."""
    model: dict[str, Any]
    """Identity of the model."""
    compute: dict[str, Any]
    """What the bits depend on besides: model dtype, device, threads."""
    hooks: tuple[HookRecord, ...]
    """In the order asked for."""
    provenance: dict[str, Any]
    """Package versions, platform and commit when the store was begun."""
    segments: tuple[SegmentRecord, ...] = ()
    """In the order harvested."""
    shards: tuple[ShardRecord, ...] = ()
    """Finished shards, by number."""

    @property
    def n_shards(self) -> int:
        """How many shards the store has when it is complete."""
        return sum(segment.n_shards for segment in self.segments)

    @property
    def complete(self) -> bool:
        """Whether every shard is finished."""
        return len(self.shards) == self.n_shards

    @property
    def sha256(self) -> str:
        """Hash of the content; it changes when any file of the store does."""
        return _checksum(self._to_json())

    def with_shard(self, record: ShardRecord) -> "Manifest":
        """The same store with one more finished shard."""
        others = [shard for shard in self.shards if shard.index != record.index]
        return replace(self, shards=tuple(sorted([*others, record], key=lambda s: s.index)))

    def without_shards(self, indices: Iterable[int]) -> "Manifest":
        """The same store with some shards to be done again."""
        gone = set(indices)
        return replace(self, shards=tuple(s for s in self.shards if s.index not in gone))

    def write(self, folder: Path) -> None:
        """Write `manifest.json` atomically."""
        value = self._to_json()
        write_json(folder / NAME, {**value, "checksum": _checksum(value)})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check `manifest.json`.

        Raises:
            StoreError: It is missing, altered, incomplete, or of a newer version.
        """
        path = folder / NAME
        if not path.exists():
            raise StoreError(
                f"No activation store at {folder}: {NAME} is missing. Harvest there first, or "
                "restore the manifest: without it the shards cannot be checked or continued."
            )
        value = read_json(path, "a store manifest", StoreError)
        if value.get("format") != FORMAT:
            raise StoreError(f"{path} is not the manifest of an activation store ({FORMAT}).")
        if not isinstance(value.get("version"), int) or value["version"] > VERSION:
            raise StoreError(
                f"{path} has format version {value.get('version')}; this saelab reads up to "
                f"{VERSION}. Upgrade saelab."
            )
        if value.pop("checksum", None) != _checksum(value):
            raise StoreError(
                f"{path} was altered after it was written: its checksum differs. Restore it, or "
                "harvest into another folder."
            )
        return cls._from_json(value, path)

    def _to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def _from_json(cls, value: Mapping[str, Any], path: Path) -> "Manifest":
        try:
            return cls(
                config=value["config"],
                model=value["model"],
                compute=value["compute"],
                hooks=tuple(HookRecord(**hook) for hook in value["hooks"]),
                provenance=value["provenance"],
                segments=tuple(SegmentRecord(**segment) for segment in value["segments"]),
                shards=tuple(_shard(shard) for shard in value["shards"]),
            )
        except (KeyError, TypeError) as cause:
            raise StoreError(f"{path} does not describe a store: {cause}.") from None


def _shard(value: Mapping[str, Any]) -> ShardRecord:
    files = {name: FileRecord(**record) for name, record in value["files"].items()}
    return ShardRecord(**{**value, "files": files})


def _checksum(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hook_folders(names: Sequence[str]) -> list[str]:
    """A sub-folder name for each hook point, safe on every file system and never shared.

    >>> hook_folders(["blocks.0.hook_resid_post"])
    ['blocks.0.hook_resid_post']
    """
    folders = []
    for name in names:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:80]
        taken = {ADDRESSES, TOKENS, *(folder.lower() for folder in folders)}
        if safe != name or safe.lower() in taken:
            safe = f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        folders.append(safe)
    return folders
