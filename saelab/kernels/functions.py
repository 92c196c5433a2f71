"""The two differentiable steps of a sparse dictionary, with gradients for chosen pairs only.

    pre-activation of pair (t, i):  z = (x_t - b_pre) . W_enc[:, i] + b_enc[i]
    reconstruction of token t:      sum over its pairs of f * W_dec[i], plus b_dec

Backward never forms a dense [token, d_sae] matrix: with g the gradient of the reconstruction and
dz that of the pre-activations,

    df = g_t . W_dec[i]             dW_dec[i] = sum_t f g_t          db_dec = sum_t g_t
    dW_enc[:, i] = sum_t dz (x_t - b_pre)     db_enc[i] = sum_t dz   db_pre = -W_enc db_enc
    dx_t = sum over its pairs of dz W_enc[:, i]

where db_pre uses that the sum over tokens can be taken before the matrix product.

Weight gradients are large, and a fresh one each step costs more in page faults than in
arithmetic. `GradientBuffers` keeps one buffer a parameter for the whole run; without it the
gradients come back through autograd as usual.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.kernels.pairs import Pairs, pair_products, sum_columns, sum_rows

__all__ = ["GradientBuffers", "sparse_decode", "sparse_pre_activations", "squared_error"]


@final
class GradientBuffers:
    """One reusable gradient a parameter, written directly by the backward passes below.

    `begin` marks all of them as unwritten; the first write of a step replaces the buffer, later
    ones add to it; `finish` zeroes what nothing wrote to.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._buffers = {id(parameter): torch.zeros_like(parameter) for parameter in parameters}
        self._written: set[int] = set()

    def begin(self) -> None:
        """Start a step."""
        self._written.clear()

    def target(self, parameter: Tensor) -> tuple[Tensor, bool]:
        """The parameter's buffer, and whether this step has written to it before."""
        seen = id(parameter) in self._written
        self._written.add(id(parameter))
        return self._buffers[id(parameter)], seen

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Write or add a small gradient."""
        buffer, seen = self.target(parameter)
        if seen:
            buffer.add_(gradient)
        else:
            buffer.copy_(gradient)

    def finish(self) -> None:
        """End a step: buffers nothing wrote to become zero."""
        for key, buffer in self._buffers.items():
            if key not in self._written:
                buffer.zero_()

    def of(self, parameter: Tensor) -> Tensor:
        """The parameter's gradient after `finish`."""
        return self._buffers[id(parameter)]


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_pre: Tensor | None,
        pairs: Pairs,
        buffers: GradientBuffers | None,
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, b_enc, *(() if b_pre is None else (b_pre,)))
        ctx.pairs, ctx.buffers = pairs, buffers
        ctx.leaves = (W_enc, b_enc, b_pre)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dz,) = grads
        x, W_enc, b_enc, *rest = ctx.saved_tensors
        pairs, buffers = ctx.pairs, ctx.buffers
        b_pre = rest[0] if rest else None
        db_enc = torch.zeros_like(b_enc).index_add_(0, pairs.indices, dz)
        db_pre = None if b_pre is None else -(W_enc @ db_enc)
        dx = sum_rows(pairs, dz, W_enc.T) if ctx.needs_input_grad[1] else None
        if buffers is None:
            rows = torch.zeros_like(W_enc.T, memory_format=torch.contiguous_format)
            sum_columns(pairs, dz, x, rows, accumulate=False)
            return None, dx, rows.T, db_enc, db_pre, None, None
        weight, bias, pre_bias = ctx.leaves
        target, seen = buffers.target(weight)
        sum_columns(pairs, dz, x, target.T, accumulate=seen)
        buffers.add(bias, db_enc)
        if db_pre is not None:
            buffers.add(pre_bias, db_pre)
        return None, dx, None, None, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor | None,
        pairs: Pairs,
        buffers: GradientBuffers | None,
    ) -> Tensor:
        ctx.save_for_backward(values, W_dec, *(() if b_dec is None else (b_dec,)))
        ctx.pairs, ctx.buffers = pairs, buffers
        ctx.leaves = (W_dec, b_dec)
        recons = sum_rows(pairs, values, W_dec)
        return recons if b_dec is None else recons.add_(b_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        values, W_dec, *rest = ctx.saved_tensors
        pairs, buffers = ctx.pairs, ctx.buffers
        b_dec = rest[0] if rest else None
        g = g.contiguous()
        df = pair_products(pairs, g, W_dec)
        db_dec = None if b_dec is None else g.sum(0)
        if buffers is None:
            dW_dec = torch.zeros_like(W_dec)
            sum_columns(pairs, values, g, dW_dec, accumulate=False)
            return df, dW_dec, db_dec, None, None
        weight, bias = ctx.leaves
        target, seen = buffers.target(weight)
        sum_columns(pairs, values, g, target, accumulate=seen)
        if db_dec is not None:
            buffers.add(bias, db_dec)
        return df, None, None, None, None


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recons: Tensor, targets: Tensor) -> Tensor:
        error = recons - targets
        ctx.save_for_backward(error)
        # Row by row first: one long sum of small numbers would lose digits.
        return torch.linalg.vector_norm(error, dim=1).square().sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (error,) = ctx.saved_tensors
        gradient = error * (2 * grads[0])
        return gradient, -gradient if ctx.needs_input_grad[1] else None


def squared_error(
    recons: Float[Tensor, "token d_out"], targets: Float[Tensor, "token d_out"]
) -> Float[Tensor, ""]:
    """Sum over all entries of (recons - target)^2, differentiable in both.

    The plain expression makes five matrices of this size on the way there and back; this makes
    two.

    >>> float(squared_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])))
    5.0
    """
    return _SquaredError.apply(recons, targets)  # type: ignore[return-value]


def sparse_pre_activations(
    values: Float[Tensor, " pair"],
    x: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    b_pre: Float[Tensor, " d_in"] | None,
    pairs: Pairs,
    buffers: GradientBuffers | None = None,
) -> Float[Tensor, " pair"]:
    """Make already computed pre-activations differentiable in the encoder's parameters.

    Args:
        values: Pre-activation of each pair, as `encode_pairs` returned it.
        x: The encoder's input after b_pre was subtracted.
        W_enc: Encoder weight; its transpose is contiguous.
        b_enc: Encoder bias.
        b_pre: What was subtracted from the input, or None if nothing was.
        pairs: The pattern.
        buffers: Where weight gradients go; None returns them through autograd.
    """
    return _PreActivations.apply(values, x, W_enc, b_enc, b_pre, pairs, buffers)  # type: ignore[return-value]


def sparse_decode(
    values: Float[Tensor, " pair"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"] | None,
    pairs: Pairs,
    buffers: GradientBuffers | None = None,
) -> Float[Tensor, "token d_out"]:
    """Decode the latents of a pattern: sum of value * W_dec[latent], plus b_dec if given.

    Args:
        values: Latent of each pair.
        W_dec: Decoder directions, contiguous.
        b_dec: Added to every token, or None.
        pairs: The pattern.
        buffers: Where weight gradients go; None returns them through autograd.
    """
    return _Decode.apply(values, W_dec, b_dec, pairs, buffers)  # type: ignore[return-value]
