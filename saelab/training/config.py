"""TrainConfig: how long, how fast and how often, all in tokens."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, final

from saelab.errors import ConfigError
from saelab.training.run_logs import MIRRORS

__all__ = ["TrainConfig"]


@final
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop's settings; the dictionary and its objective have their own.

    >>> TrainConfig(tokens=1_000_000).steps
    245
    """

    tokens: int = 2_000_000
    """Training budget in tokens; a store with fewer is read again in another order."""
    batch_size: int = 4096
    """Tokens per step."""
    lr: float | None = None
    """Peak learning rate; None for 2e-3 * sqrt(4608 / d_sae), see docs/training.md."""
    warmup: float = 0.05
    """Share of the budget over which the learning rate rises from 0."""
    decay: float = 0.2
    """Share of the budget, at its end, over which the learning rate falls to 0."""
    clip: float | None = 1.0
    """Largest global gradient norm (after the decoder projection); None for no limit."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How slowly Adam's mean and mean square of the gradient forget, 0 to 1."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """How Adam's two moments are kept; bfloat16 halves their memory, rounded at random so that
    they are right on average."""
    selection: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the matmul that decides which latents a TopK or AbsTopK dictionary selects;
    their values are float32 always. auto takes bfloat16 where it is measured to be faster."""
    micro_batch_size: int | None = None
    """Tokens decoded at a time, which bounds the memory of a step; the gradient stays that of the
    whole batch. None for the whole batch; else it must divide batch_size."""
    decoder: Literal["unit", "free"] = "unit"
    """Keep every decoder direction at norm 1, or let norms be learned (then the objective must say
    what a long one costs)."""
    frozen: tuple[str, ...] = ()
    """Parameters that the optimizer leaves alone, such as 'b_dec'."""
    center: Literal["geometric_median", "mean", "zero"] = "geometric_median"
    """Where b_dec starts, measured on a sample of the data."""
    normalize: bool = True
    """Fit the dictionary's input scale to the data before the first step."""
    dead_after_tokens: int | None = None
    """A latent that fired on none of this many tokens is dead; None for a tenth of the budget,
    at most 10 million (Gao et al. 2024)."""
    seed: int = 0
    """Of the order in which activations are read."""
    window_tokens: int = 262_144
    """Activations held in memory and shuffled together."""
    log_every_tokens: int = 40_960
    """Tokens between two lines of metrics.jsonl."""
    checkpoint_every_tokens: int = 1_000_000
    """Tokens between two checkpoints of a run that has a folder."""
    mirrors: tuple[str, ...] = ()
    """Also send metrics to 'tensorboard' or 'wandb'."""

    def __post_init__(self) -> None:
        positive = ("tokens", "batch_size", "window_tokens", "log_every_tokens")
        for name in (*positive, "checkpoint_every_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"TrainConfig({name}={getattr(self, name)}) must be positive.")
        if self.batch_size > self.tokens:
            raise ConfigError(
                f"TrainConfig(batch_size={self.batch_size}) is larger than the budget of "
                f"{self.tokens} tokens: not one step fits."
            )
        if self.micro_batch_size is not None and not (
            self.micro_batch_size > 0 and self.batch_size % self.micro_batch_size == 0
        ):
            raise ConfigError(
                f"TrainConfig(micro_batch_size={self.micro_batch_size}) must divide the batch_size "
                f"of {self.batch_size}: all slices have the same number of tokens."
            )
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"TrainConfig({name}={getattr(self, name)}) is a share of the budget, 0 to 1."
                )
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"TrainConfig(lr={self.lr}) must be positive.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"TrainConfig(betas={self.betas}): two numbers from 0 up to 1.")
        choices = {
            "moments": ("float32", "bfloat16"),
            "decoder": ("unit", "free"),
            "selection": ("auto", "float32", "bfloat16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"TrainConfig({name}={getattr(self, name)!r}) must be {' or '.join(known)}."
                )
        if unknown := set(self.mirrors) - set(MIRRORS):
            raise ConfigError(
                f"TrainConfig(mirrors={self.mirrors}): unknown {sorted(unknown)}; "
                f"known are {', '.join(MIRRORS)}."
            )

    @property
    def steps(self) -> int:
        """Number of optimizer steps; the last one may end just past the budget."""
        return -(-self.tokens // self.batch_size)

    @property
    def dead_after(self) -> int:
        """`dead_after_tokens` with its default worked out."""
        if self.dead_after_tokens is not None:
            return self.dead_after_tokens
        return min(10_000_000, max(self.tokens // 10, 10 * self.batch_size))

    def peak_lr(self, d_sae: int) -> float:
        """`lr` with its default worked out."""
        return 2e-3 * (4608 / d_sae) ** 0.5 if self.lr is None else self.lr

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
