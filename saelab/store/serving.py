"""How do windows of rows become batches?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import torch
from torch import Tensor

from saelab.store.addresses import Addresses
from saelab.store.shuffling import Window
from saelab.store.sources import MemorySource, Source

__all__ = ["Batch", "Rows", "load_window", "serve"]

Held = TypeVar("Held", Tensor, dict[str, Tensor])


@final
@dataclass(frozen=True, eq=False)
class Batch(Generic[Held]):
    """Rows to train on."""

    activations: Held
    """float32 [batch, width]; a dict of them by hook point when several were asked for."""
    cursor: int
    """Rows served up to and including this batch; pass it back to go on from here."""


@final
@dataclass(frozen=True, eq=False)
class Rows(Generic[Held]):
    """Rows in stored order, with their addresses."""

    activations: Held
    """float32 [token, width]; a dict of them by hook point when several were asked for."""
    addresses: Addresses
    """Document, row, position and token id of each."""


def load_window(
    source: Source, window: Window, hooks: Sequence[str], device: torch.device | str | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Assemble a window: its rows in chunk order, and the order to serve them in."""
    order = window.order()
    if isinstance(source, MemorySource):
        held = source.read(0, hooks)
    else:
        held, start = {}, 0
        for chunk in window.chunks:
            for hook, x in source.read(chunk, hooks).items():
                if hook not in held:
                    held[hook] = x.new_empty(window.size, x.shape[1])
                held[hook][start : start + len(x)] = x
            start += source.sizes[chunk]
    held = {hook: x.to(device or x.device) for hook, x in held.items()}
    return held, order.to(next(iter(held.values())).device)


def serve(
    loaded: Iterator[tuple[dict[str, Tensor], Tensor]], batch_size: int, cursor: int
) -> Iterator[Batch[dict[str, Tensor]]]:
    """Cut the endless concatenation of windows into batches of float32."""
    waiting: dict[str, list[Tensor]] = {}
    missing = batch_size
    while True:
        held, order = next(loaded)
        while len(order):
            index, order = order[:missing], order[missing:]
            for hook in held:  # no name is given to a window's tensor: it would outlive the window
                rows = held[hook].index_select(0, index).float()
                waiting.setdefault(hook, []).append(rows)
            missing -= len(index)
            if not missing:
                cursor += batch_size
                ready = {h: p[0] if len(p) == 1 else torch.cat(p) for h, p in waiting.items()}
                waiting, missing = {}, batch_size
                yield Batch(ready, cursor)
                del ready
        del held, order  # so that at most two windows are in memory
