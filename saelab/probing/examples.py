"""How do texts become the rows a probe reads? One pass of the model, pooled at several places.

Every text is a row of its own: BOS, then its last `max_length` tokens. Position 0, special tokens
and outliers of norm count nowhere, in no pooling, and the same tokens count at every hook point.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.models import LanguageModel
from saelab.probing.pooling import Pooling, pool, pool_codes, two_halves
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.sparse_codes import SparseCodes

__all__ = ["Examples", "read_examples"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Pooled rows of some texts."""

    rows: NDArray[Any]
    """Which texts they are of: a text without a token that counts has no row."""
    activations: dict[str, Float[Tensor, "example _"]]
    """Hook point -> pooled activations."""
    latents: SparseCodes | None
    """Pooled latents; the negative tails follow at d_sae where they were kept apart."""
    n_tokens: int
    """Tokens that counted."""
    n_outliers: int
    """Tokens left out because of their norm."""


def read_examples(
    model: LanguageModel,
    texts: Sequence[str],
    hooks: Sequence[str],
    how: Pooling,
    *,
    sae: SAE | None = None,
    halves: bool = False,
    max_length: int = 128,
    rows_per_batch: int = 16,
    outlier_factor: float | None = 4.0,
    progress: Callable[[int, int], object] | None = None,
) -> Examples:
    """Run texts through the model and pool activations and latents.

    Args:
        model: Reads the texts.
        texts: One row each.
        hooks: Where activations are pooled.
        how: Pooling, of activations and of latents; latents are pooled after encoding.
        sae: Its latents are pooled too, of its own hook point.
        halves: Pool the two tails of signed latents apart (`two_halves`).
        max_length: Tokens of a text that are read, its last ones; the BOS comes on top.
        rows_per_batch: Texts a pass.
        outlier_factor: Tokens of norm above this many medians at the first place read do not
            count; None for all.
        progress: Called with (texts done, texts).

    Raises:
        ConfigError: Nothing is asked for, or the dictionary names no hook point.
        DataError: No text has a token that counts.
    """
    places = _places(model, hooks, sae)
    ids = [model.encode(text)[-max_length:] for text in texts]
    order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: (len(ids[i]), i))
    limit: float | None = None
    parts: list[_Part] = []
    # the batch of the middle length first: its median norm sets the limit
    starts = list(range(0, len(order), rows_per_batch))
    starts = starts[len(starts) // 2 :] + starts[: len(starts) // 2]
    for done, start in enumerate(starts):
        chosen = order[start : start + rows_per_batch]
        tokens, mask, counts = _batch(model, [ids[i] for i in chosen])
        found = model.activations(tokens, places, mask)
        norms = found[places[0]].float().norm(dim=-1)
        if limit is None and outlier_factor is not None and bool(counts.any()):
            limit = outlier_factor * float(norms[counts].median())
        calm = counts if limit is None else counts & (norms <= limit)
        parts.append(_pooled(found, hooks, calm, chosen, how, sae, halves))
        parts[-1].n_outliers = int(counts.sum() - calm.sum())
        if progress is not None:
            progress(min(len(order), (done + 1) * rows_per_batch), len(order))
    return _sorted(parts, hooks, sae is not None)


@dataclass(eq=False)
class _Part:
    rows: Int[Tensor, " example"]
    activations: dict[str, Tensor]
    latents: SparseCodes | None
    n_tokens: int
    n_outliers: int = 0


def _places(model: LanguageModel, hooks: Sequence[str], sae: SAE | None) -> list[str]:
    if sae is not None:
        if sae.hook is None:
            raise ConfigError("The dictionary does not say which hook point it reads.")
        require_same_model(sae, model.identity.to_json())
    places = [*([sae.hook] if sae is not None and sae.hook else []), *hooks]
    if not places:
        raise ConfigError("read_examples was given neither a hook point nor a dictionary.")
    return list(dict.fromkeys(places))


def _batch(
    model: LanguageModel, ids: Sequence[Sequence[int]]
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Token ids, the mask of real ones, and which count."""
    first = [] if model.bos_token_id is None else [model.bos_token_id]
    length = max(map(len, ids)) + len(first)
    tokens = torch.zeros(len(ids), length, dtype=torch.long)
    mask = torch.zeros(len(ids), length, dtype=torch.bool)
    for row, own in enumerate(ids):
        whole = torch.tensor([*first, *own])
        tokens[row, : len(whole)], mask[row, : len(whole)] = whole, True
    special = torch.tensor(sorted(model.special_token_ids), dtype=torch.long)
    counts = mask & ~torch.isin(tokens, special)
    counts[:, 0] = False
    device = model.device
    return tokens.to(device), mask.to(device), counts.to(device)


def _pooled(
    found: Mapping[str, Tensor],
    hooks: Sequence[str],
    counts: Bool[Tensor, "row pos"],
    chosen: Sequence[int],
    how: Pooling,
    sae: SAE | None,
    halves: bool,
) -> _Part:
    whole = counts.any(1)
    counts = counts[whole]
    example = torch.arange(len(counts), device=counts.device)[:, None].expand_as(counts)[counts]
    rows = torch.tensor(chosen)[whole.cpu()]
    if not len(rows):
        return _Part(rows, {}, None, 0)
    pooled = {hook: pool(found[hook][whole][counts].float(), example, how).cpu() for hook in hooks}
    latents = None
    if sae is not None:
        codes = sae.encode(found[sae.hook or ""][whole][counts])
        codes = two_halves(codes) if halves else codes
        latents = pool_codes(codes, example.to(codes.indices.device), how).to("cpu")
    return _Part(rows, pooled, latents, int(counts.sum()))


def _sorted(parts: Sequence[_Part], hooks: Sequence[str], with_latents: bool) -> Examples:
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        raise DataError("No text has a token that counts, so there is nothing to probe.")
    rows = torch.cat([part.rows for part in parts])
    order = rows.argsort()
    latents = None
    if with_latents:
        codes = SparseCodes.cat([part.latents for part in parts if part.latents is not None])
        latents = _reordered(codes, order)
    return Examples(
        rows=np.asarray(rows[order]),
        activations={
            hook: torch.cat([part.activations[hook] for part in parts])[order] for hook in hooks
        },
        latents=latents,
        n_tokens=sum(part.n_tokens for part in parts),
        n_outliers=sum(part.n_outliers for part in parts),
    )


def _reordered(codes: SparseCodes, order: Int[Tensor, " example"]) -> SparseCodes:
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return SparseCodes.from_pairs(
        place[codes.tokens.long()], codes.indices.long(), codes.values, len(order), codes.d_sae
    )
