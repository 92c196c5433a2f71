"""Which push makes a model prefer one answer to another? Learned from pairs of answers.

    delta = log P_v(chosen | prompt) - log P_v(rejected | prompt)      summed over answer tokens
    loss  = -log sigmoid( m beta (delta - delta_0) ),   m = +1 or -1, drawn once per batch

where delta_0 is the unsteered model's delta (0 in the reference-free form), so that the same
vector, turned round, makes the rejected answer preferred. What is learned is

    YaPO   a vector over the latents of a dictionary, pushed as `PushCode`
    BiPO   a vector in the model's own space, added to the activation

The model and the dictionary are frozen. Under `relu`, a latent that is active on no training token
never moves: its gradient is zero from the start. Nothing makes the learned vector sparse but that
and `l1`: "sparse" says that it lives in the space of sparse codes.

Sources: Cao et al. 2024, "Personalized steering of large language models: versatile steering
vectors through bi-directional preference optimization" (BiPO); "YaPO" and its code,
MBZUAI-Paris/YaPO. Its abstract says reference-free, its released configuration uses the reference;
`reference_free` offers both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from saelab.errors import ConfigError, DataError
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.steering.active import intervene
from saelab.steering.code_push import PushCode
from saelab.steering.directions import Direction, written_by
from saelab.steering.interventions import Intervention, PushAlong

__all__ = [
    "LearnConfig",
    "Learned",
    "Preference",
    "held_out_preference",
    "learn_push",
    "preference_loss",
]


@final
@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt with an answer that is wanted and one that is not."""

    prompt: str
    """What comes before; not part of any loss."""
    chosen: str
    """The wanted answer."""
    rejected: str
    """The other."""


@final
@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How a push is learned."""

    steps: int = 300
    """Updates."""
    batch_size: int = 4
    """Pairs per update; the source uses 4 on each of 8 devices."""
    lr: float = 5e-4
    """Peak learning rate of Adam, in the vector's units (source: 5e-4)."""
    warmup: int = 100
    """Updates over which the rate rises; then it falls to 0 along a cosine."""
    beta: float = 0.1
    """How sharply a preference counts (source: 0.1)."""
    reference_free: bool = False
    """Leave out the unsteered model's own preference."""
    both_ways: bool = True
    """Draw m from +1 and -1; else it is always +1."""
    keep: str = "relu"
    """YaPO only: what is done to the pushed code, as in `PushCode`."""
    l1: float = 0.0
    """Weight of sum |v| in the loss; the sources use none."""
    seed: int = 0
    """Of the order of the pairs and of m."""

    def __post_init__(self) -> None:
        sizes = {"steps": self.steps, "batch_size": self.batch_size}
        for name, value in {**sizes, "lr": self.lr, "beta": self.beta}.items():
            if not value > 0:
                raise ConfigError(f"LearnConfig({name}={value}) must be positive.")
        if self.warmup < 0 or self.l1 < 0:
            raise ConfigError(
                f"LearnConfig(warmup={self.warmup}, l1={self.l1}) must not be negative."
            )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """A learned push."""

    vector: Float[Tensor, " n"]
    """[d_sae] over latents, or [d] in the model's units."""
    hook: str
    """Where it is pushed."""
    sae: SAE | None
    """The dictionary of a push over latents."""
    losses: tuple[float, ...]
    """Of every update, in nats; log 2 where nothing is preferred beyond the reference."""
    config: LearnConfig
    """The settings."""

    def intervention(self, strength: float = 1.0) -> Intervention:
        """The push at some strength m, for `intervene` and recipes."""
        if self.sae is not None:
            return PushCode(self.sae, self.vector, strength, self.config.keep)
        made: dict[str, Any] = {"method": "BiPO", **asdict(self.config)}
        return PushAlong(
            Direction(vector=self.vector, hook=self.hook, name="learned", made=made), strength
        )

    def support(self, tolerance: float = 1e-4) -> int:
        """Entries beyond the tolerance."""
        return int((self.vector.abs() > tolerance).sum())


def learn_push(
    model: LanguageModel,
    pairs: Sequence[Preference],
    *,
    sae: SAE | None = None,
    hook: str | None = None,
    config: LearnConfig | None = None,
    progress: Callable[..., None] | None = None,
) -> Learned:
    """Learn a push that makes the chosen answers likelier than the rejected ones.

    Args:
        model: The model; frozen.
        pairs: What to learn from.
        sae: A dictionary: the push is learned over its latents (YaPO).
        hook: Without a dictionary, where the push is added (BiPO).
        config: The settings.
        progress: Called with (done, in all, what).

    Raises:
        ConfigError: Neither or both of `sae` and `hook` are given, or `keep` does not suit `sae`.
        DataError: There is no pair, or an answer is empty.
    """
    config = config or LearnConfig()
    if (sae is None) == (hook is None):
        raise ConfigError("Give learn_push() either a dictionary (YaPO) or a hook point (BiPO).")
    rows = [_Rows(model, pair) for pair in pairs]
    if not rows:
        raise DataError("learn_push() was given no pairs of answers.")
    place, width = _place(model, rows[0], sae, hook)
    vector = torch.zeros(width, requires_grad=True)
    references = torch.zeros(len(rows), dtype=torch.float32)
    if not config.reference_free:
        with torch.no_grad():
            references = torch.cat([_deltas(model, [row]) for row in rows]).cpu()
    optimizer = torch.optim.Adam([vector], lr=config.lr)
    losses: list[float] = []
    for step, (batch, sign) in enumerate(_batches(len(rows), config)):
        optimizer.param_groups[0]["lr"] = config.lr * _rate(step, config)
        with _pushed(model, vector, sign, sae, place, config.keep):
            deltas = _deltas(model, [rows[i] for i in batch])
        loss = preference_loss(deltas - references[batch].to(deltas), sign, config.beta)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        (loss + config.l1 * vector.abs().sum()).backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, config.steps, "pairs")
    return Learned(vector=vector.detach(), hook=place, sae=sae, losses=tuple(losses), config=config)


