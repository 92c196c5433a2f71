"""Which hook points does this torch module have?"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from saelab.hook_points.layouts import KINDS, block_places, layer_synonyms
from saelab.hook_points.table import HookPoint, HookTable, Place

__all__ = ["hook_table", "widths_of"]

Widths = tuple[int | None, int | None]


def hook_table(module: nn.Module, model_name: str, d_model: int | None = None) -> HookTable:
    """Describe a torch module: TransformerLens's names for a transformers model, paths for any.

    The names are given only where the layout of the blocks is known; a transformers model with
    another layout gets hook_resid_pre and hook_resid_post. A module that is no transformers model
    is reached by module paths alone: nobody has checked what its parts add to what.

    Args:
        module: The model.
        model_name: For messages.
        d_model: Width of the residual stream, where known.
    """
    paths = {path: widths_of(sub) for path, sub in module.named_modules() if path}
    if not hasattr(module, "get_input_embeddings") or not hasattr(module, "config"):
        return HookTable(model_name, [], paths=paths)
    blocks_path, blocks = _blocks(module)
    points: list[HookPoint] = []
    synonyms: dict[str, Place] = {}
    if embedding := _path_of(module, _input_embeddings(module)):
        points.append(HookPoint("hook_embed", embedding, "output", None, "embed", d_model))
        synonyms["embed.hook_out"] = (embedding, "output")
    for layer, block in enumerate(blocks):
        places: dict[str, Place] = {
            ending: (f"{blocks_path}.{layer}.{sub}".rstrip("."), side)
            for ending, (sub, side) in block_places(block).items()
        }
        points += _block_points(layer, places, paths, d_model)
        synonyms |= layer_synonyms(layer, places, paths)
    return HookTable(
        model_name,
        points,
        paths=paths,
        synonyms=synonyms,
        base=getattr(module, "base_model_prefix", ""),
        n_layers=len(blocks),
        parallel=_is_parallel(points),
    )


def widths_of(module: nn.Module) -> Widths:
    """How wide a module's input and output are, where the module says so.

    >>> widths_of(nn.Linear(2, 3)), widths_of(nn.ReLU())
    ((2, 3), (None, None))
    """
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if hasattr(module, "nf") and weight is not None:  # transformers' Conv1D, as in GPT-2
        return weight.shape[0], weight.shape[1]
    if isinstance(module, nn.Embedding):
        return None, module.embedding_dim
    if "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1:
        return weight.shape[0], weight.shape[0]
    return None, None


def _block_points(
    layer: int, places: Mapping[str, Place], paths: Mapping[str, Widths], d_model: int | None
) -> list[HookPoint]:
    points = []
    for ending, kind in KINDS.items():
        if ending in places:
            path, side = places[ending]
            inner = kind in ("attn_z", "mlp_post")
            width = paths[path][side == "output"] if inner else d_model
            points.append(HookPoint(f"blocks.{layer}.{ending}", path, side, layer, kind, width))
    return points


def _is_parallel(points: list[HookPoint]) -> bool:
    kinds = {point.kind for point in points}
    return "attn_out" in kinds and "resid_mid" not in kinds


def _blocks(module: nn.Module) -> tuple[str, list[nn.Module]]:
    """The list of transformer blocks: the longest whose blocks have a known layout.

    Failing that, the list as long as the configuration says the model is deep.
    """
    lists = [
        (path, list(sub))
        for path, sub in module.named_modules()
        if isinstance(sub, nn.ModuleList) and len(sub)
    ]
    known = [found for found in lists if "hook_attn_out" in block_places(found[1][0])]
    if known:
        return max(known, key=lambda found: len(found[1]))
    depth = getattr(module.config, "num_hidden_layers", None)
    return next((found for found in lists if len(found[1]) == depth), ("", []))


def _input_embeddings(module: Any) -> nn.Module | None:
    try:
        return module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _path_of(module: nn.Module, wanted: nn.Module | None) -> str:
    return next((path for path, sub in module.named_modules() if sub is wanted and path), "")
