"""How do several hook points, or two models' stores, become one place to read?

`joined` puts the activations of several hook points side by side, as a crosscoder reads them.
`paired` makes one store of the stores that different models gave of the same tokens, keeping the
positions that all of them kept.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.errors import ConfigError, StoreError
from saelab.store.activations import ActivationStore
from saelab.store.addresses import Addresses
from saelab.store.sources import Source, known_hooks
from saelab.tokens import Tokens

__all__ = ["joined", "paired"]


def joined(
    store: ActivationStore, hooks: Sequence[str], scales: Sequence[float] | None = None
) -> ActivationStore:
    """A view of a store in which some hook points are one, side by side, each times its scale.

    Args:
        store: Its own hook points stay readable.
        hooks: In the order of the columns.
        scales: One for each hook point; 1 if not given.

    Returns:
        The view; its `hook` is the joined one, called "a + b".

    Raises:
        ConfigError: The store lacks a hook point, or one is named twice.

    >>> store = ActivationStore.from_tensor({"a": torch.ones(3, 2), "b": torch.ones(3, 1)})
    >>> view = joined(store, ["a", "b"], [1.0, 4.0])
    >>> view.hook, view.d_in, view.rows(0, 1).activations.tolist()
    ('a + b', 3, [[1.0, 1.0, 4.0]])
    """
    if not hooks or len(set(hooks)) < len(hooks):
        raise ConfigError(f"joined({list(hooks)}): name at least one hook point, each once.")
    known_hooks(store.source, hooks)
    factors = [1.0] * len(hooks) if scales is None else list(scales)
    source = _JoinedSource(store.source, list(zip(hooks, factors, strict=True)))
    return ActivationStore(source, source.hook, store.n_chunks)


def paired(stores: Mapping[str, ActivationStore]) -> ActivationStore:
    """One store of several models' stores of the same tokens; hook points are "model:hook".

    A position that one of the stores lacks, because its norm was an outlier there, is left out.

    Args:
        stores: By the name each model shall have; harvested with the same rows, batches and seed.

    Raises:
        StoreError: They hold different tokens, or are cut into shards differently.
    """
    if len(stores) < 2:
        raise ConfigError(f"paired({list(stores)}) needs at least two stores.")
    source = _PairedSource(dict(stores))
    return ActivationStore(source, next(iter(source.widths)), len(source.sizes))


@final
class _JoinedSource:
    """A source with one more hook point, made of others."""

    def __init__(self, base: Source, parts: list[tuple[str, float]]) -> None:
        self.base, self.parts = base, parts
        self.hook = " + ".join(hook for hook, _ in parts)
        total = sum(base.widths[hook] for hook, _ in parts)
        self.widths = {self.hook: total, **base.widths}
        self.sizes, self.in_background = base.sizes, base.in_background

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        own = [hook for hook, _ in self.parts] if self.hook in hooks else []
        wanted = list(dict.fromkeys([*own, *(hook for hook in hooks if hook != self.hook)]))
        found = self.base.read(chunk, wanted)
        if own:
            pieces = [found[hook] * scale for hook, scale in self.parts]
            found[self.hook] = torch.cat(pieces, dim=1)
        return {hook: found[hook] for hook in hooks}

    def addresses(self, chunk: int) -> Addresses:
        return self.base.addresses(chunk)

    def planned(self, chunk: int) -> Addresses:
        return self.base.planned(chunk)

    def tokens(self) -> Tokens | None:
        return self.base.tokens()

    def identity(self) -> dict[str, Any]:
        sites = [{"hook": hook, "scale": scale} for hook, scale in self.parts]
        return {**self.base.identity(), "sites": sites}


@final
class _PairedSource:
    """The rows that several sources share."""

    in_background = False

    def __init__(self, stores: dict[str, ActivationStore]) -> None:
        self._sources = {name: store.source for name, store in stores.items()}
        first = next(iter(self._sources.values()))
        for name, source in list(self._sources.items())[1:]:
            if source.identity()["tokens"] != first.identity()["tokens"]:
                raise StoreError(
                    f"The stores of {', '.join(stores)} hold different tokens ({name} differs "
                    "from the first). Harvest each model on the same saved tokens."
                )
            addressed = bool(source.identity()["tokens"])
            if len(source.sizes) != len(first.sizes) or (
                not addressed and source.sizes != first.sizes
            ):
                raise StoreError(
                    f"The stores of {', '.join(stores)} are cut differently ({name}: "
                    f"{len(source.sizes)} shards of {sum(source.sizes)} rows; the first: "
                    f"{len(first.sizes)} of {sum(first.sizes)}). Harvest them with the same "
                    "rows_per_batch, tokens_per_shard and seed."
                )
        self._shared = [self._match(chunk) for chunk in range(len(first.sizes))]
        self.sizes = [len(next(iter(kept.values()))) for kept in self._shared]
        self.widths = {
            f"{name}:{hook}": width
            for name, source in self._sources.items()
            for hook, width in source.widths.items()
        }

    def _match(self, chunk: int) -> dict[str, Int[Tensor, " token"]]:
        """Of each source's rows in a chunk, those that all have, in the first one's order."""
        keys = {name: _keys(s.addresses(chunk)) for name, s in self._sources.items()}
        common = reduce(lambda one, other: one[torch.isin(one, other)], keys.values())
        if not len(common):
            raise StoreError(
                f"Shard {chunk} of the stores of {', '.join(self._sources)} has no position in "
                "common. Harvest them with the same rows_per_batch, tokens_per_shard and seed."
            )
        found = {}
        for name, key in keys.items():
            order = key.argsort()
            found[name] = order[torch.searchsorted(key[order], common)]
        return found

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        wanted: dict[str, list[str]] = {}
        for hook in hooks:
            name, _, own = hook.partition(":")
            wanted.setdefault(name, []).append(own)
        found = {}
        for name, own in wanted.items():
            for hook, x in self._sources[name].read(chunk, own).items():
                found[f"{name}:{hook}"] = x.index_select(0, self._shared[chunk][name])
        return {hook: found[hook] for hook in hooks}

    def addresses(self, chunk: int) -> Addresses:
        name, source = next(iter(self._sources.items()))
        return source.addresses(chunk)[self._shared[chunk][name]]

    def planned(self, chunk: int) -> Addresses:
        return self.addresses(chunk)

    def tokens(self) -> Tokens | None:
        return next(iter(self._sources.values())).tokens()

    def identity(self) -> dict[str, Any]:
        parts = {name: source.identity() for name, source in self._sources.items()}
        first = next(iter(parts.values()))
        return {
            "kind": "paired",
            "model": None,
            "models": {name: part["model"] for name, part in parts.items()},
            "corpus": first["corpus"],
            "tokens": first["tokens"],
            "hooks": list(self.widths),
            "sha256": hashlib.sha256(
                repr([(name, part["sha256"]) for name, part in parts.items()]).encode()
            ).hexdigest(),
        }


def _keys(addresses: Addresses) -> Int[Tensor, " token"]:
    """One number a position."""
    return addresses.row.long() * (1 << 32) + addresses.position.long()
