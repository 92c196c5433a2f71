"""What does every head add at one position of every prompt?"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.circuits.freezing import Held, freezing
from saelab.circuits.frozen import torch_model
from saelab.errors import ConfigError
from saelab.models import LanguageModel

__all__ = ["HeadSpace", "head_outputs"]

HeadSpace = Literal["stream", "head"]
"""z_h W_O^h, which is what a head adds before a norm that may follow; or z_h itself."""


@torch.no_grad()
def head_outputs(
    model: LanguageModel,
    tokens: Int[Tensor, "row pos"],
    position: int = -1,
    space: HeadSpace = "stream",
) -> Float[Tensor, "row layer head d"]:
    """Read all heads at one position of prompts of one length.

    Args:
        model: A transformers model.
        tokens: Prompts, positives and negatives alike.
        position: The prediction's position; from the end if negative.
        space: What a head's output is.

    Raises:
        ConfigError: There is no such position.
        ModelError: The model is none of transformers.
    """
    if not -tokens.shape[1] <= position < tokens.shape[1]:
        raise ConfigError(
            f"There is no position {position} in prompts of {tokens.shape[1]} tokens."
        )
    module = torch_model(model).module
    points = [model.hook_point(f"blocks.{n}.attn.hook_z") for n in range(model.n_layers)]
    held = Held()
    with freezing(module, held, norms=False):
        found = model.activations(tokens, [point.name for point in points])
    outputs = []
    for layer, point in enumerate(points):
        n_heads = held.patterns[layer].shape[1]
        z = found[point.name][:, position].unflatten(1, (n_heads, -1))
        outputs.append(z if space == "head" else _written(module.get_submodule(point.module), z))
    return torch.stack(outputs, dim=1)


def _written(
    projection: Any, z: Float[Tensor, "row head d_head"]
) -> Float[Tensor, "row head d_model"]:
    """Each head by itself through W_O, without its bias."""
    n_heads = z.shape[1]
    alone = z[:, :, None] * torch.eye(n_heads).to(z)[None, :, :, None]
    return projection(alone.flatten(2)) - projection(z.new_zeros(1, 1, n_heads * z.shape[2]))