@torch.no_grad()
def held_out_preference(
    model: LanguageModel, pairs: Sequence[Preference], push: Intervention
) -> Float[Tensor, " pair"]:
    """delta - delta_0 of each pair under some push, in nats.

    Positive where the chosen answer became likelier beside the rejected one.

    Raises:
        DataError: There is no pair, or an answer is empty.
    """
    rows = [_Rows(model, pair) for pair in pairs]
    if not rows:
        raise DataError("No pairs of answers were given.")

    def deltas() -> Tensor:
        return torch.cat([_deltas(model, rows[i : i + 8]) for i in range(0, len(rows), 8)]).cpu()

    before = deltas()
    with intervene(model, [push]):
        return deltas() - before


def preference_loss(
    margins: Float[Tensor, " pair"], sign: int | float, beta: float
) -> Float[Tensor, ""]:
    """-log sigmoid(sign beta margin), mean over pairs, in nats; log 2 at margin 0.

    Args:
        margins: delta - delta_0 of each pair, in nats.
        sign: m, +1 or -1.
        beta: How sharply a preference counts.

    >>> round(float(preference_loss(torch.zeros(3), 1, 0.1)), 4)
    0.6931
    """
    return -logsigmoid(sign * beta * margins).mean()


@final
class _Rows:
    """A pair as two rows of tokens [2, pos], chosen first, and which of them are answers."""

    def __init__(self, model: LanguageModel, pair: Preference) -> None:
        first = [] if model.bos_token_id is None else [model.bos_token_id]
        prompt = [*first, *model.encode(pair.prompt)]
        answers = [model.encode(pair.chosen), model.encode(pair.rejected)]
        if not all(answers) or not prompt:
            raise DataError(f"A pair needs two answers and a prompt, none empty: {pair}.")
        rows = [torch.tensor([*prompt, *answer]) for answer in answers]
        longest = max(map(len, rows))
        self.ids = torch.stack([pad(row, (0, longest - len(row))) for row in rows])
        self.mask = torch.stack([torch.arange(longest) < len(row) for row in rows])
        self.answer = self.mask.clone()
        self.answer[:, : len(prompt)] = False


def _place(model: LanguageModel, row: _Rows, sae: SAE | None, hook: str | None) -> tuple[str, int]:
    """Where the push goes, and how many numbers it has."""
    if sae is not None:
        return written_by(sae), sae.d_sae
    place = str(hook)
    return place, model.activations(row.ids, [place])[place].shape[-1]


def _deltas(model: LanguageModel, rows: Sequence[_Rows]) -> Float[Tensor, " pair"]:
    """log P(chosen) - log P(rejected) of each pair, over the answers' tokens alone."""
    longest = max(row.ids.shape[1] for row in rows)

    def joined(name: str) -> Tensor:
        parts = [getattr(row, name) for row in rows]
        return torch.cat([pad(part, (0, longest - part.shape[1])) for part in parts])

    ids, mask, answer = joined("ids"), joined("mask"), joined("answer")
    logits, _ = model.whole_pass(ids, mask=mask)
    log_p = logits[:, :-1].float().log_softmax(-1)
    ids, answer = ids[:, 1:, None].to(log_p.device), answer[:, 1:].to(log_p.device)
    each = (log_p.gather(2, ids).squeeze(2) * answer).sum(1)
    return each[0::2] - each[1::2]


def _pushed(
    model: LanguageModel, vector: Tensor, sign: float, sae: SAE | None, hook: str, keep: str
) -> AbstractContextManager[None]:
    if sae is not None:
        return intervene(model, [PushCode(sae, vector, sign, keep)])
    first = 0 if model.bos_token_id is None else 1

    def add(x: Tensor) -> Tensor:
        rest = (x[:, first:].float() + sign * vector.to(x.device)).to(x.dtype)
        return torch.cat([x[:, :first], rest], dim=1)

    return model.editing({hook: add})


def _batches(n: int, config: LearnConfig) -> Iterator[tuple[list[int], float]]:
    """Which pairs each update takes, all once before any twice, and its m."""
    generator = torch.Generator().manual_seed(config.seed)
    left: list[int] = []
    for _ in range(config.steps):
        if not left:
            left = torch.randperm(n, generator=generator).tolist()
        batch, left = left[: config.batch_size], left[config.batch_size :]
        turned = config.both_ways and bool(torch.randint(2, (1,), generator=generator))
        yield batch, -1.0 if turned else 1.0


def _rate(step: int, config: LearnConfig) -> float:
    """Share of the peak rate: a line up, a cosine down."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    left = max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / left))
