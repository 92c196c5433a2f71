"""Which class of dictionary_learning computes the same, and what is in its files?"""

import io
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saelab.activation_functions import BatchTopK
from saelab.errors import FormatError
from saelab.formats.parts import (
    Parts,
    rule_of,
    thresholds_of,
    with_pre_bias,
    without_pre_bias,
)
from saelab.formats.places import layer_of

__all__ = ["pickled", "write_files"]


def write_files(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    """ae.pt and config.json, as `load_dictionary` reads them.

    Raises:
        FormatError: No class computes the same.
    """
    (parts,) = dictionaries
    if parts.W_skip is not None or parts.W_dec.shape[1] != parts.W_enc.shape[0]:
        raise FormatError(
            "dictionary_learning has no skip connection and one width for what is read and "
            "written, so this dictionary cannot be expressed exactly."
        )
    kind, state = _state(parts)
    trainer: dict[str, Any] = {
        "dict_class": kind,
        "trainer_class": "saelab",
        "activation_dim": parts.W_enc.shape[0],
        "dict_size": parts.W_enc.shape[1],
        "layer": layer_of(parts.hook),
        "lm_name": parts.model or "unknown",
        "submodule_name": _submodule(parts),
        "device": "cpu",
    }
    if "k" in state:
        trainer["k"] = int(state["k"])
    across = parts.hook_out is not None
    buffer = {
        "d_submodule": parts.W_enc.shape[0],
        "io": "in_and_out" if across else "out",
        "ctx_len": None,
    }
    text = json.dumps({"trainer": trainer, "buffer": buffer}, indent=1) + "\n"
    return {"ae.pt": pickled(state), "config.json": text.encode()}


def _state(parts: Parts) -> tuple[str, dict[str, Tensor]]:
    rule, k = rule_of(parts.activation)
    # AutoEncoder would have its decoder normalized on loading, which rescales the latents.
    if rule == "relu":
        free = without_pre_bias(parts)
        return "AutoEncoderNew", _linear(free) | {"decoder.bias": free.b_dec}
    if rule == "topk":
        return "AutoEncoderTopK", _budgeted(parts, k, -1.0)
    thresholds = thresholds_of(parts)
    if thresholds is None:
        raise FormatError(
            f"dictionary_learning has no dictionary with the activation function "
            f"{parts.activation}, so this one cannot be expressed exactly."
        )
    if isinstance(parts.activation, BatchTopK) and parts.activation.k.is_integer():
        state = _budgeted(parts, int(parts.activation.k), float(thresholds[0]))
        return "BatchTopKSAE", state
    free = without_pre_bias(parts)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    direct = {name: getattr(free, name) for name in names}
    return "JumpReluAutoEncoder", direct | {"threshold": thresholds}


def _linear(parts: Parts) -> dict[str, Tensor]:
    return {
        "encoder.weight": parts.W_enc.T,
        "encoder.bias": parts.b_enc,
        "decoder.weight": parts.W_dec.T,
    }


def _budgeted(parts: Parts, k: int, threshold: float) -> dict[str, Tensor]:
    centered = with_pre_bias(parts)
    settings = {
        "k": torch.tensor(k, dtype=torch.int32),
        "threshold": torch.tensor(threshold, dtype=torch.float32),
    }
    return _linear(centered) | {"b_dec": centered.b_dec} | settings


def _submodule(parts: Parts) -> str | None:
    layer, place = layer_of(parts.hook), (parts.hook or "").rpartition("hook_")[2]
    known = place in ("resid_post", "mlp_out", "attn_out") and layer is not None
    return f"{place}_layer_{layer}" if known else parts.hook


def pickled(state: dict[str, Any]) -> bytes:
    """What torch.save writes of a state dict, in fresh contiguous tensors."""
    own = {n: t.contiguous().clone() if isinstance(t, Tensor) else t for n, t in state.items()}
    buffer = io.BytesIO()
    torch.save(own, buffer)
    return buffer.getvalue()
