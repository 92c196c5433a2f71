"""How do a model's activations get into a store on disk, once and for all?

Token rows are visited in a seeded permutation and cut into shards of a fixed number of forward
passes. A shard's bytes therefore depend on nothing but the model, the tokens and the
configuration, and a harvest that was interrupted, even by `kill -9` or a full disk, continues with
the first shard the manifest does not list and ends with the same files.

One shard is filled while the previous one is hashed, written and synced in a second thread.
"""

import difflib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.errors import ConfigError, CorpusError, Interrupted, StoreError
from saelab.files import check_disk, folder_lock, provenance
from saelab.models import LanguageModel
from saelab.store.activations import ActivationStore
from saelab.store.addresses import Addresses, shifted
from saelab.store.capture import Capture, Captured, HarvestConfig, canonical_hooks
from saelab.store.manifest import (
    ADDRESSES,
    NAME,
    TOKENS,
    HookRecord,
    Manifest,
    SegmentRecord,
    ShardRecord,
    hook_folders,
)
from saelab.store.resuming import (
    compute_of,
    lost_shards,
    refuse_differences,
    refuse_other_content,
    remove_leftovers,
)
from saelab.store.shards import estimate_bytes, shard_path, write_shard_file
from saelab.tokens import Tokens

__all__ = ["HarvestConfig", "estimate_bytes", "harvest"]

Progress = Callable[[int, int], None]


