"""What does training read? Which hook points of a store, in which batches, how much at a time."""

from collections.abc import Iterator
from typing import final

from torch import Tensor

from saelab.distributed import Ranks
from saelab.errors import ConfigError
from saelab.sae import SAE
from saelab.store import ActivationStore, Batch
from saelab.training.config import TrainConfig

__all__ = ["TrainingInputs", "slice_tokens"]


@final
class TrainingInputs:
    """The batches of a run, in an order that the store, the seed and the window decide alone.

    Raises:
        ConfigError: The store lacks a hook point, or its width is not the dictionary's.
    """

    def __init__(self, sae: SAE, store: ActivationStore, config: TrainConfig) -> None:
        self._store, self._config = store, config
        self.hooks = _hooks_read(sae, store)
        """The input's hook point, a transcoder's target, and what the selection reads."""
        self._batches: Iterator[Batch[dict[str, Tensor]]] | None = None
        self._cursor = -1

    def after(self, cursor: int) -> Batch[dict[str, Tensor]]:
        """The batch that follows `cursor` rows."""
        if self._batches is None or self._cursor != cursor:
            self._batches = self._store.batches(
                self._config.batch_size,
                seed=self._config.seed,
                cursor=cursor,
                window_tokens=self._config.window_tokens,
                hooks=self.hooks,
            )
        batch = next(self._batches)
        self._cursor = batch.cursor
        return batch


def slice_tokens(config: TrainConfig, ranks: Ranks) -> int | None:
    """Tokens that a process decodes at a time; None for all of its part of a batch.

    Raises:
        ConfigError: A batch cannot be divided that way.
    """
    rows, size = config.batch_size, config.micro_batch_size
    if ranks.divides_tokens:
        ranks.share(rows, "tokens of a batch")
        rows //= ranks.world
    if size is None or size >= rows:
        return None
    if rows % size:
        raise ConfigError(
            f"micro_batch_size={size} must divide the {rows} tokens of a batch that each of "
            f"{ranks.world} processes has."
        )
    return size


def _hooks_read(sae: SAE, store: ActivationStore) -> list[str]:
    """The hook points a step reads: the input's, a transcoder's target, and the selection's own.

    Raises:
        ConfigError: The store lacks one of them, or its width is not the dictionary's.
    """
    if store.d_in != sae.d_in:
        raise ConfigError(
            f"The dictionary reads width {sae.d_in} but the store holds {store.hook} of "
            f"width {store.d_in}. Use SAE(d_in={store.d_in}, ...) or another store."
        )
    hooks = [store.hook]
    if sae.is_transcoder:
        if sae.hook_out is None:
            raise ConfigError(
                f"The dictionary writes width {sae.d_out}, not the {sae.d_in} it reads, but has "
                "no hook_out. Name the hook point it should reconstruct: SAE(hook_out=...)."
            )
        hooks.append(sae.hook_out)
    hooks += sae.activation.reads
    if missing := [name for name in hooks if name not in store.hooks]:
        raise ConfigError(
            f"Training needs {', '.join(missing)}, which the store does not hold; it has "
            f"{', '.join(store.hooks)}. Harvest them together."
        )
    if sae.is_transcoder and store.widths[hooks[1]] != sae.d_out:
        raise ConfigError(
            f"The dictionary writes width {sae.d_out} but the store holds {hooks[1]} of width "
            f"{store.widths[hooks[1]]}. Use SAE(d_out={store.widths[hooks[1]]}, ...)."
        )
    return hooks
