"""Which hook point do a peer's own words for a place mean?"""

import re

__all__ = ["ending_of", "from_module_path", "layer_of", "to_module_path"]

# Sides of modules that are the same place in every layout that has the module.
_CANONICAL = {
    "output": "hook_resid_post",
    "input": "hook_resid_pre",
    "self_attn.o_proj.input": "attn.hook_z",
}
# Gemma 2 and 3 alone put a norm behind the MLP, and these names imply one.
_GEMMA = {
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
_BLOCK = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)\.(.+)")


def from_module_path(path: str) -> str:
    """A module path with its side, in TransformerLens's words where those are certain.

    >>> from_module_path("model.layers.3.output"), from_module_path("h.0.mlp.input")
    ('blocks.3.hook_resid_post', 'h.0.mlp.input')
    """
    found = _BLOCK.fullmatch(path)
    name = (_CANONICAL | _GEMMA).get(found[2]) if found else None
    return f"blocks.{found[1]}.{name}" if found and name else path


def to_module_path(hook: str) -> str:
    """The path in a Gemma model of a hook point, or the name as it is.

    >>> to_module_path("blocks.3.hook_resid_post")
    'model.layers.3.output'
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    sides = {name: side for side, name in (_CANONICAL | _GEMMA).items()}
    side = sides.get(found[2]) if found else None
    return f"model.layers.{found[1]}.{side}" if found and side else hook


def layer_of(hook: str | None) -> int | None:
    """The block a hook point's name puts it in.

    >>> layer_of("blocks.12.hook_mlp_out"), layer_of("hook_embed")
    (12, None)
    """
    found = re.match(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.|$)", hook or "")
    return int(found[1]) if found else None


def ending_of(hook: str) -> str:
    """A hook point's name without its block.

    >>> ending_of("blocks.12.hook_mlp_out")
    'hook_mlp_out'
    """
    return re.sub(r"^blocks\.\d+\.", "", hook)