def harvest(
    model: LanguageModel,
    tokens: Tokens,
    hooks: Sequence[str] | str,
    folder: str | Path,
    *,
    config: HarvestConfig | None = None,
    append: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> ActivationStore:
    """Store the model's activations on these tokens, at several hook points in one forward pass.

    Run the same command again after an interruption and it continues; run it on a finished folder
    and it only opens it.

    Args:
        model: Runs up to the last hook point's layer and no further, in its own dtype.
        tokens: What to run it on; only `tokens.kept` positions are stored.
        hooks: Hook points, any spelling the model knows.
        folder: Where the store goes, or is continued.
        config: How to harvest; its fields may also be given as keywords.
        append: Add these tokens to a finished store instead of refusing them.
        progress: Called with (tokens done, tokens in all) after every forward pass.
        **overrides: Fields of `HarvestConfig`.

    Returns:
        The store, opened.

    Raises:
        StoreError: The folder holds something else, or a store of other settings.
        DataError: An activation is not finite, or does not fit the storage dtype.
        DiskFullError: There is no room; finished shards are kept.
        FolderBusyError: Another process is writing the folder.
        Interrupted: The work was stopped by a signal; finished shards are kept.
    """
    config = _configured(config or HarvestConfig(), overrides)
    names = canonical_hooks(model, hooks)
    folder = Path(folder)
    refuse_other_content(folder)
    with folder_lock(folder):
        job = _Job(model, tokens, names, folder, config, append)
        try:
            job.run(progress)
        except KeyboardInterrupt:
            done = Manifest.read(folder) if (folder / NAME).exists() else None
            count = f"{len(done.shards)} of {done.n_shards}" if done else "0"
            raise Interrupted(
                f"The harvest into {folder} was stopped; {count} shards are finished and kept. "
                "Run the same command again to go on."
            ) from None
    return ActivationStore.open(folder)


@final
class _Job:
    """One harvest of one segment, with the folder locked."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        hooks: list[str],
        folder: Path,
        config: HarvestConfig,
        append: bool,
    ) -> None:
        self.model, self.tokens, self.hooks = model, tokens, hooks
        self.folder, self.config = folder, config
        remove_leftovers(folder)
        if (folder / NAME).exists():
            self.manifest = Manifest.read(folder)
            refuse_differences(folder, self.manifest, model, hooks, config)
            self.manifest = self.manifest.without_shards(lost_shards(folder, self.manifest))
        else:
            self.manifest = self._new_manifest()
        self.segment = self._find_segment(append)

    def run(self, progress: Progress | None) -> None:
        """Finish every shard of the segment."""
        todo = self._todo()
        if not todo:
            return
        known = {hook.name: hook for hook in self.manifest.hooks}
        capture = Capture(
            self.model,
            self.tokens,
            self.hooks,
            self.config,
            {name: hook.norm_limit for name, hook in known.items()} or None,
            {name: hook.width for name, hook in known.items()} or None,
        )
        self._begin(capture, todo)
        per_shard = self.config.batches_per_shard(self.tokens.length)
        ranges = {
            index: range(
                per_shard * (index - self.segment.first_shard),
                min(per_shard * (index - self.segment.first_shard + 1), capture.n_batches),
            )
            for index in todo
        }
        total = self.tokens.n_kept
        done = total - sum(capture.sizes[batch] for r in ranges.values() for batch in r)
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="saelab-writer") as pool:
            for index, batches in ranges.items():
                captured = []
                for batch in batches:
                    captured.append(capture.run(batch))
                    done += capture.sizes[batch]
                    if progress is not None:
                        progress(done, total)
                shard = _Shard(self.hooks, captured)
                del captured
                if writing is not None:
                    writing.result()
                writing = pool.submit(self._finish, index, shard)
                del shard
            if writing is not None:
                writing.result()

    def _todo(self) -> list[int]:
        finished = {shard.index for shard in self.manifest.shards}
        first = self.segment.first_shard
        return [i for i in range(first, first + self.segment.n_shards) if i not in finished]

    def _begin(self, capture: Capture, todo: list[int]) -> None:
        """Check the disk, save the tokens and write the manifest, in that order."""
        if not self.manifest.hooks:
            sub_folders = hook_folders(self.hooks)
            self.manifest = replace(
                self.manifest,
                hooks=tuple(
                    HookRecord(name, sub_folder, capture.widths[name], capture.limits[name])
                    for name, sub_folder in zip(self.hooks, sub_folders, strict=True)
                ),
            )
        share = len(todo) / self.segment.n_shards
        needed = estimate_bytes(
            self.tokens,
            [hook.width for hook in self.manifest.hooks],
            self.config.dtype,
            self.config.tokens_per_shard,
        )
        check_disk(self.folder, int(needed * share))
        place = self.folder / self.segment.file
        if not _holds(place, self.tokens):
            self.tokens.save(place)
        if self.segment not in self.manifest.segments:
            segments = (*self.manifest.segments, self.segment)
            self.manifest = replace(self.manifest, segments=segments)
        self.manifest.write(self.folder)

    def _finish(self, index: int, shard: "_Shard") -> None:
        """Write a shard's files, then list it in the manifest."""
        files = {}
        for hook in self.manifest.hooks:
            path = shard_path(self.folder, hook.folder, index)
            stored = {"activations": shard.activations.pop(hook.name)}
            files[hook.folder] = write_shard_file(path, stored)
        addresses = replace(
            shard.addresses,
            row=shard.addresses.row + self.segment.first_row,
            document=shifted(shard.addresses.document, self.segment.first_document),
        )
        path = shard_path(self.folder, ADDRESSES, index)
        files[ADDRESSES] = write_shard_file(path, addresses.tensors())
        record = ShardRecord(index, len(addresses), shard.n_dropped, shard.dropped, files)
        self.manifest = self.manifest.with_shard(record)
        self.manifest.write(self.folder)

    def _new_manifest(self) -> Manifest:
        return Manifest(
            config=asdict(self.config),
            model=self.model.identity.to_json(),
            compute=compute_of(self.model),
            hooks=(),
            provenance=provenance(),
        )

    def _find_segment(self, append: bool) -> SegmentRecord:
        """The segment these tokens are, or begin."""
        for segment in self.manifest.segments:
            if segment.tokens["sha256"] == self.tokens.sha256:
                return segment
        if self.manifest.segments and not append:
            raise StoreError(
                f"{self.folder} was harvested from other tokens. Pass append=True to add these to "
                "it, or choose another folder."
            )
        if self.manifest.segments and not self.manifest.complete:
            raise StoreError(
                f"{self.folder} is not finished ({len(self.manifest.shards)} of "
                f"{self.manifest.n_shards} shards), so nothing can be appended yet. Run the "
                "harvest that was interrupted again first."
            )
        for segment in self.manifest.segments[:1]:
            for name in ("length", "tokenizer"):
                if segment.tokens[name] != getattr(self.tokens, name):
                    raise StoreError(
                        f"{self.folder} was harvested from tokens of {name} "
                        f"{segment.tokens[name]}, and these have {getattr(self.tokens, name)}. "
                        "Make the tokens in the same way, or choose another folder."
                    )
        per_shard = self.config.batches_per_shard(self.tokens.length)
        n_batches = -(-self.tokens.n_rows // self.config.rows_per_batch)
        earlier = self.manifest.segments
        return SegmentRecord(
            tokens={
                "sha256": self.tokens.sha256,
                "n_rows": self.tokens.n_rows,
                "length": self.tokens.length,
                "n_kept": self.tokens.n_kept,
                "n_documents": len(self.tokens.document_names),
                "corpus": self.tokens.corpus,
                "tokenizer": self.tokens.tokenizer,
            },
            file=f"{TOKENS}/{len(earlier):05d}",
            first_shard=self.manifest.n_shards,
            n_shards=-(-n_batches // per_shard),
            first_row=sum(segment.tokens["n_rows"] for segment in earlier),
            first_document=sum(segment.tokens["n_documents"] for segment in earlier),
        )


@final
class _Shard:
    """The batches of one shard, one after the other."""

    def __init__(self, hooks: Sequence[str], captured: Sequence[Captured]) -> None:
        self.activations: dict[str, Tensor] = {
            hook: torch.cat([batch.activations.pop(hook) for batch in captured]) for hook in hooks
        }
        self.addresses = Addresses.cat([batch.addresses for batch in captured])
        self.n_dropped = sum(batch.n_dropped for batch in captured)
        self.dropped = {hook: sum(batch.dropped[hook] for batch in captured) for hook in hooks}


def _configured(config: HarvestConfig, overrides: dict[str, Any]) -> HarvestConfig:
    known = [field.name for field in fields(HarvestConfig)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
            raise ConfigError(f"harvest has no setting {name!r}. {hint}")
    return replace(config, **overrides)


def _holds(place: Path, tokens: Tokens) -> bool:
    try:
        return Tokens.load(place).sha256 == tokens.sha256
    except CorpusError:
        return False
