"""Can one attribute be exchanged without the others? Interchange interventions on latents.

From the activations of a base and a source entity, latents chosen by a mask m are exchanged,

    h' = h_base + sum over j of m_j (f_source,j - f_base,j) d_j      (error kept)
    h' = decode((1 - m) f_base + m f_source)                          (error dropped)

and the model reads on. A cause pair asks for the exchanged attribute: right is the source's value.
An isolation pair asks for another: right is the base's. The mask is sigmoid(theta / T) while it is
learned by cross-entropy on both kinds of pairs, T falling from 1 to 1e-4, and theta > 0 when it is
tested, on entities it has not seen.

    disentanglement = (cause accuracy + isolation accuracy) / 2;  all or nothing exchanged gives 0.5

Source: Huang et al. 2024, RAVEL; the mask is that of SAEBench, which drops the error by default.
Compare methods with the same choice of error only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = ["Interchange", "InterchangeConfig", "Pairs", "exchanged", "learn_mask", "measure_mask"]

Readout = Callable[[Float[Tensor, "pair d"], Int[Tensor, " pair"]], Float[Tensor, "pair answer"]]
"""What the model makes of edited activations: logits of the answers, for the pairs named."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of a base and a source entity, at the token where the attribute is known."""

    base: Float[Tensor, "pair d"]
    """Activations of the base prompts."""
    source: Float[Tensor, "pair d"]
    """Activations of the source prompts."""
    answer: Int[Tensor, " pair"]
    """The right answer after the exchange."""
    cause: Bool[Tensor, " pair"]
    """Whether the prompt asks for the exchanged attribute, or for another."""
    base_entity: Int[Tensor, " pair"]
    """Which entity the base is."""
    source_entity: Int[Tensor, " pair"]
    """Which entity the source is."""

    def __post_init__(self) -> None:
        lengths = {len(one) for one in vars(self).values()}
        if self.base.shape != self.source.shape or len(lengths) > 1:
            raise ShapeError("All fields of Pairs have one entry a pair.")

    def divided(self, test_share: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Pair numbers to learn from and to test on: no entity is on both sides.

        Pairs of an entity of either side are left out.

        Raises:
            DataError: A side has no pair of one kind.
        """
        entities = torch.cat([self.base_entity, self.source_entity]).unique()
        order = torch.randperm(len(entities), generator=torch.Generator().manual_seed(seed))
        held = entities[order[: max(1, round(test_share * len(entities)))]]
        base, source = torch.isin(self.base_entity, held), torch.isin(self.source_entity, held)
        sides = (~base & ~source).nonzero().flatten(), (base & source).nonzero().flatten()
        for rows in sides:
            if not bool(self.cause[rows].any()) or bool(self.cause[rows].all()):
                raise DataError(
                    f"With {len(held)} of {len(entities)} entities held out, a side lacks cause or "
                    "isolation pairs. Give more pairs, or another test_share."
                )
        return sides


@final
@dataclass(frozen=True, kw_only=True)
class InterchangeConfig:
    """How the mask is learned."""

    n_epochs: int = 20
    """Passes over the pairs to learn from."""
    batch_size: int = 64
    """Pairs a step."""
    lr: float = 1e-2
    """Learning rate of Adam."""
    last_temperature: float = 1e-4
    """Temperature of the last step; the first is 1, and it falls geometrically."""
    keep_error: bool = True
    """Whether the base's reconstruction error stays in place."""
    seed: int = 0
    """Of the order of the pairs."""

    def __post_init__(self) -> None:
        if self.n_epochs < 1 or self.batch_size < 1 or not 0 < self.last_temperature <= 1:
            raise ConfigError(
                f"InterchangeConfig(n_epochs={self.n_epochs}, batch_size={self.batch_size}, "
                f"last_temperature={self.last_temperature}): positive numbers, the last up to 1."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Interchange:
    """What exchanging some latents does."""

    cause: float
    """Share of cause pairs that answer as the source, 0 to 1."""
    isolation: float
    """Share of isolation pairs that still answer as the base, 0 to 1."""
    disentanglement: float
    """Their mean; exchanging everything or nothing has 0.5."""
    n_latents: int
    """Latents exchanged."""
    n_pairs: int
    """Pairs it was measured on."""


def exchanged(
    sae: SAE,
    base: Float[Tensor, "pair d"],
    source: Float[Tensor, "pair d"],
    mask: Float[Tensor, " d_sae"],
    *,
    keep_error: bool = True,
) -> Float[Tensor, "pair d"]:
    """h' of the module's first lines; differentiable in the mask."""
    before, after = sae.encode(base), sae.encode(source)
    columns = torch.cat([before.indices, after.indices]).unique().long()
    old, new = _columns(before, columns), _columns(after, columns)
    directions = sae.W_dec.detach()[columns] / sae.normalization.scale_out
    start = base if keep_error else sae.decode(before, base)
    return start + ((new - old) * mask[columns]) @ directions


def learn_mask(
    sae: SAE,
    pairs: Pairs,
    rows: Int[Tensor, " pair"],
    readout: Readout,
    config: InterchangeConfig | None = None,
) -> Bool[Tensor, " d_sae"]:
    """Learn which latents to exchange, from the pairs in `rows`.

    Args:
        sae: An autoencoder.
        pairs: All pairs.
        rows: Those it may look at (`Pairs.divided`).
        readout: The model from here on; must let gradients through.
        config: Settings.
    """
    config = config or InterchangeConfig()
    if sae.is_transcoder:
        raise ConfigError("Interchange needs a dictionary that writes where it reads.")
    theta = torch.zeros(sae.d_sae, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=config.lr)
    generator = torch.Generator().manual_seed(config.seed)
    n_steps = config.n_epochs * -(-len(rows) // config.batch_size)
    step = 0
    for _ in range(config.n_epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(config.batch_size):
            temperature = config.last_temperature ** (step / max(1, n_steps - 1))
            mask = torch.sigmoid(theta / temperature)
            edited = exchanged(
                sae, pairs.base[batch], pairs.source[batch], mask, keep_error=config.keep_error
            )
            loss = torch.nn.functional.cross_entropy(readout(edited, batch), pairs.answer[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return theta.detach() > 0


@torch.no_grad()
def measure_mask(
    sae: SAE,
    pairs: Pairs,
    rows: Int[Tensor, " pair"],
    readout: Readout,
    mask: Bool[Tensor, " d_sae"],
    *,
    keep_error: bool = True,
    batch_size: int = 64,
) -> Interchange:
    """Exchange the masked latents of the pairs in `rows` and count right answers."""
    right = []
    for batch in rows.split(batch_size):
        edited = exchanged(
            sae, pairs.base[batch], pairs.source[batch], mask.float(), keep_error=keep_error
        )
        right.append(readout(edited, batch).argmax(-1) == pairs.answer[batch])
    hits, cause = torch.cat(right), pairs.cause[rows]
    if not bool(cause.any()) or bool(cause.all()):
        raise DataError("Disentanglement needs cause pairs and isolation pairs.")
    on_cause, on_others = float(hits[cause].float().mean()), float(hits[~cause].float().mean())
    return Interchange(
        cause=on_cause,
        isolation=on_others,
        disentanglement=(on_cause + on_others) / 2,
        n_latents=int(mask.sum()),
        n_pairs=len(rows),
    )


def _columns(codes: SparseCodes, columns: Int[Tensor, " column"]) -> Float[Tensor, "pair column"]:
    """Some latents, densely: all that are active in a batch."""
    place = torch.searchsorted(columns, codes.indices.long())
    found = codes.values.new_zeros(codes.n_tokens, len(columns))
    found[codes.tokens, place] = codes.values
    return found
