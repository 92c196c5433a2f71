"""A circuit that training makes every time: induction in two layers of attention.

A small transformer is trained on rows in which a few tokens have a successor, drawn anew for each
row: wherever one comes, its successor follows. Where they come is random too, so that only looking
for what followed before can predict. (Rows that repeat a string do not force this: with positions
to go by, a model may find the period instead.) What it has learned is told by two scores that need
no circuit method:

    previous token      how much a head attends to the position before
    prefix matching     how much it attends to what followed earlier occurrences of its own token

Source: Olsson et al. 2022 (arXiv 2209.11895) for both scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.errors import ConfigError
from saelab.models import LanguageModel, load_model
from saelab.patching.small_transformer import SmallTransformer, SmallTransformerConfig

__all__ = [
    "InductionTraining",
    "prefix_matching_scores",
    "previous_token_scores",
    "successor_rows",
    "train_induction",
]

N_SUCCESSORS = 5
"""Tokens of a row that have a successor, at most."""


@final
@dataclass(frozen=True, kw_only=True)
class InductionTraining:
    """How the small model is trained; the defaults take a minute on one thread."""

    d_vocab: int = 32
    """Token ids; 0 starts every row."""
    length: int = 28
    """Tokens in a row, with the 0."""
    d_model: int = 64
    """Width of the residual stream."""
    n_heads: int = 4
    """Heads in each of the two layers."""
    steps: int = 800
    """Of AdamW."""
    batch_size: int = 64
    """Rows in a step."""
    lr: float = 3e-3
    """Largest step size; it rises over the first twentieth and falls to zero."""
    weight_decay: float = 0.01
    """Of AdamW."""
    seed: int = 0
    """Of weights and rows."""

    def __post_init__(self) -> None:
        if self.length < 10 or self.d_vocab < 7 or self.steps < 1:
            raise ConfigError(
                f"InductionTraining(length={self.length}, d_vocab={self.d_vocab}, "
                f"steps={self.steps}): rows need 10 tokens, of 7 kinds, and a step."
            )


def successor_rows(
    n: int, length: int, d_vocab: int, generator: torch.Generator
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Rows of a 0 and then pairs of a token and its successor, some with a third token after them.

    Args:
        n: Rows.
        length: Tokens in each, with the 0.
        d_vocab: A third of them have a successor in a row, another third are one.
        generator: Of everything.

    Returns:
        The rows; and where a token stands that has been followed by its successor before, so that
        the next one can be known.
    """
    third = (d_vocab - 1) // 3
    kinds = min(third, N_SUCCESSORS)
    order = torch.rand(n, d_vocab - 1, generator=generator).argsort(1) + 1
    chosen = torch.randint(0, kinds, (n, length), generator=generator)
    first = order.gather(1, chosen)
    second = order.gather(1, chosen + third)
    other = torch.randint(2 * third, d_vocab - 1, (n, length), generator=generator)
    chunks = torch.stack([first, second, order.gather(1, other)], dim=2)
    kept = torch.ones_like(chunks, dtype=torch.bool)
    kept[..., 2] = torch.rand(n, length, generator=generator) < 0.5
    rows = torch.zeros(n, length, dtype=torch.long)
    for row in range(n):
        rows[row, 1:] = chunks[row][kept[row]][: length - 1]
    has_successor = (rows[:, :, None] == order[:, None, :kinds]).any(2)
    earlier = (rows[:, :, None] == rows[:, None, :]).tril(-1).any(2)
    return rows, has_successor & earlier


def train_induction(
    config: InductionTraining | None = None,
    *,
    progress: Callable[[int, int, float], None] | None = None,
) -> LanguageModel:
    """Train it, on the CPU in float32; the same seed gives the same model.

    Args:
        config: How.
        progress: Called with (steps done, in all, loss in nats on what can be predicted).
    """
    config = config or InductionTraining()
    sizes = SmallTransformerConfig(
        d_vocab=config.d_vocab,
        n_ctx=config.length,
        d_model=config.d_model,
        n_heads=config.n_heads,
        d_head=config.d_model // config.n_heads,
        norm=True,
    )
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(config.seed)
        module = SmallTransformer(sizes)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.d_model**-0.5)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps, pct_start=0.05
        )
        generator = torch.Generator().manual_seed(config.seed)
        for step in range(config.steps):
            rows, known = successor_rows(
                config.batch_size, config.length, config.d_vocab, generator
            )
            loss = _loss(module, rows, known)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, config.steps, float(loss.detach()))
    name = f"trained-induction-{config.seed}"
    return load_model(module.requires_grad_(False), name=name, device="cpu", bos_token_id=0)


def previous_token_scores(
    module: SmallTransformer, rows: Int[Tensor, "row pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention to the position before, 0 to 1."""
    found = [p.diagonal(-1, dim1=2, dim2=3).mean((0, 2)) for p in module.patterns(rows)]
    return torch.stack(found)


def prefix_matching_scores(
    module: SmallTransformer, rows: Int[Tensor, "row pos"], known: Bool[Tensor, "row pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention to what followed earlier occurrences of the same token, 0 to 1.

    Args:
        module: The model.
        rows: Of `successor_rows`.
        known: Likewise: from where the attention is counted.
    """
    before = rows.roll(1, dims=1)
    before[:, 0] = -1
    followed = (rows[:, :, None] == before[:, None, :]).tril(-1)
    found = []
    for pattern in module.patterns(rows):
        looked = (pattern * followed[:, None]).sum(3)
        found.append(looked.transpose(0, 1)[:, known].mean(1))
    return torch.stack(found)


def _loss(
    module: SmallTransformer, rows: Int[Tensor, "row pos"], known: Bool[Tensor, "row pos"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the successors that can be known."""
    logits = module(rows[:, :-1])
    losses = nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
    return losses[known[:, :-1]].mean()
