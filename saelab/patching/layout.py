"""How is a transformer's block taken apart into heads, an MLP, and what each of them reads?

Everything is found in the modules of the model: the norms before attention and MLP, the rows of the
projections that belong to one head, and the columns of W_O that it writes with. What was found is
checked on every prompt (`Experiment`): the parts must add up to the residual stream.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.errors import ModelError
from saelab.hook_points.layouts import block_places
from saelab.models import LanguageModel
from saelab.models.torch_model import TorchModel

__all__ = ["BlockParts", "Projection", "blocks_of", "torch_model"]

_ATTENTION_NORMS = ("input_layernorm", "ln_1")
_MLP_NORMS = ("post_attention_layernorm", "ln_2", "mlp_norm")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """What makes the queries, the keys or the values of a block."""

    hook: str
    """The output of the module that computes them, perhaps with others."""
    rows: Int[Tensor, "head d_head"]
    """Which coordinates of that output belong to each head."""
    weight: Float[Tensor, "head d_head d_model"]
    """What each head multiplies the normalized stream by."""
    bias: Float[Tensor, "head d_head"] | None
    """What is added, if anything."""

    def of(self, x: Float[Tensor, "head row pos d_model"]) -> Float[Tensor, "row pos coordinate"]:
        """Every head's vector, each from an input of its own, heads side by side."""
        made = torch.einsum("hrpd,hed->rphe", x, self.weight.to(x))
        if self.bias is not None:
            made = made + self.bias.to(x)
        return made.flatten(2)


@final
@dataclass(frozen=True, slots=True, eq=False)
class BlockParts:
    """Modules and hook points of one block."""

    block: str
    """Path of its module."""
    stream: str
    """Hook point: the residual stream that enters the block."""
    attention_norm: nn.Module
    """Applied before the projections."""
    projections: dict[str, Projection]
    """By channel: q, k, v."""
    z: str
    """Hook point: heads before W_O, side by side."""
    W_O: Float[Tensor, "head d_head d_model"]
    """What each head writes with."""
    attention_out: str
    """Hook point: what attention adds to the residual stream."""
    mlp_stream: str
    """Hook point: the residual stream that the MLP's norm reads."""
    mlp_norm: nn.Module
    """Applied before the MLP."""
    mlp_in: str
    """Hook point: what the MLP reads."""
    mlp_out: str
    """Hook point: what the MLP adds to the residual stream."""
    end: str
    """Hook point: the residual stream that leaves the block."""
    parallel: bool
    """Whether the MLP reads what attention reads, and not what attention has added."""
    has_mlp: bool
    """Whether the MLP has any weight; otherwise it is no component."""


def torch_model(model: LanguageModel) -> TorchModel:
    """The model, if its modules can be taken apart.

    Raises:
        ModelError: It is no transformer that saelab runs itself.
    """
    if not isinstance(model, TorchModel):
        raise ModelError(
            f"{model.name} is a {type(model).__name__}, whose heads saelab cannot reach one by "
            "one. Load it with saelab.load_model and its default backend."
        )
    return model


def blocks_of(model: LanguageModel) -> tuple[BlockParts, ...]:
    """The parts of every block.

    Raises:
        ModelError: The blocks are laid out in a way that saelab does not know.
    """
    module = torch_model(model).module
    lists = [
        (path, list(sub))
        for path, sub in module.named_modules()
        if isinstance(sub, nn.ModuleList) and len(sub)
    ]
    known = [one for one in lists if "hook_attn_out" in block_places(one[1][0])]
    if not known:
        raise ModelError(
            f"{model.name} has no blocks of a layout that saelab knows, so its heads cannot be "
            "told apart. Models built like GPT-2, GPT-NeoX or Llama can."
        )
    path, blocks = max(known, key=lambda one: len(one[1]))
    return tuple(_parts(f"{path}.{n}", block, model.name) for n, block in enumerate(blocks))


