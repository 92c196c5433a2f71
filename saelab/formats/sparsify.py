"""sparsify: cfg.json and sae.safetensors, in a folder named after the hook point.

W_dec is stored as `[latent, d_in]`, as it is used; whether b_dec is subtracted from the input
depends on `transcode` alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from saelab.activation_functions import ActivationFunction, GroupMax, TopK
from saelab.errors import FormatError
from saelab.formats.base import Asked, Format, number, only_known
from saelab.formats.foreign import json_of, safetensors_of, take
from saelab.formats.parts import Parts, rule_of, with_pre_bias, without_pre_bias
from saelab.formats.places import from_module_path

__all__ = ["SPARSIFY"]

WEIGHTS = "sae.safetensors"
_AXES = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "W_dec": "d_sae d_in",
    "b_dec": "d_in",
}
_SKIP = {"W_skip": "d_out d_in"}
_KNOWN = {
    *("activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk"),
    *("skip_connection", "transcode", "d_in", "signed"),
}
_LATER = ("activation", "transcode", "skip_connection")
_RULES: dict[str, type[TopK] | type[GroupMax]] = {"topk": TopK, "groupmax": GroupMax}


def _read(path: Path, asked: Asked) -> Parts:
    origin = path / "cfg.json"
    config = json_of(origin)
    only_known(config, _KNOWN, asked, origin)
    _complete(config, origin)
    d_in = number(config, "d_in", origin)
    transcode, skip = (_flag(config, key, origin) for key in ("transcode", "skip_connection"))
    tensors, found = take(
        safetensors_of(path / WEIGHTS),
        path / WEIGHTS,
        _AXES | (_SKIP if skip else {}),
        sizes={"d_in": d_in, "d_out": d_in, "d_sae": _latents(config, d_in or 0, origin)},
    )
    return Parts(
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors["W_skip"].T if skip else None,
        activation=_activation(config, found["d_sae"], origin),
        pre_bias=not transcode,
        **_places(path, transcode, asked, origin),
        model=_model(path),
        notes={"hookpoint": path.name},
    )


def _complete(config: Mapping[str, Any], origin: Path) -> None:
    """Files from before transcoders have none of these settings; later ones have all."""
    missing = [key for key in _LATER if key not in config]
    if missing and len(missing) < len(_LATER):
        raise FormatError(
            f"{origin} has some of {', '.join(_LATER)}, and lacks {', '.join(missing)}, so what it "
            "computes is not certain. Add what is missing, if you know it."
        )


def _flag(config: Mapping[str, Any], key: str, origin: Path) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise FormatError(f"{origin}: {key}={value!r} should be true or false.")
    return value


def _latents(config: Mapping[str, Any], d_in: int, origin: Path) -> int | None:
    if config.get("num_latents"):
        return number(config, "num_latents", origin)
    factor = number(config, "expansion_factor", origin, required=False)
    return factor * d_in if factor else None


def _activation(config: Mapping[str, Any], d_sae: int, origin: Path) -> ActivationFunction:
    name, k = config.get("activation", "topk"), number(config, "k", origin) or 0
    if config.get("signed"):
        raise FormatError(
            f"{origin}: signed=true, a rule that sparsify has dropped, is not read by saelab."
        )
    if not isinstance(name, str) or name not in _RULES:
        raise FormatError(f"{origin}: activation={name!r}; sparsify has {', '.join(_RULES)}.")
    if k > d_sae or (name == "groupmax" and d_sae % k):
        raise FormatError(f"{origin}: {name} with k={k} does not fit {d_sae} latents.")
    return _RULES[name](k)


def _places(path: Path, transcode: bool, asked: Asked, origin: Path) -> dict[str, Any]:
    """The folder is named after the module: "layers.5.mlp", or "layers.5.mlp/seed1"."""
    folder = path.absolute()
    name = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    hook, hook_out = asked.hook, asked.hook_out
    if re.fullmatch(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.\d+(?:\.[A-Za-z_][\w.]*)?", name):
        hook = hook or from_module_path(f"{name}.{'input' if transcode else 'output'}")
        hook_out = hook_out or from_module_path(f"{name}.output")
    if not transcode:
        return {"hook": hook, "hook_out": None}
    if hook is None or hook_out is None:
        raise FormatError(
            f"{origin}: it is a transcoder, and its folder is not named after a module "
            f"({name!r}). Say hook=... and hook_out=..., or rename it, as in layers.5.mlp."
        )
    return {"hook": hook, "hook_out": hook_out}


def _model(path: Path) -> str | None:
    """The run's config.json, one or two folders up, names the model."""
    for folder in list(path.absolute().parents)[:2]:
        if (folder / "config.json").is_file():
            try:
                model = json_of(folder / "config.json").get("model")
            except FormatError:
                return None
            return model if isinstance(model, str) else None
    return None


def _write(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    (parts,) = dictionaries
    transcode = parts.hook_out is not None
    (d_in, d_sae), d_out = parts.W_enc.shape, parts.W_dec.shape[1]
    rule, k = rule_of(parts.activation)
    if d_in != d_out or rule not in _RULES:
        raise FormatError(
            f"sparsify has TopK and GroupMax of one width in and out; {parts.activation} from "
            f"{d_in} to {d_out} cannot be expressed exactly."
        )
    own = without_pre_bias(parts) if transcode else with_pre_bias(parts)
    tensors = {
        "encoder.weight": own.W_enc.T,
        "encoder.bias": own.b_enc,
        "W_dec": own.W_dec,
        "b_dec": own.b_dec,
    }
    if own.W_skip is not None:
        tensors["W_skip"] = own.W_skip.T
    norms = own.W_dec.norm(dim=1)
    config = {
        "activation": rule,
        "expansion_factor": max(1, d_sae // d_in),
        "normalize_decoder": bool((norms - 1).abs().max() < 1e-4),
        "num_latents": d_sae,
        "k": k,
        "multi_topk": False,
        "skip_connection": own.W_skip is not None,
        "transcode": transcode,
        "d_in": d_in,
    }
    stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    return {"cfg.json": (json.dumps(config) + "\n").encode(), WEIGHTS: save(stored)}


SPARSIFY = Format(
    name="sparsify",
    peer="sparsify 1.3.3",
    files="cfg.json and sae.safetensors",
    recognizes=lambda path: (path / WEIGHTS).exists(),
    read=_read,
    write=_write,
)
