"""How does the model's loss depend on an activation? The gradient at hook points, row by row.

    L = sum over predicted tokens of -log p(token | tokens before it)        in nats

The sum, not the mean: the gradient at a position then does not depend on what else is in the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.errors import ConfigError, ModelError
from saelab.models.hooked_model import HookedModel
from saelab.models.protocol import LanguageModel

__all__ = ["loss_gradients"]

LOGITS_AT_ONCE = 1 << 25
"""Numbers in the logits of the rows that are run together."""


def loss_gradients(
    model: LanguageModel,
    tokens: Int[Tensor, "row pos"],
    hooks: Sequence[str],
    predicted: Bool[Tensor, "row pos"] | None = None,
) -> dict[str, Float[Tensor, "row pos _"]]:
    """Gradient of the summed next-token loss with respect to the activations at hook points.

    Args:
        model: Run once forward and once backward; its weights get no gradient.
        tokens: Token ids.
        hooks: Hook points; they are the keys of the result.
        predicted: Which tokens the loss is taken at, each predicted from those before it; all but
            the first of a row if not given, and never the first.

    Returns:
        For each name [row, pos, width], in the model's dtype, detached; zero at positions that no
        prediction depends on, such as the last of a row.

    Raises:
        ModelError: The model is not run by saelab itself, or the loss does not depend on a place.
        ConfigError: No hook point is named.
    """
    if not isinstance(model, HookedModel):
        raise ModelError(
            f"{type(model).__name__} offers no gradients; load the model with saelab.load_model."
        )
    if not hooks:
        raise ConfigError("loss_gradients needs at least one hook point.")
    if predicted is None:
        predicted = torch.ones_like(tokens, dtype=torch.bool)
    at_once = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * max(model.d_vocab, 1)))
    parts = [
        _of_rows(model, some, hooks, counted.to(model.device))
        for some, counted in zip(tokens.split(at_once), predicted.split(at_once), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in hooks}


def _of_rows(
    model: HookedModel, tokens: Tensor, hooks: Sequence[str], predicted: Tensor
) -> dict[str, Tensor]:
    moved: dict[str, Tensor] = {}

    def mover(name: str) -> Callable[[Tensor], Tensor]:
        def move(activation: Tensor) -> Tensor:
            if name not in moved:  # adding zero changes nothing, but the loss has a slope in it
                moved[name] = torch.zeros_like(activation, requires_grad=True)
            return activation + moved[name]

        return move

    with torch.enable_grad(), _frozen(model.module), model.editing({n: mover(n) for n in hooks}):
        logits = _logits(model, tokens)[:, :-1].float()
        targets = tokens[:, 1:].to(logits.device, torch.int64)
        loss = nn.functional.cross_entropy(logits.mT, targets, reduction="none")
        places = [moved[name] for name in hooks if name in moved]
        if len(places) < len(hooks):
            missing = next(name for name in hooks if name not in moved)
            raise ModelError(f"A forward pass of {model.name} never runs {missing}.")
        total = (loss * predicted[:, 1:]).sum()
        found = torch.autograd.grad(total, places, allow_unused=True)
    for name, gradient in zip(hooks, found, strict=True):
        if gradient is None:
            raise ModelError(f"The loss of {model.name} does not depend on {name}.")
    return {n: g.detach() for n, g in zip(hooks, found, strict=True) if g is not None}


def _logits(model: HookedModel, tokens: Tensor) -> Float[Tensor, "row pos d_vocab"]:
    """What `HookedModel.logits` gives, with a graph."""
    tokens, _ = model._checked(tokens, None)
    return model._logits_of(model._forward(tokens, None, with_logits=True))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Within the block no weight asks for a gradient, so that the graph begins at the hooks."""
    asked = [p for p in module.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
