"""Do the parts of a model, put together again, make the model? Checked before any is taken away.

Three things must hold on a prompt: the heads of a block sum to what its attention adds, up to a
constant bias; attention and MLPs sum to the residual stream; and nothing changes when every
receiver reads its own stream through norms and projections made anew.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ModelError
from saelab.models.torch_model import TorchModel
from saelab.patching.graph import ComponentGraph
from saelab.patching.layout import BlockParts
from saelab.patching.removal import Removal, head_writes

__all__ = ["check_parts", "recorded"]


@torch.no_grad()
def recorded(
    model: TorchModel, parts: Sequence[BlockParts], tokens: Int[Tensor, "row pos"]
) -> tuple[Float[Tensor, "sender row pos d_model"], dict[str, Tensor]]:
    """What every sender writes, and what was seen at every hook point of the parts, in one pass."""
    inside = [hook for one in parts for hook in (one.stream, one.z)]
    ends = [hook for one in parts for hook in (one.attention_out, one.mlp_out)]
    _, seen = model.whole_pass(tokens, [*inside, *ends, parts[-1].end])
    found = [seen[parts[0].stream][None]]
    for one in parts:
        found += [head_writes(one, seen[one.z]), seen[one.mlp_out][None]]
    return torch.cat(found), seen


def check_parts(
    model: TorchModel,
    parts: Sequence[BlockParts],
    graph: ComponentGraph,
    tokens: Int[Tensor, "row pos"],
) -> bool:
    """Refuse a model whose parts, put together again, are not the model.

    Args:
        model: The model.
        parts: Of `blocks_of`.
        graph: Its components.
        tokens: A prompt.

    Returns:
        Whether its blocks give back the stream and nothing else, so that one may be skipped.

    Raises:
        ModelError: It is such a model.
    """
    writes, seen = recorded(model, parts, tokens)
    end = seen[parts[-1].end]
    size = float(end.abs().max())
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 0.02
    for layer, one in enumerate(parts):
        first = 1 + layer * graph.per_layer
        # A bias of W_O belongs to no head: it must be the same vector at every position.
        missed = seen[one.attention_out] - writes[first : first + graph.n_heads].sum(0)
        if float((missed - missed[:, :1]).abs().max()) > tolerance * size:
            raise ModelError(
                f"The heads of block {layer} of {model.name} do not add up to what its attention "
                "adds to the residual stream, as where a norm or a factor follows. Components are "
                "told apart in models without one only."
            )
    added = sum(seen[hook] for one in parts for hook in (one.attention_out, one.mlp_out))
    gap = float((seen[parts[0].stream] + added - end).abs().max())
    if gap > tolerance * size:
        raise ModelError(
            f"What attention and MLPs of {model.name} add does not sum to its residual stream: it "
            f"misses by {gap:.2g} of {size:.2g}. Components cannot be told apart where a model "
            "scales what is added."
        )
    return _check_inputs(model, parts, graph, tokens, writes, 10 * tolerance)


@torch.no_grad()
def _check_inputs(
    model: TorchModel,
    parts: Sequence[BlockParts],
    graph: ComponentGraph,
    tokens: Tensor,
    writes: Tensor,
    tolerance: float,
) -> bool:
    """Every receiver reads its own stream anew: nothing may change."""
    plain: list[bool] = []
    hook = model.module.get_submodule(parts[-1].block).register_forward_hook(
        lambda _module, _inputs, output: plain.append(isinstance(output, Tensor))
    )
    try:
        before = model.logits(tokens)[:, -1]
    finally:
        hook.remove()
    removal = Removal(parts, graph, writes, edges=graph.allowed())
    with model.editing(removal.edits()):
        after = model.logits(tokens)[:, -1]
    gap = float((before - after).abs().max() / before.abs().max().clamp_min(1e-9))
    if not gap <= tolerance:
        raise ModelError(
            f"What the heads and MLPs of {model.name} read cannot be made anew: with nothing "
            f"changed, logits move by {gap:.1e} of the largest. Its norms or projections are laid "
            "out in a way that saelab does not know."
        )
    return plain == [True]
