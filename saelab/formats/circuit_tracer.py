"""circuit-tracer: config.yaml and one layer_{i}.safetensors for every layer.

A folder is a set of transcoders; `layer=` names the one that is wanted. circuit-tracer sets the
latents of position 0 to zero when it traces, which is not part of these files.

Source of the layout: the project's hf_utils.py and single_layer_transcoder.py (2026).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from saelab.activation_functions import ActivationFunction, JumpReLU, ReLU, TopK
from saelab.errors import FormatError
from saelab.formats.base import Asked, Format, number, only_known
from saelab.formats.foreign import safetensors_of, take, yaml_of
from saelab.formats.parts import Parts, rule_of, without_pre_bias
from saelab.formats.places import ending_of, layer_of

__all__ = ["CIRCUIT_TRACER", "layers_in", "read_settings", "yaml_bytes"]

_AXES = {"W_enc": "d_sae d_in", "W_dec": "d_sae d_out", "b_enc": "d_sae", "b_dec": "d_out"}
_OPTIONAL = {"W_skip": "d_out d_in", "activation_function.threshold": "d_sae"}
_RULES = ("relu", "jumprelu", "topk")
_KNOWN = {
    *("model_name", "model_kind", "feature_input_hook", "feature_output_hook", "scan", "scan_name"),
    *("activation", "k", "transcoders", "repo_id", "revision", "subfolder"),
}


def layers_in(folder: Path) -> list[int]:
    """The layers that have a file, ascending."""
    names = (re.fullmatch(r"layer_(\d+)\.safetensors", path.name) for path in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)


def read_settings(folder: Path, asked: Asked, kind: str) -> dict[str, Any]:
    """config.yaml, checked to be of one kind of model.

    Raises:
        FormatError: It is of another kind, or lacks a hook.
    """
    origin = folder / "config.yaml"
    config = yaml_of(origin)
    only_known(config, _KNOWN, asked, origin)
    if config.get("model_kind") != kind:
        raise FormatError(
            f"{origin}: model_kind={config.get('model_kind')!r} where {kind!r} was expected. "
            "Cross-layer transcoders are read by saelab.formats.read_cross_layer(folder)."
        )
    for key in ("feature_input_hook", "feature_output_hook"):
        if not isinstance(config.get(key), str) or not config[key]:
            raise FormatError(f"{origin}: {key}={config.get(key)!r} should name a hook point.")
    return config


def _read(path: Path, asked: Asked) -> Parts:
    folder, layer = (path.parent, _layer_of_file(path)) if path.is_file() else (path, asked.layer)
    config = read_settings(folder, asked, "transcoder_set")
    layers = layers_in(folder)
    if not layers and config.get("transcoders"):
        raise FormatError(
            f"{folder / 'config.yaml'} only lists files that are elsewhere "
            f"({str(config['transcoders'])[:120]}). Fetch the one you want and import it in its "
            "own format."
        )
    if layer is None and len(layers) == 1:
        (layer,) = layers
    if layer not in layers:
        asked_for = "no layer was named" if layer is None else f"layer {layer} is not there"
        raise FormatError(
            f"{folder} holds the transcoders of layers {layers}, and {asked_for}. Say layer=... "
            "(--layer), or read them all with saelab.formats.read_set(folder)."
        )
    return _transcoder(folder, layer, config, asked)


def _layer_of_file(path: Path) -> int | None:
    named = re.fullmatch(r"layer_(\d+)\.safetensors", path.name)
    return int(named[1]) if named else None


def _transcoder(folder: Path, layer: int, config: Mapping[str, Any], asked: Asked) -> Parts:
    origin = folder / f"layer_{layer}.safetensors"
    tensors = dict(safetensors_of(origin))
    k = tensors.pop("k", None)
    old = _is_transposed(tensors, config, origin)
    axes = _AXES | ({"W_dec": "d_out d_sae"} if old else {})
    found, sizes = take(tensors, origin, axes, _OPTIONAL)
    threshold, skip = found.get("activation_function.threshold"), found.get("W_skip")
    return Parts(
        W_enc=found["W_enc"].T,
        b_enc=found["b_enc"],
        W_dec=found["W_dec"].T if old else found["W_dec"],
        b_dec=found["b_dec"],
        threshold=threshold,
        W_skip=None if skip is None else skip.T,
        activation=_activation(config, threshold, k, sizes["d_sae"], folder),
        pre_bias=False,
        hook=asked.hook or f"blocks.{layer}.{config['feature_input_hook']}",
        hook_out=asked.hook_out or f"blocks.{layer}.{config['feature_output_hook']}",
        model=config["model_name"] if isinstance(config.get("model_name"), str) else None,
        notes={"layer": layer},
    )


def _is_transposed(tensors: Mapping[str, Tensor], config: Mapping[str, Any], origin: Path) -> bool:
    """Files of 2025 had W_dec as [d_model, latent]; shapes tell, unless they are square."""
    shapes = [tuple(tensors[name].shape) for name in ("W_enc", "W_dec") if name in tensors]
    if len(shapes) != 2 or len(shapes[0]) != 2 or shapes[0][0] == shapes[0][1]:
        if len(shapes) == 2 and not config.get("model_kind"):
            raise FormatError(f"{origin}: W_dec is square, so its orientation is unknown.")
        return False
    return shapes[1] == shapes[0][::-1]


def _activation(
    config: Mapping[str, Any], threshold: Tensor | None, k: Tensor | None, d_sae: int, folder: Path
) -> ActivationFunction:
    origin = folder / "config.yaml"
    name = config.get("activation", "topk" if k is not None else None)
    given = [config.get("k")] + ([] if k is None else [k.item() if k.numel() == 1 else str(k)])
    given = [value for value in given if value is not None]
    contradiction = (
        name not in (None, "relu", "topk")
        or (name == "topk") != bool(given)
        or any(value != given[0] for value in given)
        or (name is not None and threshold is not None)
    )
    if contradiction:
        raise FormatError(
            f"{origin}: activation={name!r}, k={given!r} and "
            f"{'thresholds' if threshold is not None else 'no thresholds'} do not fit together."
        )
    if name == "topk":
        count = number({"k": given[0]}, "k", origin) or 0
        if count > d_sae:
            raise FormatError(f"{origin}: k={count} is more than the {d_sae} latents there are.")
        return TopK(count)
    return ReLU() if threshold is None else JumpReLU()


def _write(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    parts = sorted((without_pre_bias(part) for part in dictionaries), key=_layer)
    hooks = {
        "feature_input_hook": {ending_of(part.hook or "") for part in parts},
        "feature_output_hook": {ending_of(part.hook_out or "") for part in parts},
    }
    _check_set(parts, hooks)
    config: dict[str, Any] = {
        "model_name": parts[0].model or "unknown",
        "model_kind": "transcoder_set",
        **{key: next(iter(names)) for key, names in hooks.items()},
    }
    rule, k = rule_of(parts[0].activation)
    if rule == "topk":
        config |= {"activation": rule, "k": k}
    files = {f"layer_{i}.safetensors": _layer_file(part) for i, part in enumerate(parts)}
    return {"config.yaml": yaml_bytes(config), **files}


def _check_set(parts: Sequence[Parts], hooks: Mapping[str, set[str]]) -> None:
    layers = [_layer(part) for part in parts]
    alike: dict[str, set[Any]] = {
        "all must read the same place of their layer": hooks["feature_input_hook"],
        "all must write the same place of their layer": hooks["feature_output_hook"],
        "all must have the same widths": {(p.W_enc.shape, p.W_dec.shape) for p in parts},
        "a skip connection must be in all or in none": {p.W_skip is None for p in parts},
        "one TopK must be in all or in none": {rule_of(p.activation)[1] for p in parts},
    }
    wrong = [text for text, values in alike.items() if len(values) > 1]
    if layers != list(range(len(parts))):
        wrong.append(f"there must be one for every layer from 0 on, not for {layers}")
    if any(part.W_enc.shape[0] != part.W_dec.shape[1] for part in parts):
        wrong.append("it reads and writes vectors of one width")
    if any(part.hook_out is None or layer_of(part.hook_out) != _layer(part) for part in parts):
        wrong.append("it replaces MLPs, so each must be a transcoder within its layer")
    if other := {part.activation for part in parts if rule_of(part.activation)[0] not in _RULES}:
        wrong.append(f"it has ReLU, JumpReLU and TopK, not {other.pop()}")
    if wrong:
        raise FormatError(f"circuit-tracer cannot express this exactly: {'; '.join(wrong)}.")


def _layer(part: Parts) -> int:
    layer = layer_of(part.hook)
    return -1 if layer is None else layer


def _layer_file(part: Parts) -> bytes:
    tensors = {
        "W_enc": part.W_enc.T,
        "b_enc": part.b_enc,
        "W_dec": part.W_dec,
        "b_dec": part.b_dec,
    }
    if part.W_skip is not None:
        tensors["W_skip"] = part.W_skip.T
    if rule_of(part.activation)[0] == "jumprelu":
        tensors["activation_function.threshold"] = part.activation.file_tensors()["threshold"]
    return save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def yaml_bytes(config: Mapping[str, Any]) -> bytes:
    """A configuration as a file, keys in their order."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False).encode()


def _recognizes(path: Path) -> bool:
    if path.is_file():
        return _layer_of_file(path) is not None and (path.parent / "config.yaml").exists()
    return (path / "config.yaml").exists()


CIRCUIT_TRACER = Format(
    name="circuit-tracer",
    peer="circuit-tracer 0.2 to 0.4",
    files="config.yaml and layer_0.safetensors, layer_1.safetensors, ...",
    recognizes=_recognizes,
    read=_read,
    write=_write,
)
