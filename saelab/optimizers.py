"""Adam in one fused pass over persistent gradients, and the learning-rate schedule.

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2
    p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Source: Kingma and Ba 2015. torch's fused kernel does one pass over memory where its default does
about six; for a dictionary the optimizer otherwise costs as much as the encoder.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

__all__ = ["Adam", "learning_rate"]


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


@final
class Adam:
    """Adam over named tensors whose gradients live in buffers somebody else fills.

    Args:
        parameters: Updated in place, by name; non-contiguous ones are handled by their layout.
        betas: Decay of the two moment estimates.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 6.25e-10,
    ) -> None:
        self._parameters = {name: _as_stored(p) for name, p in parameters.items()}
        self._betas, self._eps = betas, eps
        self._first = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float, scale: float = 1.0) -> None:
        """One update.

        Args:
            gradients: By the same names; same layout as the parameters.
            lr: Learning rate of this step.
            scale: The gradients are divided by it first (for clipping); they are changed.
        """
        names = list(self._parameters)
        grads = [_as_stored(gradients[name]) for name in names]
        if scale != 1.0:
            for grad in grads:
                grad.div_(scale)
        self.steps += 1
        device = grads[0].device
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            [self._parameters[name] for name in names],
            grads,
            [self._first[name] for name in names],
            [self._second[name] for name in names],
            [],
            [torch.tensor(float(self.steps), device=device) for _ in names],
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=0.0,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
        )

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


def _as_stored(tensor: Tensor) -> Tensor:
    """A contiguous view of a matrix that may be stored transposed."""
    tensor = tensor.detach()
    return tensor if tensor.is_contiguous() else tensor.T
