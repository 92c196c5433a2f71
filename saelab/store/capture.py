"""Which activations does one forward pass give to a store?

Token rows are visited in a seeded permutation, so every run of batches is a random sample of the
corpus. Of a batch, only the positions that `Tokens.kept` marks are taken (not the
beginning-of-sequence token, whose norm is hundreds of times the others', nor padding), then
positions whose norm at any hook point exceeds `outlier_factor` times the median norm there are
refused. The median is measured once, on the first batch, so what is kept never depends on where a
harvest was interrupted.

A name that ends in .grad means the gradient of the model's summed next-token loss at that hook
point, stored in rows aligned with the activations; nothing is refused for a gradient's norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.models import LanguageModel
from saelab.models.loss_gradients import loss_gradients
from saelab.store.addresses import Addresses
from saelab.store.shuffling import seeded_permutation
from saelab.tokens import Tokens

__all__ = ["GRADIENT", "STORAGE_DTYPES", "Capture", "Captured", "HarvestConfig", "canonical_hooks"]

GRADIENT = ".grad"
"""What is put after a hook point's name for the gradient of the model's loss there."""

STORAGE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@final
@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """How activations are harvested; the same configuration always gives the same bytes.

    >>> HarvestConfig(dtype="float32").rows_per_batch
    16
    """

    rows_per_batch: int = 16
    """Token rows (contexts) in one forward pass."""
    tokens_per_shard: int = 65536
    """Token positions visited for one shard, rounded down to whole batches but at least one. One
    shard per hook point, and the one being written, are held in memory."""
    dtype: str = "bfloat16"
    """How activations are stored: "bfloat16", "float16" or "float32". bfloat16 costs 3e-4 of the
    variance of a mid-layer residual stream and half the disk of float32."""
    seed: int = 0
    """Seeds the order in which token rows are visited."""
    outlier_factor: float | None = 4.0
    """Positions with a norm above this many times the median norm are dropped: attention sinks,
    one of which outweighs thousands of ordinary activations in a squared error. None keeps all."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        if self.rows_per_batch < 1 or self.tokens_per_shard < 1:
            raise ConfigError(
                f"rows_per_batch={self.rows_per_batch} and tokens_per_shard="
                f"{self.tokens_per_shard} must both be at least 1."
            )
        if self.dtype not in STORAGE_DTYPES:
            raise ConfigError(
                f"dtype={self.dtype!r} cannot be stored; choose one of "
                f"{', '.join(map(repr, STORAGE_DTYPES))}."
            )
        if self.outlier_factor is not None and not self.outlier_factor > 1:
            raise ConfigError(
                f"outlier_factor={self.outlier_factor} would drop ordinary activations: it "
                "multiplies the median norm. Use a number above 1 (4 is usual), or None."
            )

    def batches_per_shard(self, length: int) -> int:
        """Forward passes per shard, for token rows of `length` positions."""
        return max(1, self.tokens_per_shard // (length * self.rows_per_batch))


def canonical_hooks(model: LanguageModel, hooks: Sequence[str] | str) -> list[str]:
    """Canonical names of hook points (and of gradients at them), each once.

    Raises:
        HookPointError: The model has no such hook point.
        ConfigError: None is given, or one is given twice.
    """
    names = [_canonical(model, h) for h in ([hooks] if isinstance(hooks, str) else hooks)]
    if not names:
        raise ConfigError(
            "No hook point was named. Name at least one; model.hook_points() lists them."
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"A hook point is named twice in {', '.join(names)}. Name each once.")
    return names


def _canonical(model: LanguageModel, name: str) -> str:
    plain = name.removesuffix(GRADIENT)
    return model.hook_point(plain).name + name[len(plain) :]


@final
@dataclass(frozen=True, eq=False)
class Captured:
    """What a batch gave."""

    activations: dict[str, Float[Tensor, "token _"]]
    """By hook point, on the CPU, in the storage dtype, rows aligned."""
    addresses: Addresses
    """Where each row came from."""
    n_dropped: int
    """Positions refused because of their norm."""
    dropped: dict[str, int]
    """Of those, how many each hook point refused."""


@final
class Capture:
    """Runs a model over token rows, batch by batch, and keeps what a store wants."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: Tokens,
        hooks: Sequence[str],
        config: HarvestConfig,
        limits: dict[str, float | None] | None = None,
        widths: dict[str, int] | None = None,
    ) -> None:
        """Prepare; runs the model on one batch unless `limits` and `widths` are known.

        Raises:
            DataError: No position of the tokens is kept, or activations are not finite.
        """
        if tokens.n_kept == 0:
            raise DataError(
                f"None of the {tokens.n_tokens} token positions is kept (all are padding or "
                "special tokens), so there is nothing to harvest. Use other text."
            )
        self.model, self.tokens, self.hooks, self.config = model, tokens, tuple(hooks), config
        self.visits = seeded_permutation(tokens.n_rows, "rows", config.seed)
        self.sizes = [
            int(tokens.kept[rows].sum()) for rows in self.visits.split(config.rows_per_batch)
        ]
        self._dtype = STORAGE_DTYPES[config.dtype]
        self.limits, self.widths = limits or {}, widths or {}
        self._measured: tuple[int, dict[str, Tensor]] | None = None
        if limits is None or widths is None:
            self._measure()

    @property
    def n_batches(self) -> int:
        """Forward passes over all the tokens."""
        return len(self.sizes)

    def planned(self, batch: int) -> Addresses:
        """Addresses of a batch before outliers are refused; runs nothing."""
        rows, row, position = self._kept(batch)
        at = rows[row]
        return Addresses(
            self.tokens.document[at, position].to(torch.int32),
            at.to(torch.int32),
            position.to(torch.int32),
            self.tokens.ids[at, position].to(torch.int32),
        )

    def run(self, batch: int, *, replace_outliers: bool = False) -> Captured:
        """Run the model on a batch.

        Args:
            batch: Which one, 0 to `n_batches - 1`.
            replace_outliers: Serve the nearest earlier ordinary position instead of an outlier,
                so that the number of rows is known beforehand (streaming).

        Raises:
            DataError: An activation is not finite, or does not fit the storage dtype.
        """
        addresses = self.planned(batch)
        taken = self._forward(batch)
        self._measured = None
        refused: dict[str, Bool[Tensor, " token"]] = {}
        for hook, x in taken.items():
            norms = self._norms(hook, x, addresses)
            limit = self.limits[hook]
            if limit is not None:
                refused[hook] = (norms > limit).cpu()
        bad = torch.zeros(len(addresses), dtype=torch.bool)
        for one in refused.values():
            bad |= one
        n_dropped = int(bad.sum())
        if n_dropped:
            index = self._substitutes(bad) if replace_outliers else (~bad).nonzero().squeeze(1)
            addresses = addresses[index]
            taken = {hook: x.index_select(0, index.to(x.device)) for hook, x in taken.items()}
        return Captured(
            {hook: self._stored(hook, x, addresses) for hook, x in taken.items()},
            addresses,
            n_dropped,
            {hook: int(refused[hook].sum()) if hook in refused else 0 for hook in self.hooks},
        )

    def _kept(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        start = batch * self.config.rows_per_batch
        rows = self.visits[start : start + self.config.rows_per_batch]
        row, position = self.tokens.kept[rows].nonzero(as_tuple=True)
        return rows, row, position

    def _forward(self, batch: int) -> dict[str, Float[Tensor, "token _"]]:
        """Activations of the kept positions, in the model's dtype, on its device."""
        if self._measured is not None and self._measured[0] == batch:
            return self._measured[1]
        rows, row, position = self._kept(batch)
        device = self.model.device
        if not len(row):
            return {
                hook: torch.empty(0, self.widths[hook], dtype=self.model.dtype, device=device)
                for hook in self.hooks
            }
        # A causal model's kept positions do not depend on what comes after the last of them.
        length = int(position.max()) + 1
        found = self._read(rows, length)
        taken = {}
        for hook in self.hooks:
            x = found[hook]
            if x.ndim != 3:
                raise ShapeError(
                    f"{hook} gave activations of shape {tuple(x.shape)}; a store needs "
                    "[row, position, width]."
                )
            index = (row * x.shape[1] + position).to(device)
            taken[hook] = rearrange(x, "row pos d -> (row pos) d").index_select(0, index)
        return taken

    def _read(self, rows: Tensor, length: int) -> dict[str, Float[Tensor, "row pos _"]]:
        """Activations of the first `length` positions; gradients, of whole rows."""
        ids = self.tokens.ids[rows].to(self.model.device, torch.int64)
        plain = [hook for hook in self.hooks if not hook.endswith(GRADIENT)]
        found = self.model.activations(ids[:, :length], plain) if plain else {}
        if len(plain) < len(self.hooks):
            places = [h.removesuffix(GRADIENT) for h in self.hooks if h.endswith(GRADIENT)]
            # A token is predicted from those before it, unless they are another document's.
            document = self.tokens.document[rows]
            before = document.roll(1, dims=1)
            predicted = (document >= 0) & ((before == document) | (before < 0))
            gradients = loss_gradients(self.model, ids, places, predicted)
            found |= {name + GRADIENT: gradient for name, gradient in gradients.items()}
        return found

    def _measure(self) -> None:
        """Widths and norm limits, from the first batch that keeps anything; it is not run twice."""
        first = next(batch for batch, size in enumerate(self.sizes) if size)
        addresses = self.planned(first)
        factor = self.config.outlier_factor
        self._measured = first, self._forward(first)
        for hook, x in self._measured[1].items():
            self.widths[hook] = x.shape[1]
            norms = self._norms(hook, x, addresses)
            limited = None if hook.endswith(GRADIENT) else factor
            self.limits[hook] = None if limited is None else float(norms.median()) * limited

    def _norms(
        self, hook: str, x: Float[Tensor, "token _"], addresses: Addresses
    ) -> Float[Tensor, " token"]:
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        if len(norms) and not bool(norms.isfinite().all()):
            good = x.isfinite().all(dim=1).cpu()
            _refuse(~good, hook, addresses, "not finite (NaN or infinite)", _FINITE_HINT)
        return norms

    def _stored(
        self, hook: str, x: Float[Tensor, "token _"], addresses: Addresses
    ) -> Float[Tensor, "token _"]:
        stored = x.to(self._dtype)
        largest = torch.finfo(self._dtype).max
        if largest < torch.finfo(x.dtype).max:
            good = stored.isfinite().all(dim=1).cpu()
            _refuse(
                ~good, hook, addresses, f"too large for {self.config.dtype} ({largest:.3g})",
                'Store it as dtype="bfloat16" or "float32".',
            )  # fmt: skip
        return stored.cpu()

    def _substitutes(self, bad: Bool[Tensor, " token"]) -> Int[Tensor, " token"]:
        if bool(bad.all()):
            raise DataError(
                f"All {len(bad)} activations of a batch exceed outlier_factor="
                f"{self.config.outlier_factor} times the median norm. Raise it, or use None."
            )
        index = torch.arange(len(bad)).masked_fill(bad, -1).cummax(0).values
        first_good = int((~bad).nonzero()[0])
        return index.clamp(min=first_good) if first_good else index


_FINITE_HINT = (
    "Check the model's weights, or compute in float32 or bfloat16 instead of float16; nothing "
    "of this shard was stored."
)


def _refuse(
    bad: Bool[Tensor, " token"], hook: str, addresses: Addresses, what: str, remedy: str
) -> None:
    """Raise a DataError that names the first bad activation, if there is one."""
    if not bool(bad.any()):
        return
    one = addresses[bad.nonzero()[:1, 0]]
    raise DataError(
        f"The activation at {hook}, row {int(one.row)}, document {int(one.document)}, position "
        f"{int(one.position)} is {what}, as are {int(bad.sum()) - 1} others of its batch. {remedy}"
    )
