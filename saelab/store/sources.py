"""Where do a store's rows come from: a folder, memory, or a model that is run when they are needed?

A source is a list of chunks with known sizes that can be read in any order, again and again, with
the same result. `ActivationStore` does the rest the same way for all of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError, StoreError
from saelab.store.addresses import Addresses, shifted
from saelab.store.capture import Capture, Captured
from saelab.store.manifest import ADDRESSES, Manifest
from saelab.store.shards import check_file, read_activations, read_addresses, shard_path
from saelab.tokens import Tokens
from saelab.tokens import cat as cat_tokens

__all__ = ["FolderSource", "MemorySource", "Source", "StreamSource"]


@runtime_checkable
class Source(Protocol):
    """Chunks of aligned rows for one or more hook points."""

    widths: dict[str, int]
    """Width of each hook point, in the store's order."""
    sizes: list[int]
    """Rows in each chunk."""
    in_background: bool
    """Whether a chunk may be read in another thread while the caller works."""

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Activations [token, width] of a chunk, in the storage dtype."""
        ...

    def addresses(self, chunk: int) -> Addresses:
        """Addresses of a chunk's rows."""
        ...

    def planned(self, chunk: int) -> Addresses:
        """Addresses before outliers are replaced: what a model would be run on."""
        ...

    def tokens(self) -> Tokens | None:
        """The tokens harvested, with rows numbered as in the addresses."""
        ...

    def identity(self) -> dict[str, Any]:
        """What the rows depend on, JSON-able."""
        ...


@final
class FolderSource:
    """Shards on disk; each is checked against the manifest when it is read."""

    in_background = True

    def __init__(self, folder: Path, manifest: Manifest, *, hash_first: bool) -> None:
        """Read `folder`; `hash_first` checks a file's SHA-256 the first time it is read."""
        self.folder, self.manifest, self._hash_first = folder, manifest, hash_first
        self._hooks = {hook.name: hook for hook in manifest.hooks}
        self._checked: set[tuple[str, int]] = set()
        self.widths = {hook.name: hook.width for hook in manifest.hooks}
        self.sizes = [shard.n_tokens for shard in manifest.shards]

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Activations of a shard, mapped from disk."""
        shard, found = self.manifest.shards[chunk], {}
        for name in hooks:
            hook = self._hooks[name]
            found[name] = read_activations(
                self.folder,
                hook,
                self.manifest.config["dtype"],
                shard,
                content=self._unchecked(hook.folder, chunk),
            )
            self._checked.add((hook.folder, chunk))
        return found

    def addresses(self, chunk: int) -> Addresses:
        """Addresses of a shard."""
        shard = self.manifest.shards[chunk]
        found = read_addresses(self.folder, shard, content=self._unchecked(ADDRESSES, chunk))
        self._checked.add((ADDRESSES, chunk))
        return found

    def planned(self, chunk: int) -> Addresses:
        """The same as `addresses`: outliers are not on disk."""
        return self.addresses(chunk)

    def verify(self) -> None:
        """Hash every file.

        Raises:
            StoreError: The first file that is missing, truncated or altered.
        """
        for shard in self.manifest.shards:
            for sub_folder, record in shard.files.items():
                check_file(shard_path(self.folder, sub_folder, shard.index), record, content=True)
        self.tokens()

    def tokens(self) -> Tokens:
        """Tokens of all segments.

        Raises:
            StoreError: The copy in the folder is not what was harvested.
        """
        parts, documents = [], []
        for segment in self.manifest.segments:
            part = Tokens.load(self.folder / segment.file)
            if part.sha256 != segment.tokens["sha256"]:
                raise StoreError(
                    f"{self.folder / segment.file} does not hold the tokens that were harvested. "
                    "Restore it, or delete it and run the same harvest again."
                )
            parts.append(part)
            documents.append(shifted(part.document, segment.first_document))
        return replace(
            cat_tokens(parts),
            document=torch.cat(documents),
            document_names=[name for part in parts for name in part.document_names],
        )

    def identity(self) -> dict[str, Any]:
        """Model, corpus and the manifest's SHA-256."""
        segments = self.manifest.segments
        return {
            "kind": "folder",
            "model": self.manifest.model,
            "corpus": [segment.tokens["corpus"] for segment in segments],
            "tokens": [segment.tokens["sha256"] for segment in segments],
            "hooks": list(self.widths),
            "sha256": self.manifest.sha256,
        }

    def _unchecked(self, sub_folder: str, chunk: int) -> bool:
        return self._hash_first and (sub_folder, chunk) not in self._checked


