"""ActivationStore: activations with their addresses, served in shuffled batches or in order.

    store = ActivationStore.open("runs/acts")                  # from disk
    store = ActivationStore.from_tensor(x)                     # from memory
    store = ActivationStore.stream(model, tokens, hooks)       # from the model, nothing stored

All three serve the same interface. Nothing but an integer, the number of rows served, is needed to
go on exactly where a reader stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final, overload

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError, StoreError
from saelab.models import LanguageModel
from saelab.store.addresses import Addresses
from saelab.store.capture import Capture, HarvestConfig, canonical_hooks
from saelab.store.manifest import Manifest
from saelab.store.mixing import Mixing, doubts, measure_mixing
from saelab.store.serving import Batch, Rows, load_window, serve
from saelab.store.shuffling import load_ahead, sampled, windows
from saelab.store.sources import FolderSource, MemorySource, Source, StreamSource, known_hooks
from saelab.tokens import Tokens

__all__ = ["ActivationStore"]

UNNAMED_HOOK = "unnamed"
WINDOW_TOKENS = 262144
_SAMPLED_CHUNKS = 8


@final
@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Activations `[token, d_in]` at one or more hook points, rows aligned across them.

    >>> store = ActivationStore.from_tensor(torch.arange(6.0).reshape(3, 2))
    >>> store.n_tokens, store.d_in
    (3, 2)
    >>> batch = next(store.batches(3))
    >>> batch.cursor, batch.activations.sum().item()
    (3, 15.0)
    """

    source: Source
    """Where the rows come from."""
    hook: str
    """The hook point read unless others are named."""
    n_chunks: int
    """Chunks of the source that belong to this view."""

    @classmethod
    def open(
        cls,
        folder: str | Path,
        hook: str | None = None,
        *,
        verify: Literal["first", "never"] = "first",
        partial: bool = False,
    ) -> "ActivationStore":
        """Open a harvested store.

        Args:
            folder: Where it was harvested.
            hook: The hook point to read; the first one harvested when None.
            verify: "first" hashes each file the first time it is read; "never" only compares
                sizes, types and shapes.
            partial: Accept a harvest that is not finished, and read what there is.

        Raises:
            StoreError: The manifest is missing or altered, or the harvest is not finished.
            ConfigError: The store lacks the hook point.
        """
        folder = Path(folder)
        if verify not in ("first", "never"):
            raise ConfigError(f'verify={verify!r} is not known; use "first" or "never".')
        manifest = Manifest.read(folder)
        if not manifest.complete and not partial:
            raise StoreError(
                f"The harvest in {folder} is not finished: {len(manifest.shards)} of "
                f"{manifest.n_shards} shards. Run the same harvest again to finish it, or open it "
                "with partial=True to read what there is."
            )
        return cls._of(FolderSource(folder, manifest, hash_first=verify == "first"), hook)

    @classmethod
    def from_tensor(
        cls, x: Tensor | Mapping[str, Tensor], hook: str | None = None
    ) -> "ActivationStore":
        """Serve activations you already have.

        Args:
            x: `[token, d_in]`; or one such matrix per hook point, rows aligned.
            hook: Name of the hook point, or which of several to read.

        Raises:
            ShapeError: Not a matrix, or matrices of different lengths.
            DataError: Empty, or NaN or infinite somewhere.
        """
        named = {hook or UNNAMED_HOOK: x} if isinstance(x, Tensor) else x
        if not named:
            raise ConfigError("from_tensor was given no activations at all.")
        return cls._of(MemorySource(named), hook)

    @classmethod
    def stream(
        cls,
        model: LanguageModel,
        tokens: Tokens,
        hooks: Sequence[str],
        config: HarvestConfig | None = None,
    ) -> "ActivationStore":
        """Serve activations straight from the model; nothing is stored on disk.

        Every epoch runs the model again, so a store on disk pays from the second epoch on. An
        outlier (see `HarvestConfig.outlier_factor`) is replaced by the nearest earlier ordinary
        position of its batch, so that the number of rows is known beforehand.

        Raises:
            HookPointError: The model has no such hook point.
            DataError: Nothing to serve, or activations that are not finite.
        """
        names = canonical_hooks(model, hooks)
        capture = Capture(model, tokens, names, config or HarvestConfig())
        return cls._of(StreamSource(capture), None)

    @classmethod
    def _of(cls, source: Source, hook: str | None) -> "ActivationStore":
        hook = next(iter(source.widths)) if hook is None else known_hooks(source, [hook])[0]
        return cls(source, hook, len(source.sizes))

    @property
    def hooks(self) -> list[str]:
        """Every hook point the store has."""
        return list(self.source.widths)

    @property
    def d_in(self) -> int:
        """Width of the activations at `hook`."""
        return self.source.widths[self.hook]

    @property
    def widths(self) -> dict[str, int]:
        """Width at every hook point."""
        return dict(self.source.widths)

    @property
    def n_tokens(self) -> int:
        """Rows, which is also the length of an epoch."""
        return sum(self._sizes)

    @property
    def tokens(self) -> Tokens | None:
        """The tokens harvested, with rows numbered as in the addresses; None in memory."""
        return self.source.tokens()

    @property
    def identity(self) -> dict[str, Any]:
        """What the rows depend on, JSON-able: model, corpus, tokens, hooks, sha256, n_tokens."""
        return {**self.source.identity(), "n_tokens": self.n_tokens}

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of a store on disk, else None."""
        return self.source.manifest if isinstance(self.source, FolderSource) else None

    @property
    def _sizes(self) -> list[int]:
        return self.source.sizes[: self.n_chunks]

    def at(self, hook: str) -> "ActivationStore":
        """The same store, read at another hook point by default."""
        return replace(self, hook=known_hooks(self.source, [hook])[0])

    def take(self, n_tokens: int) -> "ActivationStore":
        """The first chunks of the store, as few as hold at least `n_tokens` rows.

        Shards are random samples of the corpus, and so are the first few of them.
        """
        if not 0 < n_tokens <= self.n_tokens:
            raise ConfigError(
                f"take({n_tokens}) asks for more than the store has, or for nothing; it has "
                f"{self.n_tokens} tokens."
            )
        if isinstance(self.source, MemorySource):
            parts = self.source.read(0, self.hooks)
            return self._of(MemorySource({n: x[:n_tokens] for n, x in parts.items()}), self.hook)
        held = n_chunks = 0
        for size in self._sizes:
            if held >= n_tokens:
                break
            held, n_chunks = held + size, n_chunks + 1
        return replace(self, n_chunks=n_chunks)

    def verify(self) -> None:
        """Check the SHA-256 of every file on disk.

        Raises:
            StoreError: Names the first file that is missing, truncated or altered.
        """
        if isinstance(self.source, FolderSource):
            self.source.verify()

    @overload
    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        cursor: int = 0,
        window_tokens: int = WINDOW_TOKENS,
        hooks: None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch[Tensor]]: ...

    @overload
    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        cursor: int = 0,
        window_tokens: int = WINDOW_TOKENS,
        hooks: Sequence[str],
        device: torch.device | str | None = None,
    ) -> Iterator[Batch[dict[str, Tensor]]]: ...

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        cursor: int = 0,
        window_tokens: int = WINDOW_TOKENS,
        hooks: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch[Tensor]] | Iterator[Batch[dict[str, Tensor]]]:
        """Serve shuffled batches for ever, epoch after epoch, never a short one.

        The order depends on the store, `seed` and `window_tokens` alone; `cursor` rows of it are
        skipped, so that a reader that stopped goes on with the same bits.

        Args:
            batch_size: Rows per batch.
            seed: Seeds the order.
            cursor: Rows served before, as in `Batch.cursor`.
            window_tokens: Rows shuffled together. Two windows are held in memory, in the storage
                dtype; from a disk the next one is read while this one is served.
            hooks: Several hook points, served as a dict with aligned rows; None serves `hook`.
            device: Where windows are held and batches are made; None leaves them where they are.

        Raises:
            ConfigError: A number is out of range, or the store lacks a hook point.
            StoreError: A file is missing, truncated or altered (raised when it is read).
        """
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("window_tokens", window_tokens, 1),
            ("cursor", cursor, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}={value} must be at least {least}.")
        if not self.n_tokens:
            raise DataError("The store holds no tokens: every position was dropped or excluded.")
        names = (self.hook,) if hooks is None else known_hooks(self.source, hooks)
        coming = windows(self._sizes, seed=seed, window_tokens=window_tokens, cursor=cursor)
        loaded = load_ahead(
            coming,
            lambda window: load_window(self.source, window, names, device),
            in_background=self.source.in_background,
        )
        served = serve(loaded, batch_size, cursor)
        if hooks is not None:
            return served
        return (Batch(batch.activations[self.hook], batch.cursor) for batch in served)

    def sample(self, n: int, seed: int = 0) -> Float[Tensor, "row {self.d_in}"]:
        """Random rows in float32, spread over at least 8 shards: `n`, or all there are if fewer."""
        if n < 1:
            raise ConfigError(f"sample({n}) asks for no rows; n must be at least 1.")
        window = sampled(self._sizes, seed=seed, rows=2 * n, least_chunks=_SAMPLED_CHUNKS)
        held, order = load_window(self.source, window, [self.hook], None)
        return held[self.hook].index_select(0, order[:n]).float()

    @overload
    def rows(self, start: int, stop: int, hooks: None = None) -> Rows[Tensor]: ...

    @overload
    def rows(self, start: int, stop: int, hooks: Sequence[str]) -> Rows[dict[str, Tensor]]: ...

    def rows(
        self, start: int, stop: int, hooks: Sequence[str] | None = None
    ) -> Rows[Tensor] | Rows[dict[str, Tensor]]:
        """Rows `start` to `stop` in stored order.

        Raises:
            ConfigError: The range is not within the store.
        """
        if not 0 <= start < stop <= self.n_tokens:
            raise ConfigError(f"rows({start}, {stop}) is not within 0 to {self.n_tokens}.")
        names = (self.hook,) if hooks is None else known_hooks(self.source, hooks)
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        addresses, first = [], 0
        for chunk, size in enumerate(self._sizes):
            low, high = max(start - first, 0), min(stop - first, size)
            first += size
            if low >= high:
                continue
            for name, x in self.source.read(chunk, names).items():
                parts[name].append(x[low:high].to(torch.float32, copy=True))
            addresses.append(self.source.addresses(chunk)[low:high])
        found = {name: torch.cat(part) for name, part in parts.items()}
        where = Addresses.cat(addresses)
        return Rows(found[self.hook], where) if hooks is None else Rows(found, where)

    @overload
    def iterate(self, chunk: int = 8192, hooks: None = None) -> Iterator[Rows[Tensor]]: ...

    @overload
    def iterate(
        self, chunk: int = 8192, *, hooks: Sequence[str]
    ) -> Iterator[Rows[dict[str, Tensor]]]: ...

    def iterate(
        self, chunk: int = 8192, hooks: Sequence[str] | None = None
    ) -> Iterator[Rows[Tensor]] | Iterator[Rows[dict[str, Tensor]]]:
        """All rows once, in stored order, `chunk` at a time; the last one may be shorter."""
        if chunk < 1:
            raise ConfigError(f"chunk={chunk} must be at least 1.")
        ranges = [(s, min(s + chunk, self.n_tokens)) for s in range(0, self.n_tokens, chunk)]
        if hooks is None:
            return (self.rows(start, stop) for start, stop in ranges)
        return (self.rows(start, stop, hooks) for start, stop in ranges)

    def mixing(
        self, batch_size: int = 4096, *, window_tokens: int = WINDOW_TOKENS, seed: int = 0
    ) -> Mixing:
        """Measure how well the first window's batches mix documents and contexts.

        Reads every address (16 bytes a token), and no activations.
        """
        return measure_mixing(
            self.source,
            self._sizes,
            batch_size=batch_size,
            window_tokens=window_tokens,
            seed=seed,
        )

    def warnings(self, batch_size: int, window_tokens: int = WINDOW_TOKENS) -> list[str]:
        """What is doubtful about reading the store this way; reads nothing."""
        return doubts(self.n_tokens, batch_size, window_tokens)
