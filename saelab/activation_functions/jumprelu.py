"""JumpReLU: a learned threshold for every latent, trained through a window around it.

    f = z where z > threshold, else 0

The threshold has no gradient almost everywhere, so a rectangular window of width `bandwidth`
around it estimates what the loss would do if it moved:

    df/dthreshold = -(threshold / bandwidth) [|z - threshold| < bandwidth / 2]
    dH/dthreshold = -(1 / bandwidth)         [|z - threshold| < bandwidth / 2]

where H = [z > threshold] counts towards L0. Both look at the pre-activation z: applied to f
instead, the gradient is half as large, and once threshold < bandwidth / 2 every silent latent
would be in the window. The window ends at zero for the same reason.
"""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.activation_functions.base import ActivationFunction, zeros_except
from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import above
from saelab.kernels.encoding import Selected

__all__ = ["JumpReLU"]

BANDWIDTH = 0.5
"""Width of the window as a share of the mean threshold, unless it is given."""


class _Gate(torch.autograd.Function):
    """z or 1 where z > threshold; gradient to the threshold, and perhaps z, through the window."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, threshold: Tensor, width: Tensor, count: bool, to_encoder: bool
    ) -> Tensor:
        open_ = z > threshold
        ctx.save_for_backward(z, threshold, open_, width)
        ctx.count, ctx.to_encoder = count, to_encoder
        return open_.to(z.dtype) if count else z * open_

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold, open_, width = ctx.saved_tensors
        (g,) = grads
        window = (((z - threshold).abs() < width / 2) & (z > 0)) / width
        jump = window * g if ctx.count else threshold * window * g
        through = None if ctx.count else open_ * g
        if ctx.to_encoder:
            through = jump if through is None else through + jump
        return through, -jump, None, None, None


@final
class JumpReLU(ActivationFunction):
    """Latents are pre-activations above a threshold that each latent learns.

    Args:
        threshold: Where every threshold starts, in normalized units; None leaves it to the
            objective, which looks at the data, and to 0.02 sqrt(d_in) if that has no opinion.
        bandwidth: Width of the window, in normalized units; None for half the mean threshold, which
            follows the data's scale. Wider learns faster and with more bias.
        to_encoder: Whether the jump's gradient also reaches the pre-activation, with the opposite
            sign: df/dz then is H + (threshold / bandwidth) in the window.

    Source: Rajamanoharan et al. 2024, "Jumping ahead"; `to_encoder` is from Anthropic's January
    2025 update.

    >>> gate = JumpReLU(threshold=1.0, bandwidth=0.1)
    >>> gate.setup(4, 3)
    >>> gate(torch.tensor([0.9, 1.1, -2.0])).tolist()
    [0.0, 1.100000023841858, 0.0]
    """

    name = "jumprelu"

    def __init__(
        self,
        threshold: float | None = None,
        bandwidth: float | None = None,
        to_encoder: bool = False,
    ) -> None:
        super().__init__()
        for label, value in (("threshold", threshold), ("bandwidth", bandwidth)):
            if value is not None and not value > 0:
                raise ConfigError(f"JumpReLU({label}={value}) must be positive.")
        self.start, self.bandwidth, self.to_encoder = threshold, bandwidth, to_encoder
        self.threshold = nn.Parameter(torch.empty(0))

    def setup(self, d_in: int, d_sae: int) -> None:
        """Make one threshold a latent, kept in float32: in bfloat16 it would not move."""
        start = 0.02 * d_in**0.5 if self.start is None else self.start
        self.threshold = nn.Parameter(torch.full((d_sae,), float(start)))

    def width(self) -> Float[Tensor, ""]:
        """The bandwidth in use now."""
        if self.bandwidth is not None:
            return self.threshold.new_tensor(self.bandwidth)
        return BANDWIDTH * self.threshold.detach().mean()

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = z where z > threshold, else 0."""
        return zeros_except(pre_acts, pre_acts > self.threshold)

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The entries above their threshold."""
        return above(pre_acts, self.threshold)

    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The entries above their threshold, and those below it but in the window."""
        return above(pre_acts, (self.threshold - self.width() / 2).clamp(min=0))

    def at_pairs(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """f, with the window's gradient to the thresholds."""
        return self._gate(pre_acts, indices, count=False)

    def active(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """H: 1 where active, else 0, with the window's gradient; its sum over tokens is L0."""
        return self._gate(pre_acts if self.to_encoder else pre_acts.detach(), indices, count=True)

    def _gate(self, pre_acts: Tensor, indices: Tensor, count: bool) -> Tensor:
        threshold = self.threshold[indices].to(pre_acts.dtype)
        width = self.width().to(pre_acts.dtype)
        return _Gate.apply(pre_acts, threshold, width, count, self.to_encoder)  # type: ignore[return-value]

    @torch.no_grad()
    def constrain(self) -> None:
        """Thresholds stay at or above zero."""
        self.threshold.clamp_(min=0)

    def to_json(self) -> dict[str, Any]:
        """Name and settings; the thresholds are a tensor."""
        return {
            "name": self.name,
            "threshold": self.start,
            "bandwidth": self.bandwidth,
            "to_encoder": self.to_encoder,
        }

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's jumprelu."""
        return "jumprelu", {}

    def file_tensors(self) -> dict[str, Tensor]:
        """The thresholds."""
        return {"threshold": self.threshold.detach()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back the thresholds."""
        if set(tensors) != {"threshold"} or tensors["threshold"].shape != self.threshold.shape:
            raise CheckpointError(
                f"{self} needs {len(self.threshold)} thresholds in the weights file; found "
                f"{ {name: tuple(t.shape) for name, t in tensors.items()} }."
            )
        with torch.no_grad():
            self.threshold.copy_(tensors["threshold"])

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"bandwidth={self.bandwidth}"
