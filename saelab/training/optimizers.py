"""Adam in one fused pass over persistent gradients, and the learning-rate schedule.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
    p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Source: Kingma and Ba 2015. torch's fused kernel does one pass over memory where its default does
about six; for a dictionary the optimizer otherwise costs as much as the encoder.
"""

from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor

from saelab.training.config import TrainConfig

__all__ = ["Adam", "Moments", "learning_rate", "rate_at"]

Moments = Literal["float32", "bfloat16"]
BLOCK = 1 << 16
"""Elements updated at a time where moments are rounded."""


def learning_rate(tokens: int, *, total: int, peak: float, warmup: int, decay_from: int) -> float:
    """Linear warm-up to `peak`, then constant, then linear decay that would reach 0 at `total`.

    Args:
        tokens: Tokens trained on before this step.
        total: The whole budget.
        peak: The rate in the middle.
        warmup: Tokens over which it rises.
        decay_from: Token count at which it starts to fall.

    >>> [learning_rate(t, total=100, peak=1.0, warmup=10, decay_from=80) for t in (0, 50, 90)]
    [0.0, 1.0, 0.5]
    """
    rate = peak
    if tokens < warmup:
        rate = peak * tokens / warmup
    if tokens > decay_from:
        rate = min(rate, peak * (total - tokens) / max(total - decay_from, 1))
    return max(rate, 0.0)


def rate_at(config: TrainConfig, tokens_done: int, d_sae: int) -> float:
    """The rate of the step after `tokens_done` tokens, that of the middle of its batch."""
    return learning_rate(
        tokens_done + config.batch_size // 2,
        total=config.steps * config.batch_size,
        peak=config.peak_lr(d_sae),
        warmup=round(config.warmup * config.tokens),
        decay_from=round((1 - config.decay) * config.tokens),
    )


@final
class Adam:
    """Adam over named tensors whose gradients live in buffers somebody else fills.

    Args:
        parameters: Updated in place, by name; non-contiguous ones are handled by their layout.
        betas: Decay of the two moment estimates.
        eps: Added to the root of the second moment.
        moments: How the moments are kept. "bfloat16" halves their memory; they are rounded up or
            down at random, so that they are right on average. Rounding to nearest would not do: a
            step changes v by a thousandth, bfloat16 has steps of 1/256, and v would never fall.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 6.25e-10,
        moments: Moments = "float32",
    ) -> None:
        self._parameters = {name: _as_stored(p) for name, p in parameters.items()}
        self._betas, self._eps = betas, eps
        self._rounded = moments == "bfloat16"
        self._first = {name: self._zeros(p) for name, p in self._parameters.items()}
        self._second = {name: self._zeros(p) for name, p in self._parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float, scale: float = 1.0) -> None:
        """One update.

        Args:
            gradients: By the same names; same layout as the parameters.
            lr: Learning rate of this step.
            scale: The gradients are divided by it first (for clipping); they are changed.
        """
        grads = {name: _as_stored(gradients[name]) for name in self._parameters}
        if scale != 1.0:
            for grad in grads.values():
                grad.div_(scale)
        self.steps += 1
        if self._rounded:
            size = max(BLOCK, *(grad[:1].numel() for grad in grads.values()))
            noise = _Noise(self.steps, size, next(iter(grads.values())).device)
            for name, grad in grads.items():
                self._rounded_step(name, grad, lr, noise)
        else:
            names = list(grads)
            self._fused(
                [self._parameters[name] for name in names],
                list(grads.values()),
                [self._first[name] for name in names],
                [self._second[name] for name in names],
                lr,
            )

    def _rounded_step(self, name: str, grad: Tensor, lr: float, noise: "_Noise") -> None:
        """The same in blocks, whose moments are float32 only while they are in use."""
        parameter, first, second = self._parameters[name], self._first[name], self._second[name]
        rows = max(1, BLOCK // max(parameter[:1].numel(), 1))
        for start in range(0, len(parameter), rows):
            block = slice(start, start + rows)
            mean, square = first[block].to(grad.dtype), second[block].to(grad.dtype)
            self._fused([parameter[block]], [grad[block]], [mean], [square], lr)
            first[block] = noise.round(mean)
            second[block] = noise.round(square)

    def _fused(
        self,
        parameters: list[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        lr: float,
    ) -> None:
        step = [torch.tensor(float(self.steps), device=grads[0].device) for _ in grads]
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            parameters,
            grads,
            first,
            second,
            [],
            step,
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=0.0,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )

    def _zeros(self, parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter, dtype=torch.bfloat16 if self._rounded else None)

    def reset(self, name: str, rows: Tensor) -> None:
        """Forget the moments of some rows (latents), after they were given new weights."""
        self._first[name][rows] = 0
        self._second[name][rows] = 0

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs, as tensors."""
        first = {f"first.{name}": value for name, value in self._first.items()}
        second = {f"second.{name}": value for name, value in self._second.items()}
        return {**first, **second, "steps": torch.tensor(self.steps)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name in self._parameters:
            self._first[name].copy_(state[f"first.{name}"])
            self._second[name].copy_(state[f"second.{name}"])
        self.steps = int(state["steps"])


@final
class _Noise:
    """Random bits that round to bfloat16 up or down, the same for the same step.

    One block of them serves all blocks of a step: each value is right on average over steps, and
    only that matters.
    """

    def __init__(self, step: int, size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(step)
        bits = torch.randint(1 << 16, (2 * size,), generator=generator, dtype=torch.int32)
        self._bits, self._at = bits.to(device), 0

    def round(self, values: Tensor) -> Tensor:
        """Each value as one of its two neighbors in bfloat16, the nearer one more often.

        Float32 values are changed in place.
        """
        n = values.numel()
        self._at = len(self._bits) // 2 - self._at  # mean and square get different bits
        bits = self._bits[self._at : self._at + n].view(values.shape)
        values = values.float()
        # bfloat16 is the upper half of a float32, and the bits of a size are in its order.
        values.view(torch.int32).add_(bits).bitwise_and_(~0xFFFF)
        return values.bfloat16()


def _as_stored(tensor: Tensor) -> Tensor:
    """A contiguous view of a matrix that may be stored transposed."""
    tensor = tensor.detach()
    return tensor if tensor.is_contiguous() else tensor.T
