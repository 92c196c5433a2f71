"""What does each head do for an attention dictionary? Where the latents it feeds get their values.

Every active latent's pre-activation is a sum over heads and source positions (`direct`). Summed by
head and by what the source is to the query, over the tokens of a corpus:

    first        position 0
    self         the query's own position
    previous     the one before it
    induction    right after an earlier occurrence of the query's token
    duplicate    an earlier occurrence of the query's token
    other

A source that is several of these is the first of them in this list. Sums are signed, so what one
source adds and another takes away cancels, as it does in the model; what a negative latent gets is
turned round. `chance` is the share each kind would have if every position seen brought the same.

By weights alone, a head's share of a latent is the length of its block of the decoder row: what the
latent writes through it, not what the latent reads from it.

Source: Kissane et al. 2024 (arXiv 2406.17759) for both; kinds after the heads of Olsson et al.
2022, "In-context learning and induction heads".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.attention_circuits.direct import value_biases
from saelab.circuits.freezing import Held, freezing
from saelab.circuits.frozen import torch_model
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.models import LanguageModel
from saelab.models.torch_model import TorchModel
from saelab.sae import SAE
from saelab.same_model import require_same_model

__all__ = ["KINDS", "HeadRole", "decoder_shares", "head_roles", "source_kinds"]

KINDS: tuple[str, ...] = ("first", "self", "previous", "induction", "duplicate", "other")
"""What a source position is to a query."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRole:
    """One head, as the latents it feeds see it."""

    layer: int
    """Its layer."""
    head: int
    """Which of the layer's."""
    share: float
    """Its part of the sum over heads of |what it adds|, 0 to 1."""
    sums: Mapping[str, float]
    """Mean of what it adds to an active latent, b_V left out, by kind of source; in units of
    pre-activations."""
    chance: Mapping[str, float]
    """Share of each kind among the positions seen, 0 to 1; sums to 1."""

    def shares(self) -> dict[str, float]:
        """Each kind's part of the sum over kinds of |sum|, signed; all 0 for a silent head."""
        size = sum(abs(value) for value in self.sums.values())
        return {kind: value / size if size else 0.0 for kind, value in self.sums.items()}

    def role(self, least: float = 0.5) -> str:
        """The kind that holds at least this share, more than twice its chance; else "mixed"."""
        kind, share = max(self.shares().items(), key=lambda one: one[1])
        above = share >= least and share > min(2 * self.chance[kind], 0.99)
        return kind if above and kind != "other" else "mixed"


def decoder_shares(sae: SAE, n_heads: int) -> Float[Tensor, "latent head"]:
    """Each head's part of every decoder row, by length of its block; rows sum to 1.

    h[i, k] = |W_dec[i, block k]| / sum over heads j of |W_dec[i, block j]|

    Args:
        sae: A dictionary of `attn.hook_z`, all heads side by side.
        n_heads: Query heads of the layer.

    Raises:
        ShapeError: The width is no multiple of the number of heads.

    >>> decoder_shares(SAE(4, 2), 2).sum(1).round(decimals=4).tolist()
    [1.0, 1.0]
    """
    if n_heads < 1 or sae.d_out % n_heads:
        raise ShapeError(
            f"{n_heads} heads do not divide {sae.d_out} coordinates. Give the number of query "
            "heads, and a dictionary of attn.hook_z."
        )
    lengths = sae.W_dec.detach().unflatten(1, (n_heads, -1)).norm(dim=2)
    return lengths / lengths.sum(1, keepdim=True).clamp_min(torch.finfo(lengths.dtype).tiny)


def source_kinds(tokens: Int[Tensor, " pos"]) -> Int[Tensor, "query source"]:
    """What each source is to each query, as a place in `KINDS`; -1 where it is not seen.

    >>> source_kinds(torch.tensor([9, 5, 6, 5])).tolist()[3]
    [0, 4, 2, 1]
    """
    n = len(tokens)
    query, source = torch.arange(n)[:, None], torch.arange(n)[None]
    same = tokens.cpu()[:, None] == tokens.cpu()[None]
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    kinds = torch.full((n, n), KINDS.index("other"))
    kinds[same] = KINDS.index("duplicate")
    kinds[after] = KINDS.index("induction")
    kinds[source == query - 1] = KINDS.index("previous")
    kinds[source == query] = KINDS.index("self")
    kinds[:, 0] = KINDS.index("first")
    return kinds.masked_fill(source > query, -1)