def _parts(path: str, block: nn.Module, name: str) -> BlockParts:
    places = block_places(block)

    def hook(ending: str) -> str:
        inner, side = places[ending]
        return f"{path}.{inner}.{side}" if inner else f"{path}.{side}"

    attention_norm = _first(block, _ATTENTION_NORMS)
    parallel = "hook_resid_mid" not in places
    if parallel:
        mlp_norm, mlp_stream = _first(block, _MLP_NORMS) or attention_norm, f"{path}.input"
    else:
        mlp_norm = block.get_submodule(places["hook_resid_mid"][0])
        mlp_stream = hook("hook_resid_mid")
    if attention_norm is None or mlp_norm is None:
        raise ModelError(
            f"Attention or MLP of {name} reads the residual stream without a norm before it that "
            "saelab knows, so what its heads read cannot be changed one by one."
        )
    out = places["attn.hook_z"][0]
    inner, _, last = out.rpartition(".")
    attention = block.get_submodule(inner)
    d_head = int(getattr(attention, "head_dim", None) or getattr(attention, "head_size", 0))
    output = _matrix(attention.get_submodule(last))
    if not d_head or output is None or output.shape[1] % d_head:
        raise ModelError(f"saelab cannot tell how wide a head of {name} is, in {path}.{inner}.")
    n_heads = output.shape[1] // d_head
    return BlockParts(
        block=path,
        stream=f"{path}.input",
        attention_norm=attention_norm,
        projections=_projections(f"{path}.{inner}", attention, n_heads, d_head, name),
        z=hook("attn.hook_z"),
        W_O=output.T.unflatten(0, (n_heads, d_head)),
        attention_out=hook("hook_attn_out"),
        mlp_stream=mlp_stream,
        mlp_norm=mlp_norm,
        mlp_in=hook("mlp.hook_in"),
        mlp_out=hook("hook_mlp_out"),
        end=f"{path}.output",
        parallel=parallel,
        has_mlp=any(True for _ in block.get_submodule(places["mlp.hook_in"][0]).parameters()),
    )


def _projections(
    path: str, attention: nn.Module, n_heads: int, d_head: int, name: str
) -> dict[str, Projection]:
    """Separate modules; or one, with q, k and v one after another or head by head."""
    children = dict(attention.named_children())
    if all(f"{channel}_proj" in children for channel in "qkv"):
        found = {}
        for channel in "qkv":
            module = children[f"{channel}_proj"]
            matrix = _matrix(module)
            if matrix is None or len(matrix) % d_head:
                break
            rows = torch.arange(len(matrix)).unflatten(0, (-1, d_head))
            found[channel] = _projection(f"{path}.{channel}_proj.output", module, matrix, rows)
        else:
            return found
    each = torch.arange(n_heads * d_head).unflatten(0, (n_heads, d_head))
    fused = next((n for n in ("c_attn", "query_key_value", "qkv_proj") if n in children), None)
    matrix = None if fused is None else _matrix(children[fused])
    if fused is None or matrix is None or len(matrix) != 3 * n_heads * d_head:
        raise ModelError(
            f"saelab does not know how {type(attention).__name__} of {name} makes queries, keys "
            f"and values: it has {sorted(children)}. Models built like GPT-2, GPT-NeoX or Llama "
            "can be taken apart."
        )
    by_head = fused == "query_key_value"  # GPT-NeoX, BLOOM: each head's q, k and v together
    heads = torch.arange(n_heads)[:, None]
    return {
        channel: _projection(
            f"{path}.{fused}.output",
            children[fused],
            matrix,
            each + (2 * heads + n) * d_head if by_head else each + n * n_heads * d_head,
        )
        for n, channel in enumerate("qkv")
    }


def _projection(hook: str, module: nn.Module, matrix: Tensor, rows: Tensor) -> Projection:
    bias: Any = getattr(module, "bias", None)
    rows = rows.to(matrix.device)
    return Projection(hook, rows, matrix[rows], None if bias is None else bias.detach()[rows])


def _matrix(module: nn.Module) -> Float[Tensor, "d_out d_in"] | None:
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return weight.detach()
    return weight.detach().T if hasattr(module, "nf") else None  # transformers' Conv1D


def _first(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((getattr(block, name) for name in names if hasattr(block, name)), None)
