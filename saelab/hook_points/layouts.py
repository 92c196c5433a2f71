"""How are the blocks of known architectures laid out?

A family is recognized by the modules a block has, so that a new architecture built like Llama
needs no entry here. Each entry says where in the block the places of `KINDS` lie.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from torch import nn

from saelab.hook_points.table import Place

__all__ = ["KINDS", "block_places", "layer_synonyms"]

KINDS = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_in": "attn_in",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
"""Ending of a canonical name after "blocks.L." -> kind, in the order a sequential block runs."""

# Other TransformerLens words for the same places.
_SYNONYMS = {
    "hook_in": "hook_resid_pre",
    "hook_out": "hook_resid_post",
    "attn.o.hook_in": "attn.hook_z",
    "mlp.out.hook_in": "mlp.hook_post",
}


@dataclass(frozen=True, slots=True)
class _Family:
    """How the blocks of some architectures are laid out: where in a block each place is."""

    attention: str
    projection: str
    """W_O inside the attention module."""
    mlp: str
    down: str
    """The MLP's last matrix, inside the MLP module."""
    norms: tuple[str, ...]
    """Norms a block must have besides attention and MLP."""
    second_norm: str | None = None
    """The norm whose input is the residual stream between attention and MLP."""
    lacks: tuple[str, ...] = ()
    """Modules a block must not have."""
    attention_out: str | None = None
    """The module whose output is added, where it is not the attention module."""
    mlp_out: str | None = None

    def fits(self, block: nn.Module) -> bool:
        needed = (self.attention, self.mlp, *self.norms)
        return all(_has(block, name) for name in needed) and not any(
            _has(block, name) for name in self.lacks
        )

    def places(self, block: nn.Module) -> dict[str, Place]:
        """Ending of the canonical name -> path inside the block, for what this block has."""
        found: dict[str, Place] = {
            "attn.hook_in": (self.attention, "input"),
            "attn.hook_z": (f"{self.attention}.{self.projection}", "input"),
            "hook_attn_out": (self.attention_out or self.attention, "output"),
            "mlp.hook_in": (self.mlp, "input"),
            "mlp.hook_post": (f"{self.mlp}.{self.down}", "input"),
            "hook_mlp_out": (self.mlp_out or self.mlp, "output"),
        }
        if self.second_norm and not getattr(block, "use_parallel_residual", False):
            found["hook_resid_mid"] = (self.second_norm, "input")
        return {ending: place for ending, place in found.items() if _has(block, place[0])}


# The most demanding first: the first family that fits a block describes it.
_FAMILIES = {
    "norms before and after (Gemma 2, Gemma 3)": _Family(
        "self_attn",
        "o_proj",
        "mlp",
        "down_proj",
        ("pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"),
        "pre_feedforward_layernorm",
        attention_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
    # No norm before the MLP: what it reads is the residual stream itself.
    "norms after only (OLMo 2, EXAONE 4)": _Family(
        "self_attn",
        "o_proj",
        "mlp",
        "down_proj",
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        "mlp",
        lacks=("input_layernorm", "pre_feedforward_layernorm"),
        attention_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
    "Llama (Mistral, Qwen, Gemma, SmolLM)": _Family(
        "self_attn",
        "o_proj",
        "mlp",
        "down_proj",
        ("input_layernorm", "post_attention_layernorm"),
        "post_attention_layernorm",
        lacks=("post_feedforward_layernorm",),
    ),
    "one norm, parallel (Cohere)": _Family(
        "self_attn",
        "o_proj",
        "mlp",
        "down_proj",
        ("input_layernorm",),
        lacks=("post_attention_layernorm", "post_feedforward_layernorm", "mlp.fc2"),
    ),
    "one norm, parallel (Phi)": _Family(
        "self_attn",
        "dense",
        "mlp",
        "fc2",
        ("input_layernorm",),
        lacks=("post_attention_layernorm",),
    ),
    "GPT-NeoX (Pythia)": _Family(
        "attention",
        "dense",
        "mlp",
        "dense_4h_to_h",
        ("input_layernorm", "post_attention_layernorm"),
        "post_attention_layernorm",
    ),
    "GPT-2": _Family(
        "attn", "c_proj", "mlp", "c_proj", ("ln_1", "ln_2"), "ln_2", ("attn.attention",)
    ),
    "GPT-Neo": _Family("attn", "attention.out_proj", "mlp", "c_proj", ("ln_1", "ln_2"), "ln_2"),
    "GPT-J": _Family("attn", "out_proj", "mlp", "fc_out", ("ln_1",), lacks=("ln_2",)),
    # Its attention and MLP modules add the residual stream themselves, so what is added is read
    # one module deeper.
    "BLOOM": _Family(
        "self_attention",
        "dense",
        "mlp",
        "dense_4h_to_h",
        ("input_layernorm", "post_attention_layernorm"),
        "post_attention_layernorm",
        attention_out="self_attention.dense",
        mlp_out="mlp.dense_4h_to_h",
    ),
}


def block_places(block: nn.Module) -> dict[str, Place]:
    """Ending of the canonical name -> path inside the block and side, for what this block has."""
    whole: dict[str, Place] = {"hook_resid_pre": ("", "input"), "hook_resid_post": ("", "output")}
    family = next((family for family in _FAMILIES.values() if family.fits(block)), None)
    return whole | (family.places(block) if family else {})


def layer_synonyms(
    layer: int, places: Mapping[str, Place], paths: Container[str]
) -> dict[str, Place]:
    """TransformerLens's other words for places in a block.

    Args:
        layer: Which block.
        places: Ending of the canonical name -> module path from the root, and side.
        paths: The modules the model has.
    """
    names = {old: places[new] for old, new in _SYNONYMS.items() if new in places}
    for part in ("attn", "mlp"):  # the module's own output, before any norm that follows it
        if f"{part}.hook_in" in places:
            names[f"{part}.hook_out"] = (places[f"{part}.hook_in"][0], "output")
    return {f"blocks.{layer}.{old}": place for old, place in names.items() if place[0] in paths}


def _has(block: nn.Module, path: str) -> bool:
    for part in path.split("."):
        found = getattr(block, part, None)
        if not isinstance(found, nn.Module):
            return False
        block = found
    return True
