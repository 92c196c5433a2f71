"""Gated: which latents are active is decided by one copy of the encoder, how strongly by another.

    pi = exp(-log_scale) (z - offset)          the gate's pre-activation
    f  = z where pi > 0 and z > 0, else 0      the latent

The gate is what a sparsity penalty shrinks; the latent's size is left alone. With W_enc and b_enc
for the latent's size, this is the published form with tied directions,

    pi = W_gate (x - b_dec) + b_gate           f = [pi > 0] ReLU(exp(r) W_gate (x - b_dec) + b_mag)

in other coordinates: W_enc = exp(r) W_gate, b_enc = b_mag, offset = b_mag - exp(r) b_gate and
log_scale = r. They are chosen so that the latents are, to the last bit, those of a JumpReLU with
threshold max(offset, 0), which is what a saved dictionary stores. The scale of the gate, and how
far below zero an offset is, say nothing about latents; a finished dictionary forgets both, and only
training checkpoints keep them.
"""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.activation_functions.base import ActivationFunction, zeros_except
from saelab.errors import CheckpointError
from saelab.kernels import above
from saelab.kernels.encoding import Selected

__all__ = ["Gated"]


@final
class Gated(ActivationFunction):
    """Latents whose gate is open; the gate's own size is what an objective may penalize.

    The gradient through [pi > 0] is zero: the gate learns from terms on `gate`, such as `GateL1`
    and `GateReconstruction`.

    Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse
    autoencoders".

    >>> gated = Gated()
    >>> gated.setup(4, 3)
    >>> with torch.no_grad(): gated.offset.copy_(torch.tensor([1.0, 1.0, -1.0]))
    Parameter containing:
    tensor([ 1.,  1., -1.], requires_grad=True)
    >>> gated(torch.tensor([0.9, 1.1, -0.5])).tolist()
    [0.0, 1.100000023841858, 0.0]
    """

    name = "gated"

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.empty(0))
        self.log_scale = nn.Parameter(torch.empty(0))

    def setup(self, d_in: int, d_sae: int) -> None:  # noqa: ARG002
        """One offset and one scale a latent, both starting at zero: gate and size agree."""
        self.offset = nn.Parameter(torch.zeros(d_sae))
        self.log_scale = nn.Parameter(torch.zeros(d_sae))

    def forward(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """f = z where z > max(offset, 0), else 0."""
        return zeros_except(pre_acts, pre_acts > self._threshold())

    def select(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The entries that are not zero."""
        return above(pre_acts, self._threshold())

    def select_training(self, pre_acts: Float[Tensor, "row d_sae"]) -> Selected:
        """The entries whose gate is open, be the latent zero or not: their gate has a gradient."""
        return above(pre_acts, self.offset)

    def at_pairs(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """f; no gradient reaches the offset."""
        return zeros_except(pre_acts, pre_acts > self._threshold()[indices])

    def gate(
        self, pre_acts: Float[Tensor, " pair"], indices: Int[Tensor, " pair"]
    ) -> Float[Tensor, " pair"]:
        """ReLU(pi), differentiable in `pre_acts`, offset and scale."""
        offset = self.offset[indices].to(pre_acts.dtype)
        scale = torch.exp(-self.log_scale[indices].to(pre_acts.dtype))
        return ((pre_acts - offset) * scale).relu()

    def to_json(self) -> dict[str, Any]:
        """Just the name."""
        return {"name": self.name}

    def saelens(self) -> tuple[str, dict[str, Any]]:
        """SAELens's jumprelu."""
        return "jumprelu", {}

    def file_tensors(self) -> dict[str, Tensor]:
        """The thresholds of the JumpReLU that it is."""
        return {"threshold": self._threshold().clone()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take back the thresholds as offsets; the gate's scale starts anew."""
        if set(tensors) != {"threshold"} or tensors["threshold"].shape != self.offset.shape:
            raise CheckpointError(
                f"{self} needs {len(self.offset)} thresholds in the weights file; found "
                f"{ {name: tuple(t.shape) for name, t in tensors.items()} }."
            )
        with torch.no_grad():
            self.offset.copy_(tensors["threshold"])
            self.log_scale.zero_()

    def _threshold(self) -> Float[Tensor, " d_sae"]:
        return self.offset.detach().clamp(min=0)
