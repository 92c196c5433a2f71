"""FinetuneConfig: how long, how fast, and toward what."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from saelab.errors import ConfigError
from saelab.training.config import TrainConfig

__all__ = ["FinetuneConfig", "Objective"]

Objective = Literal["kl", "kl_mse", "ce", "downstream", "kl_downstream"]


@final
@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a finetuning run; everything about the dictionary is in the dictionary.

    >>> FinetuneConfig(tokens=10_000, rows_per_step=8).steps(row_length=128)
    10
    """

    objective: Objective = "kl_mse"
    """KL of the predictions with the reconstruction error balanced against it, or KL alone, or the
    cross-entropy of the text, or errors at later hook points, alone or balanced with KL."""
    downstream: tuple[str, ...] = ()
    """Later hook points, for the objectives that compare activations there."""
    tokens: int = 500_000
    """Budget in tokens read by the model; text that is shorter is read again in another order."""
    rows_per_step: int = 8
    """Rows of text per optimizer step; two sets of their logits are held."""
    lr: float = 2e-4
    """Peak learning rate; lower than in training, because the dictionary is nearly right."""
    warmup: float = 0.05
    """Share of the budget over which the learning rate rises from 0."""
    decay: float = 0.5
    """Share of the budget, at its end, over which the learning rate falls to 0."""
    clip: float | None = 1.0
    """Largest global gradient norm (after the decoder projection); None for no limit."""
    decoder: Literal["unit", "free"] = "unit"
    """Keep every decoder direction at norm 1, or leave norms to the optimizer."""
    frozen: tuple[str, ...] = ()
    """Parameters left alone, such as 'W_enc' and 'b_enc'."""
    norm_factor: float | None = 10.0
    """Positions whose activation is longer than this many median norms keep it; None for none."""
    measure_rows: int = 32
    """Rows on which the costs before and after are measured."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every_steps: int = 100
    """Steps between two checkpoints of a run that has a folder."""
    seed: int = 0
    """Of the order of the rows."""

    def __post_init__(self) -> None:
        counts = ("tokens", "rows_per_step", "measure_rows", "log_every_steps")
        for name in (*counts, "checkpoint_every_steps", "lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"FinetuneConfig({name}={getattr(self, name)}) must be positive.")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"FinetuneConfig({name}={getattr(self, name)}) is a share of the budget, 0 to "
                    "1."
                )
        compares = self.objective in ("downstream", "kl_downstream")
        if compares != bool(self.downstream):
            raise ConfigError(
                f"FinetuneConfig(objective={self.objective!r}, downstream={self.downstream}): name "
                "later hook points for 'downstream' and 'kl_downstream', and for no other."
            )

    def steps(self, row_length: int) -> int:
        """Number of optimizer steps for rows of a length; the last may end past the budget."""
        return -(-self.tokens // (self.rows_per_step * row_length))

    def training(self, row_length: int) -> TrainConfig:
        """The settings of the optimizer's step, in the form that training has them."""
        batch = self.rows_per_step * row_length
        return TrainConfig(
            tokens=self.steps(row_length) * batch,
            batch_size=batch,
            lr=self.lr,
            warmup=self.warmup,
            decay=self.decay,
            clip=self.clip,
            decoder=self.decoder,
            frozen=self.frozen,
            seed=self.seed,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
