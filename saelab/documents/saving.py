"""What does a folder of documents hold, and is it whole?

    manifest.json        format, what made it, and for each finished shard its SHA-256s
    00000.safetensors    compressed rows of one shard: ends, peaks, totals, counts, places, text ids
    00000.json           names, fields and token strings of its documents

A shard counts once the manifest lists it; the manifest says `complete` after the last one. A
reader that meets a missing, truncated or altered file names it and stops.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.documents.codes import DocumentCodes
from saelab.documents.pooling import cat
from saelab.documents.texts import Texts
from saelab.errors import CheckpointError, SaelabError
from saelab.files import (
    folder_lock,
    provenance,
    read_json,
    read_tensors,
    sha256_of,
    write_json,
    write_tensors,
)

__all__ = ["DocumentManifest", "Shard", "open_documents", "save_documents", "write_shard"]

FORMAT, VERSION, MANIFEST = "saelab-documents", 1, "manifest.json"
_ROWS = ("n_tokens", "offsets", "groups")
_PAIRS = ("ends", "peaks", "totals", "counts", "places")


@final
@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished part of a collection."""

    n_documents: int
    """Documents in it."""
    n_sources: int
    """Texts that were read for it, those without a document included."""
    digest: str
    """SHA-256 of those texts, so that a changed corpus is noticed."""
    tensors: str
    """SHA-256 of its .safetensors file."""
    words: str
    """SHA-256 of its .json file."""


@final
@dataclass(frozen=True, kw_only=True)
class DocumentManifest:
    """What a folder of documents holds."""

    d_sae: int
    """Latents of the dictionary."""
    two_ended: bool
    """Whether they can be negative."""
    about: dict[str, Any]
    """Model, dictionary, corpus and settings."""
    shards: tuple[Shard, ...] = ()
    """Finished shards, in order."""
    complete: bool = False
    """Whether the last document is in them."""
    norm_limit: float | None = None
    """Tokens with a longer activation did not count; known from the first batch on."""
    n_short: int = 0
    """Texts and passages left out because too few of their tokens count."""

    def write(self, folder: Path) -> None:
        """Write it, atomically."""
        write_json(
            folder / MANIFEST,
            {"format": FORMAT, "version": VERSION, **asdict(self), "made_by": provenance()},
        )

    @classmethod
    def read(cls, folder: Path) -> "DocumentManifest":
        """Read what `write` wrote.

        Raises:
            CheckpointError: It is missing, altered, or of another format.
        """
        path = folder / MANIFEST
        found = read_json(path, "a manifest of documents as sparse codes")
        if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
            raise CheckpointError(
                f"{path} is of format {found.get('format')} {found.get('version')}; this saelab "
                f"reads {FORMAT} {VERSION}. Choose another folder."
            )
        try:
            shards = tuple(Shard(**shard) for shard in found["shards"])
            rest = {name: found[name] for name in cls.__dataclass_fields__ if name != "shards"}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} was altered: {error}. Make it again.") from None
        return cls(shards=shards, **rest)


def write_shard(
    folder: Path, index: int, documents: DocumentCodes, n_sources: int, digest: str
) -> Shard:
    """Write one part of a collection; it counts once the manifest lists it."""
    tensors: dict[str, Tensor] = {name: getattr(documents, name) for name in (*_ROWS, *_PAIRS)}
    strings: Sequence[str] = ()
    if documents.texts is not None:
        used, ids = torch.unique(documents.texts.ids.long(), return_inverse=True)
        strings = [documents.texts.strings[int(i)] for i in used.tolist()]
        tensors |= {"word_ids": ids.to(torch.int32), "word_offsets": documents.texts.offsets}
    words = {
        "names": list(documents.names),
        "fields": [dict(one) for one in documents.fields],
        "strings": list(strings),
    }
    place = folder / f"{index:05d}"
    return Shard(
        n_documents=len(documents),
        n_sources=n_sources,
        digest=digest,
        tensors=write_tensors(place.with_suffix(".safetensors"), tensors),
        words=write_json(place.with_suffix(".json"), words),
    )


def save_documents(documents: DocumentCodes, folder: str | Path) -> None:
    """Write a whole collection as a folder of one shard.

    Raises:
        CheckpointError: The folder holds something else.
        DiskFullError: There is no room.
    """
    folder = Path(folder)
    if folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty. Choose another folder.")
    with folder_lock(folder):
        shard = write_shard(folder, 0, documents, len(documents), "")
        manifest = DocumentManifest(
            d_sae=documents.d_sae,
            two_ended=documents.two_ended,
            about=dict(documents.about),
            shards=(shard,),
            complete=True,
        )
        manifest.write(folder)


def open_documents(folder: str | Path) -> DocumentCodes:
    """Read a finished collection, about 24 bytes a pair in memory.

    Raises:
        CheckpointError: A file is missing, truncated or altered, or the collection is not finished.
    """
    folder = Path(folder)
    manifest = DocumentManifest.read(folder)
    if not manifest.complete or not manifest.shards:
        raise CheckpointError(
            f"The documents in {folder} are not all read yet ({len(manifest.shards)} shards are "
            "finished). Run the same reading again to finish it."
        )
    parts = [read_shard(folder, i, manifest) for i in range(len(manifest.shards))]
    return replace(cat(parts, same_sources=True), about=manifest.about)


def read_shard(folder: Path, index: int, manifest: DocumentManifest) -> DocumentCodes:
    """One finished part of a collection.

    Raises:
        CheckpointError: A file is missing, truncated or altered.
    """
    shard, place = manifest.shards[index], folder / f"{index:05d}"
    tensors = read_tensors(place.with_suffix(".safetensors"), shard.tensors)
    path = place.with_suffix(".json")
    if path.is_file() and sha256_of(path) != shard.words:
        raise CheckpointError(
            f"{path} is not the file that was written: its SHA-256 differs from the manifest's "
            "(truncated or altered). Restore it, or read the documents into another folder."
        )
    words = read_json(path, "names and words of documents")
    try:
        texts = None
        if "word_ids" in tensors:
            texts = Texts(tensors["word_ids"], tensors["word_offsets"], words["strings"])
        return DocumentCodes(
            d_sae=manifest.d_sae,
            two_ended=manifest.two_ended,
            names=words["names"],
            fields=words["fields"],
            texts=texts,
            about=manifest.about,
            **{name: tensors[name] for name in (*_ROWS, *_PAIRS)},
        )
    except (KeyError, TypeError, SaelabError) as error:
        raise CheckpointError(f"{place} does not hold documents: {error}.") from None