@final
class MemorySource:
    """Activations that are tensors already."""

    in_background = False

    def __init__(self, activations: Mapping[str, Tensor]) -> None:
        """Check the tensors.

        Raises:
            ShapeError: One is not a matrix, or they differ in length.
            DataError: One is empty, not floating point, or holds NaN or infinity.
        """
        self._activations = {name: x.detach() for name, x in activations.items()}
        for name, x in self._activations.items():
            if x.ndim != 2:
                raise ShapeError(
                    f"{name}: activations must be [token, width]; got shape {tuple(x.shape)}. "
                    "Flatten rows and positions first."
                )
            if not x.is_floating_point() or not x.numel():
                raise DataError(
                    f"{name}: activations must be floating point and not empty; got {x.dtype} of "
                    f"shape {tuple(x.shape)}."
                )
            if not bool((good := x.isfinite().all(dim=1)).all()):
                row = int((~good).nonzero()[0])
                raise DataError(
                    f"{name}: the activation in row {row} is not finite (NaN or infinite), as are "
                    f"{int((~good).sum()) - 1} others. Drop those rows first."
                )
        lengths = {name: len(x) for name, x in self._activations.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(
                f"Paired activations must have the same number of rows; got {lengths}."
            )
        self.widths = {name: x.shape[1] for name, x in self._activations.items()}
        self.sizes = [next(iter(lengths.values()))]

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        """The tensors themselves."""
        del chunk
        return {name: self._activations[name] for name in hooks}

    def addresses(self, chunk: int) -> Addresses:
        """Addresses are not known; row is the index."""
        return Addresses.unknown(self.sizes[chunk])

    def planned(self, chunk: int) -> Addresses:
        """The same as `addresses`."""
        return self.addresses(chunk)

    def tokens(self) -> None:
        """There are none."""

    def identity(self) -> dict[str, Any]:
        """The SHA-256 of the numbers."""
        digest = hashlib.sha256()
        for name, x in self._activations.items():
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            for part in x.split(65536):
                digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {
            "kind": "memory",
            "model": None,
            "corpus": [],
            "tokens": [],
            "hooks": list(self.widths),
            "sha256": digest.hexdigest(),
        }


@final
class StreamSource:
    """A model that is run whenever rows are needed; one chunk is one forward pass.

    Sizes must be known without running the model, so an outlier is replaced by the nearest earlier
    ordinary position of its batch instead of being dropped.
    """

    in_background = False  # the caller may use the model at the same time

    def __init__(self, capture: Capture) -> None:
        """Stream what `capture` gives."""
        self._capture = capture
        self.widths = {hook: capture.widths[hook] for hook in capture.hooks}
        self.sizes = capture.sizes
        self._last: tuple[int, Captured] | None = None

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Run the model on a chunk, unless it was the last one run."""
        activations = self._run(chunk).activations
        return {name: activations[name] for name in hooks}

    def addresses(self, chunk: int) -> Addresses:
        """Run the model on a chunk, unless it was the last one run."""
        return self._run(chunk).addresses

    def planned(self, chunk: int) -> Addresses:
        """Addresses before outliers are replaced; runs nothing."""
        return self._capture.planned(chunk)

    def tokens(self) -> Tokens:
        """The tokens streamed."""
        return self._capture.tokens

    def identity(self) -> dict[str, Any]:
        """Model, corpus and configuration."""
        tokens, config = self._capture.tokens, self._capture.config
        model = self._capture.model.identity.to_json()
        parts = [
            model,
            tokens.sha256,
            list(self.widths),
            repr(config),
            str(self._capture.model.dtype),
        ]
        return {
            "kind": "stream",
            "model": model,
            "corpus": [tokens.corpus],
            "tokens": [tokens.sha256],
            "hooks": list(self.widths),
            "sha256": hashlib.sha256(repr(parts).encode()).hexdigest(),
        }

    def _run(self, chunk: int) -> Captured:
        if self._last is None or self._last[0] != chunk:
            self._last = chunk, self._capture.run(chunk, replace_outliers=True)
        return self._last[1]


def known_hooks(source: Source, hooks: Sequence[str]) -> tuple[str, ...]:
    """Check that a source has these hook points.

    Raises:
        ConfigError: It lacks one.
    """
    for hook in hooks:
        if hook not in source.widths:
            raise ConfigError(
                f"The store has no activations at {hook!r}; it has {', '.join(source.widths)}. "
                "Harvest that hook point into another folder."
            )
    return tuple(hooks)
