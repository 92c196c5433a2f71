"""On which activations is a dictionary measured, and which of them are left out?

A transcoder is measured on pairs: what it reads and what it should write, at the same positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from saelab.errors import ConfigError
from saelab.fidelity import reconstruct, written_at
from saelab.metrics import ReconstructionMetrics
from saelab.models import LanguageModel
from saelab.positions import edited_positions, measured_norm_limit, recorded_norm_limit
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.tokens import Tokens

__all__ = [
    "EvaluateConfig",
    "Limits",
    "Progress",
    "find_limits",
    "hooks_of",
    "measured_on_model",
    "measured_on_store",
    "recorded",
]

Progress = Callable[..., None]


@final
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much is measured; every number is of the first tokens of the store or of the rows.

    >>> EvaluateConfig(max_tokens=10_000).rows_per_batch
    4
    """

    max_tokens: int = 200_000
    """Activations for reconstruction and sparsity."""
    max_loss_tokens: int = 16_384
    """Token positions for the losses, four full forward passes each; 0 leaves the losses out."""
    rows_per_batch: int = 4
    """Token rows at once; the losses hold two sets of logits of this many rows."""
    chunk: int = 8192
    """Activations encoded at once."""
    max_geometry_latents: int = 16_384
    """Latents whose nearest decoder direction is looked for, evenly spaced; 0 leaves it out."""
    outlier_factor: float | None = 4.0
    """Where no store has recorded a limit: positions with a norm above this many times the median
    are excluded. None keeps all."""
    allow_other_model: bool = False
    """Measure even on a model with other weights than the dictionary was trained on."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        for name in ("max_tokens", "rows_per_batch", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("max_loss_tokens", "max_geometry_latents"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 (leave out) or more.")
        if self.outlier_factor is not None and not self.outlier_factor > 1:
            raise ConfigError(
                f"outlier_factor={self.outlier_factor} would exclude ordinary activations; use a "
                "number above 1 (4 is usual), or None."
            )


Limits = tuple[float | None, float | None]
"""The longest norm that counts: of what is read, and of what a transcoder writes."""


def find_limits(
    sae: SAE,
    store: ActivationStore | None,
    model: LanguageModel | None,
    tokens: Tokens | None,
    config: EvaluateConfig,
) -> Limits:
    """The norm limits of what a dictionary reads and writes: the store's, or measured."""
    found: list[float | None] = []
    for hook in hooks_of(sae):
        known = store.at(hook) if store is not None and hook in store.hooks else store
        limit = None if known is None else recorded_norm_limit(known)
        if limit is None and model is not None and tokens is not None:
            limit = measured_norm_limit(
                model, tokens, hook, config.outlier_factor, config.rows_per_batch
            )
        found.append(limit)
    return found[0], found[-1] if len(found) > 1 else None


def recorded(sae: SAE, limits: Limits) -> dict[str, float | None]:
    """The limits as an evaluation records them."""
    out = {"norm_limit_out": limits[1]} if sae.hook_out is not None else {}
    return {"norm_limit": limits[0], **out}


def hooks_of(sae: SAE) -> list[str]:
    """What is read, and what is written if that is somewhere else."""
    return [str(hook) for hook in dict.fromkeys((sae.hook, written_at(sae)))]


def _add(sae: SAE, metrics: ReconstructionMetrics, x: Tensor, target: Tensor) -> None:
    x = x.to(sae.device).float()
    codes = sae.encode(x)
    metrics.update(target.to(sae.device).float(), reconstruct(sae, codes, x), codes)


def measured_on_store(
    sae: SAE, store: ActivationStore, config: EvaluateConfig, progress: Progress | None
) -> ReconstructionMetrics:
    """Reconstruction and sparsity on the first rows of a store."""
    metrics, total = ReconstructionMetrics(), min(config.max_tokens, store.n_tokens)
    hooks = list(dict.fromkeys((store.hook, sae.hook_out or store.hook)))
    for start in range(0, total, config.chunk):
        found = store.rows(start, min(start + config.chunk, total), hooks).activations
        _add(sae, metrics, found[hooks[0]], found[hooks[-1]])
        if progress is not None:
            progress(metrics.n_tokens, total, "reconstruction")
    return metrics


def measured_on_model(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    limits: Limits,
    config: EvaluateConfig,
    progress: Progress | None,
) -> tuple[ReconstructionMetrics, dict[str, int]]:
    """The same on a model's activations, and how many positions were left out."""
    metrics, visited, hooks = ReconstructionMetrics(), 0, hooks_of(sae)
    kept = 0
    for start in range(0, tokens.n_rows, config.rows_per_batch):
        part = tokens[start : start + config.rows_per_batch]
        ids = part.ids.to(model.device, torch.int64)
        found = model.activations(ids, hooks, _mask(part))
        where = edited_positions(found[hooks[0]], part.kept, limits[0])
        where &= edited_positions(found[hooks[-1]], part.kept, limits[len(hooks) - 1])
        room = config.max_tokens - metrics.n_tokens
        chosen = [found[hook][where][:room].split(config.chunk) for hook in (hooks[0], hooks[-1])]
        for x, target in zip(*chosen, strict=True):
            _add(sae, metrics, x, target)
        visited, kept = visited + part.n_tokens, kept + int(where.sum())
        if progress is not None:
            progress(metrics.n_tokens, min(config.max_tokens, tokens.n_kept), "reconstruction")
        if metrics.n_tokens >= config.max_tokens:
            break
    return metrics, {"visited": visited, "positions": visited - kept}


def _mask(tokens: Tokens) -> Tensor | None:
    return tokens.mask if tokens.padded else None
