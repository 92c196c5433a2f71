"""PAnnealing: a penalty that starts as L1 and becomes, step by step, closer to counting."""

from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.objectives.base import Step, Term
from saelab.objectives.l1 import contributions

__all__ = ["PAnnealing"]


@final
class PAnnealing(Term):
    """Penalize latents by a power p that falls from 1 towards 0.

        form "Lp^p":  weight * mean over tokens of sum_i a_i^p
        form "Lp":    weight * mean over tokens of (sum_i a_i^p)^(1/p)       a_i = |f_i| |W_dec[i]|

    over the variance. p falls in `updates` equal parts; at each of them

        weight <- weight * mean(penalty with the old p) / mean(penalty with the new p)

    with means over the last `memory` batches, so that the loss is continuous. Below `floor` the
    power goes on as a straight line to zero: its slope would otherwise have no bound. p stays
    positive: at 0 every latent would count, the silent ones too, and 1 / p would have no value.

    The object remembers where in the descent it is; use a new one for every run.

    Args:
        coefficient: Weight while p is 1, where the term is `L1`.
        form: Which of the two.
        p_end: Where p ends; above 0.
        start: Share of the budget after which the first part is taken.
        end: Share of the budget after which the last part is taken.
        updates: Number of parts.
        memory: Batches that the means are over.
        floor: In normalized units; typical latents are between 1 and 10.
        warmup: Share of the budget over which the weight rises from 0.

    Source: Karvonen et al. 2024, "Measuring progress in dictionary learning for language model
    interpretability with board game models"; the queue is in the authors' code, the floor ours.
    """

    name = "p_annealing"

    def __init__(
        self,
        *,
        coefficient: float = 5.0,
        form: Literal["Lp^p", "Lp"] = "Lp^p",
        p_end: float = 0.2,
        start: float = 0.25,
        end: float = 0.75,
        updates: int = 10,
        memory: int = 10,
        floor: float = 0.01,
        warmup: float = 0.05,
    ) -> None:
        if form not in ("Lp^p", "Lp"):
            raise ConfigError(f'PAnnealing(form={form!r}) must be "Lp^p" or "Lp".')
        if not 0 < p_end <= 1:
            raise ConfigError(
                f"PAnnealing(p_end={p_end}) must be above 0 and at most 1: at 0 every latent "
                "counts, whether it is active or not."
            )
        if not (0 <= warmup <= start <= end <= 1 and updates >= 1 and memory >= 1):
            raise ConfigError(
                f"PAnnealing(warmup={warmup}, start={start}, end={end}, updates={updates}, "
                f"memory={memory}): shares of the budget in this order, and whole numbers from 1."
            )
        if coefficient <= 0 or floor <= 0:
            raise ConfigError(
                f"PAnnealing(coefficient={coefficient}, floor={floor}): both must be positive."
            )
        self.coefficient, self.form, self.p_end = coefficient, form, p_end
        self.start_share, self.end_share = start, end
        self.updates, self.memory, self.floor, self.warmup = updates, memory, floor, warmup
        self._part = 0
        self._weight = float(coefficient)
        self._queue: list[tuple[float, float]] = []

    @property
    def p(self) -> float:
        """The power in use."""
        return self._p(self._part)

    @property
    def weight(self) -> float:
        """The weight in use, without the warm-up."""
        return self._weight

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The term's value."""
        ramp = min(1.0, step.progress / self.warmup if self.warmup else 1.0)
        return ramp * self._weight * self._penalty(step, self.p) / step.variance

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Remember the batch, and take the next part of the descent if its time has come."""
        if self._part == self.updates:
            return
        now, then = self.p, self._p(self._part + 1)
        measured = step.mean(step.add(torch.stack([self._penalty(step, p) for p in (now, then)])))
        self._queue = [*self._queue, (measured[0].item(), measured[1].item())][-self.memory :]
        if step.progress < self._due(self._part + 1):
            return
        before, after = (sum(column) for column in zip(*self._queue, strict=True))
        if after > 0:
            self._weight *= before / after
        self._part += 1
        self._queue = []

    def state(self) -> dict[str, Tensor]:
        """How far the descent has come, the weight, and the last batches' penalties."""
        return {
            "part": torch.tensor(self._part),
            "weight": torch.tensor(self._weight, dtype=torch.float64),
            "queue": torch.tensor(self._queue, dtype=torch.float64).reshape(-1, 2),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._part, self._weight = int(state["part"]), state["weight"].item()
        self._queue = [(row[0].item(), row[1].item()) for row in state["queue"]]

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "name": self.name,
            "coefficient": self.coefficient,
            "form": self.form,
            "p_end": self.p_end,
            "start": self.start_share,
            "end": self.end_share,
            "updates": self.updates,
            "memory": self.memory,
            "floor": self.floor,
            "warmup": self.warmup,
        }

    def _p(self, part: int) -> float:
        return 1 - (1 - self.p_end) * part / self.updates

    def _due(self, part: int) -> float:
        """Share of the budget at which a part is taken."""
        if self.updates == 1:
            return self.start_share
        share = (part - 1) / (self.updates - 1)
        return self.start_share + (self.end_share - self.start_share) * share

    def _penalty(self, step: Step, p: float) -> Float[Tensor, ""]:
        """Mean over tokens of the penalty with a power p."""
        sizes = contributions(step)
        large = sizes.clamp(min=self.floor) ** p
        powers = torch.where(sizes >= self.floor, large, sizes * self.floor ** (p - 1))
        pairs = step.forward.pairs
        if self.form == "Lp^p":
            return powers.sum() / pairs.n_tokens
        totals = powers.new_zeros(pairs.n_tokens).index_add(0, pairs.tokens(), powers)
        # A token without latents has no penalty, and no slope that a root would make infinite.
        return (totals[totals > 0] ** (1 / p)).sum() / pairs.n_tokens
