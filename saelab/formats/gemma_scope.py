"""Gemma Scope: params.npz (Gemma 2), or params.safetensors with config.json (Gemma 3).

Everything there is a JumpReLU whose input is not centered by b_dec. The files of the first hold
arrays and nothing else: model and hook point are read from the names of the folders, which should
therefore be kept: gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz.

Source of the layout: the technical reports (Lieberum et al. 2024 for the first) and the loaders of
SAELens and circuit-tracer.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from saelab.activation_functions import JumpReLU
from saelab.errors import FormatError
from saelab.formats.base import Asked, Format, only_known
from saelab.formats.foreign import json_of, npz_of, safetensors_of, take
from saelab.formats.parts import Parts, thresholds_of, without_pre_bias
from saelab.formats.places import from_module_path, to_module_path

__all__ = ["GEMMA_SCOPE", "GEMMA_SCOPE_2"]

ARRAYS, TENSORS = "params.npz", "params.safetensors"
# Transcoders read and write the residual stream's width, so one width is enough.
_AXES = {
    "w_enc": "d_in d_sae",
    "b_enc": "d_sae",
    "w_dec": "d_sae d_in",
    "b_dec": "d_in",
    "threshold": "d_sae",
}
_SKIP = {"affine_skip_connection": "d_in d_in"}
_FOLDERS = {
    "resid_post": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
}
_KNOWN = {
    *("architecture", "model_name", "hf_hook_point_in", "hf_hook_point_out", "affine_connection"),
    *("width", "l0", "type", "num_layers"),
}


def _read_arrays(path: Path, asked: Asked) -> Parts:
    origin = path if path.is_file() else path / ARRAYS
    found = {name.lower(): array for name, array in npz_of(origin).items()}
    where = origin.absolute().as_posix()
    parts = _parts(found, origin, _first_places(where, asked), {})
    if "embedding" in where.split("/") and (asked.hook or parts.hook) == "hook_embed":
        # They were trained on the embeddings times sqrt(d_in), as Gemma's first block reads them.
        root = parts.W_enc.shape[0] ** 0.5
        parts = replace(parts, W_enc=parts.W_enc / root, W_dec=parts.W_dec * root)
    return replace(parts, model=_first_model(where), recorded=_l0(where))


def _first_places(where: str, asked: Asked) -> tuple[str | None, str | None]:
    layer = re.search(r"/layer_(\d+)/", where)
    kind = re.search(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)\b", where)
    block = f"blocks.{layer[1]}." if layer else None
    if kind and kind[1] == "res" and "/embedding/" in where:
        return asked.hook or "hook_embed", None
    if not kind or not block:
        return asked.hook, asked.hook_out
    ending = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
    if kind[1] in ending:
        return asked.hook or block + ending[kind[1]], None
    return (
        asked.hook or f"{block}ln2.hook_normalized",
        asked.hook_out or f"{block}hook_mlp_out",
    )


def _first_model(where: str) -> str | None:
    named = re.search(r"gemma-scope-(\d+b)-(pt|it)\b", where)
    return f"gemma-2-{named[1]}{'-it' if named[2] == 'it' else ''}" if named else None


def _l0(where: str) -> dict[str, float]:
    named = re.search(r"/average_l0_(\d+)(?:/|$)", where)
    return {"l0": float(named[1])} if named else {}


def _read_tensors(path: Path, asked: Asked) -> Parts:
    origin = path if path.is_file() else path / TENSORS
    beside = origin.with_name("config.json")
    config = json_of(beside) if beside.exists() else {}
    only_known(config, _KNOWN, asked, beside)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FormatError(
            f"{beside}: architecture={config['architecture']!r}; only jump_relu is read."
        )
    parts = _parts(safetensors_of(origin), origin, _second_places(config, origin, asked), config)
    model = config.get("model_name")
    return replace(parts, model=model if isinstance(model, str) else None)


def _second_places(
    config: dict[str, Any], origin: Path, asked: Asked
) -> tuple[str | None, str | None]:
    places = [config.get(key) for key in ("hf_hook_point_in", "hf_hook_point_out")]
    if any(place is not None and not isinstance(place, str) for place in places):
        raise FormatError(
            f"{origin.with_name('config.json')}: hook points {places!r} are not text."
        )
    hook, hook_out = (from_module_path(place) if place else None for place in places)
    folder = origin.absolute().parent.as_posix()
    layer = re.search(r"/layer_(\d+)_", f"{folder}/")
    if layer and hook is None:
        kind = next((kind for kind in _FOLDERS if f"/{kind}" in folder), None)
        hook = f"blocks.{layer[1]}.{_FOLDERS[kind]}" if kind else None
        if "/transcoder" in folder:
            hook = f"blocks.{layer[1]}.mlp.hook_in"
            hook_out = f"blocks.{layer[1]}.hook_mlp_out"
    return asked.hook or hook, asked.hook_out or (None if hook_out == hook else hook_out)


def _parts(
    tensors: dict[str, Tensor],
    origin: Path,
    places: tuple[str | None, str | None],
    config: dict[str, Any],
) -> Parts:
    if "w_dec" in tensors and tensors["w_dec"].ndim == 3:
        raise FormatError(
            f"{origin} is one layer of a cross-layer transcoder, which writes to several layers: "
            "saelab has no dictionary for it yet."
        )
    skips = config.get("affine_connection")
    if skips is not None and skips != ("affine_skip_connection" in tensors):
        raise FormatError(
            f"{origin}: config.json says affine_connection={skips!r}, and affine_skip_connection "
            f"is {'' if 'affine_skip_connection' in tensors else 'not '}there."
        )
    found, _ = take(tensors, origin, _AXES, _SKIP)
    hook, hook_out = places
    return Parts(
        W_enc=found["w_enc"],
        b_enc=found["b_enc"],
        W_dec=found["w_dec"],
        b_dec=found["b_dec"],
        threshold=found["threshold"],
        W_skip=found.get("affine_skip_connection"),
        activation=JumpReLU(),
        pre_bias=False,
        hook=hook,
        hook_out=hook_out,
    )


def _jumprelu(dictionaries: Sequence[Parts]) -> tuple[Parts, dict[str, Tensor]]:
    (parts,) = dictionaries
    thresholds = thresholds_of(parts)
    if thresholds is None:
        raise FormatError(
            f"Gemma Scope's files hold a JumpReLU; {parts.activation} cannot be expressed exactly."
        )
    if parts.W_enc.shape[0] != parts.W_dec.shape[1]:
        raise FormatError(
            f"Gemma Scope reads and writes one width; {parts.W_enc.shape[0]} in and "
            f"{parts.W_dec.shape[1]} out cannot be expressed."
        )
    own = without_pre_bias(parts)
    tensors = {
        "w_enc": own.W_enc,
        "b_enc": own.b_enc,
        "w_dec": own.W_dec,
        "b_dec": own.b_dec,
        "threshold": thresholds,
    }
    return own, {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _write_arrays(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    import numpy as np

    own, tensors = _jumprelu(dictionaries)
    if own.W_skip is not None:
        raise FormatError("params.npz has no place for a skip connection; use gemma-scope-2.")
    buffer = io.BytesIO()
    named = {name.replace("w_", "W_"): tensor.numpy() for name, tensor in tensors.items()}
    np.savez(buffer, allow_pickle=False, **named)
    return {ARRAYS: buffer.getvalue()}


def _write_tensors(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    own, tensors = _jumprelu(dictionaries)
    if own.W_skip is not None:
        tensors["affine_skip_connection"] = own.W_skip.contiguous().clone()
    config: dict[str, Any] = {"architecture": "jump_relu", "model_name": own.model or "unknown"}
    if own.hook is not None:
        config["hf_hook_point_in"] = to_module_path(own.hook)
    if own.hook_out is not None:
        config["hf_hook_point_out"] = to_module_path(own.hook_out)
        config["affine_connection"] = own.W_skip is not None
    text = json.dumps(config, indent=1) + "\n"
    return {TENSORS: save(tensors), "config.json": text.encode()}


GEMMA_SCOPE = Format(
    name="gemma-scope",
    peer="Gemma Scope (Gemma 2)",
    files="params.npz",
    recognizes=lambda path: path.suffix == ".npz" or (path / ARRAYS).exists(),
    read=_read_arrays,
    write=_write_arrays,
)
GEMMA_SCOPE_2 = Format(
    name="gemma-scope-2",
    peer="Gemma Scope 2 (Gemma 3)",
    files="params.safetensors and config.json",
    recognizes=lambda path: path.name == TENSORS or (path / TENSORS).exists(),
    read=_read_tensors,
    write=_write_tensors,
)