@torch.no_grad()
def head_roles(
    model: LanguageModel, sae: SAE, tokens: Int[Tensor, "row pos"], *, first_query: int = 1
) -> list[HeadRole]:
    """Where the latents of an attention dictionary get their values, head by head.

    Args:
        model: A transformers model.
        sae: A dictionary of some layer's `attn.hook_z`.
        tokens: Rows of one length, BOS included where the model has one; no padding.
        first_query: Position from which latents count.

    Raises:
        ConfigError: The dictionary does not read heads before W_O.
        DataError: No latent is active.
        ModelError: The model is none of transformers, or not the dictionary's.
    """
    layer, n_kinds = _layer_of(model, sae), len(KINDS)
    opened = torch_model(model)
    b_V = value_biases(opened, tokens[0])[layer]
    total, chance = torch.zeros(0), torch.zeros(n_kinds).double()
    n_active = 0
    for row in tokens:
        z, pattern, values = _attention(opened, row, layer, b_V)
        codes = sae.encode(z)
        kept = codes.tokens >= first_query
        at, latents, signs = codes.tokens[kept], codes.indices[kept], codes.values[kept].sign()
        kinds = source_kinds(row)
        seen = kinds[first_query:]
        counts = torch.stack([(seen == kind).sum(1) for kind in range(n_kinds)], dim=1)
        chance += (counts / counts.sum(1, keepdim=True)).double().sum(0)
        found = _by_kind(sae, pattern, values, at, latents, signs, kinds)
        total = found if not len(total) else total + found
        n_active += len(at)
    if not n_active:
        raise DataError("No latent is active on these tokens. Give more, or other, rows.")
    mean = total / n_active
    share = mean.abs().sum(1) / mean.abs().sum()
    expected = MappingProxyType(dict(zip(KINDS, (chance / chance.sum()).tolist(), strict=True)))
    return [
        HeadRole(
            layer=layer,
            head=head,
            share=float(share[head]),
            sums=MappingProxyType(dict(zip(KINDS, mean[head].tolist(), strict=True))),
            chance=expected,
        )
        for head in range(len(mean))
    ]


def _by_kind(
    sae: SAE,
    pattern: Float[Tensor, "head query source"],
    values: Float[Tensor, "source head d_head"],
    at: Int[Tensor, " active"],
    latents: Int[Tensor, " active"],
    signs: Float[Tensor, " active"],
    kinds: Int[Tensor, "query source"],
) -> Float[Tensor, "head kind"]:
    """Sum over active latents of what each head adds, by kind of source; one query at a time."""
    directions = (sae.W_enc.detach().T * sae.normalization.scale_in).to(values)
    found = values.new_zeros(values.shape[1], len(KINDS) + 1)
    for query in at.unique().tolist():
        # What a query's latents get together is what their directions' sum gets.
        mine = at == query
        direction = (signs[mine].to(values) @ directions[latents[mine]]).unflatten(
            0, values.shape[1:]
        )
        added = pattern[:, query] * torch.einsum("hd,shd->hs", direction, values)
        found.index_add_(1, kinds[query] % (len(KINDS) + 1), added)
    return found[:, :-1].double()


def _attention(
    model: TorchModel,
    row: Int[Tensor, " pos"],
    layer: int,
    b_V: Float[Tensor, "key_head d_head"],
) -> tuple[
    Float[Tensor, "pos width"],
    Float[Tensor, "head query source"],
    Float[Tensor, "source head d_head"],
]:
    """Heads side by side, the pattern, and values less b_V once a query head, of one row."""
    held, hook = Held(), f"blocks.{layer}.attn.hook_z"
    with freezing(model.module, held, norms=False):
        z = model.activations(row[None], [hook])[hook][0]
    pattern, values = held.patterns[layer][0], held.values[layer][0].transpose(0, 1) - b_V
    return z, pattern, values.repeat_interleave(len(pattern) // values.shape[1], dim=1)


def _layer_of(model: LanguageModel, sae: SAE) -> int:
    require_same_model(sae, model.identity.to_json())
    point = None if sae.hook is None else model.hook_point(sae.hook)
    if point is None or point.kind != "attn_z" or point.layer is None:
        raise ConfigError(
            f"Head roles need a dictionary of heads before W_O, 'blocks.L.attn.hook_z'; this one "
            f"reads {sae.hook}."
        )
    return point.layer
