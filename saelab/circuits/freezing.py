"""How are attention patterns and norms held constant, so that what is left is affine?

Two things keep a transformer without its MLPs from being affine in its residual stream: softmax,
and the division in every norm. Within `freezing` both are constants: the first pass notes every
attention pattern and every norm's 1 / sqrt(variance + eps), and that pass and all later ones use
what was noted, whatever runs through the model.

    attention    out = A v, with A noted and v linear in what attention reads
    norm         out = (x - mean(x)) s gain + bias, with s noted; no mean in an RMSNorm

Attention is reached through the attention interface of transformers, so grouped keys, rotary
positions, sliding windows and soft caps are the model's own. Norms are recognized by what they do:
the formula must give what the module gives on the prompt.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from saelab.errors import ModelError

__all__ = ["Held", "freezing"]

INTERFACE = "saelab_frozen"
"""The name under which transformers knows our attention function."""


@final
@dataclass(slots=True, eq=False)
class Held:
    """What the first pass noted."""

    scales: dict[nn.Module, Tensor] = field(default_factory=dict)
    """By norm: 1 / sqrt(variance + eps) of every vector it normalized."""
    patterns: dict[int, Tensor] = field(default_factory=dict)
    """By layer: attention after softmax, [row, head, query, key]."""
    queries: dict[int, Tensor] = field(default_factory=dict)
    """By layer, of the last pass: queries [row, head, pos, d_head], rotated."""
    keys: dict[int, Tensor] = field(default_factory=dict)
    """By layer, of the last pass: keys [row, key head, pos, d_head], rotated."""
    values: dict[int, Tensor] = field(default_factory=dict)
    """By layer, of the last pass: values [row, key head, pos, d_head]."""
    scaling: dict[int, float] = field(default_factory=dict)
    """By layer: what a query times a key is multiplied by."""
    gains: dict[nn.Module, tuple[Tensor, bool]] = field(default_factory=dict)
    """By norm: its gain, and whether it removes the mean."""


_HELD: ContextVar[Held | None] = ContextVar("held", default=None)


@contextmanager
def freezing(module: nn.Module, held: Held, *, norms: bool = True) -> Iterator[None]:
    """Within the block, attention patterns and norms' scales are constants; always restored.

    Args:
        module: A transformers model.
        held: What is constant; an empty one is filled by the first pass.
        norms: Whether norms are held too, and not only patterns.

    Raises:
        ModelError: In a pass, a norm does not compute what a norm computes, or attention has a
            part that saelab does not know.
    """
    _register()
    found = [sub for sub in module.modules() if _is_norm(sub)] if norms else []
    token = _HELD.set(held)
    try:
        with ExitStack() as stack:
            for norm in found:
                hook = norm.register_forward_hook(_NormHook(held), with_kwargs=True)
                stack.callback(hook.remove)
            stack.enter_context(_attention_by(module, INTERFACE))
            yield
    finally:
        _HELD.reset(token)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(INTERFACE, _attend)
    AttentionMaskInterface.register(INTERFACE, eager_mask)


@contextmanager
def _attention_by(module: nn.Module, name: str) -> Iterator[None]:
    """Within the block, every attention layer of the model calls the named function."""
    configs: dict[int, Any] = {}
    for sub in module.modules():
        config = getattr(sub, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        # The root comes first: setting it sets its parts too, which then get their own back.
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - part of the interface; models are in eval mode
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with a constant pattern; the interface of transformers prescribes the arguments."""
    held = _HELD.get()
    if held is None or more.get("s_aux") is not None or more.get("position_bias") is not None:
        raise ModelError(
            f"{type(module).__name__} adds sinks or position biases to its attention scores, which "
            "saelab cannot hold constant. Trace a model with plain softmax attention."
        )
    layer = int(getattr(module, "layer_idx", len(held.patterns)))
    times = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    heads_per_key = query.shape[1] // key.shape[1]
    if layer not in held.patterns:
        with torch.no_grad():
            scores = query @ key.repeat_interleave(heads_per_key, dim=1).mT * times
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if attention_mask is not None:
                scores = scores + attention_mask[..., : scores.shape[-1]]
            wide = torch.promote_types(scores.dtype, torch.float32)
            held.patterns[layer] = scores.softmax(dim=-1, dtype=wide).to(value.dtype)
    held.queries[layer], held.keys[layer], held.values[layer] = query, key, value
    held.scaling[layer] = times
    pattern = held.patterns[layer]
    mixed = pattern @ value.repeat_interleave(heads_per_key, dim=1)
    return mixed.transpose(1, 2).contiguous(), pattern


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


@final
class _NormHook:
    """Puts the affine form of a norm in place of its output."""

    def __init__(self, held: Held) -> None:
        self.held = held

    def __call__(self, norm: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if norm not in self.held.scales:
            self._note(norm, wide.detach(), output.detach())
        gain, centered = self.held.gains[norm]
        return _affine(norm, wide, self.held.scales[norm], gain, centered).to(output.dtype)

    def _note(self, norm: nn.Module, x: Tensor, output: Tensor) -> None:
        """Find the gain and the mean that reproduce what the module gave, and note its scale."""
        scale_of = output.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        found = []
        for gain, centered in _candidates(norm, x):
            scale = _scale(norm, x, centered)
            made = _affine(norm, x, scale, gain, centered)
            found.append((float((made - output).abs().max() / scale_of), scale, gain, centered))
        miss, scale, gain, centered = min(found, key=lambda one: one[0])
        if not miss <= (0.05 if output.dtype.itemsize < 4 else 1e-3):
            raise ModelError(
                f"{type(norm).__name__} is no norm that saelab can hold constant: gain times "
                f"x / sqrt(variance) misses its output by {miss:.1e} of the largest value. Trace a "
                "model with LayerNorm or RMSNorm."
            )
        self.held.scales[norm], self.held.gains[norm] = scale, (gain, centered)


def _candidates(norm: nn.Module, x: Tensor) -> list[tuple[Tensor, bool]]:
    """Gains the module may mean by its weight, and whether it removes the mean."""
    weight = getattr(norm, "weight", None)
    centerings = [True] if isinstance(norm, nn.LayerNorm) else [False, True]
    plain = x.new_ones(x.shape[-1])
    gains = [plain] if weight is None else [weight.detach().to(x), 1 + weight.detach().to(x)]
    if isinstance(norm, nn.LayerNorm):
        gains = gains[:1]
    return [(gain, centered) for centered in centerings for gain in gains]


def _scale(norm: nn.Module, x: Tensor, centered: bool) -> Tensor:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    x = x - x.mean(dim=-1, keepdim=True) if centered else x
    return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _affine(norm: nn.Module, x: Tensor, scale: Tensor, gain: Tensor, centered: bool) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True) if centered else x
    made = x * scale * gain
    bias = getattr(norm, "bias", None)
    return made if bias is None else made + bias.detach().to(made)
