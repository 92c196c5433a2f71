"""SAELens: cfg.json and sae_weights.safetensors.

Read: versions 3 to 6, the inference architectures and the checkpoints of training. Written: the
layout of 6.54.12, byte for byte what `SAE.save` writes for an autoencoder.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from saelab.activation_functions import AbsTopK, ActivationFunction, JumpReLU, ReLU, TopK
from saelab.dictionary_files import SAELENS_LAYOUT, WEIGHTS_FILE
from saelab.errors import FormatError
from saelab.formats.base import Asked, Format
from saelab.formats.foreign import json_of, safetensors_of, take
from saelab.formats.parts import (
    Parts,
    gated_to_jumprelu,
    with_decoder_norms_folded,
    with_input_scale,
    without_pre_bias,
)
from saelab.formats.saelens_config import SAELensConfig, read_config

__all__ = ["SAELENS"]

_FOUR = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
_ACROSS = {**_FOUR, "W_dec": "d_sae d_out", "b_dec": "d_out"}
_THRESHOLD, _SKIP = {"threshold": "d_sae"}, {"W_skip": "d_out d_in"}
_GATES = {"b_gate": "d_sae", "b_mag": "d_sae", "r_mag": "d_sae"}
_TENSORS: dict[str, dict[str, str]] = {
    "standard": _FOUR,
    "topk": _FOUR,
    "abstopk": _FOUR,
    "jumprelu": _FOUR | _THRESHOLD,
    "gated": {"W_enc": "d_in d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"} | _GATES,
    "batchtopk": _FOUR | {"topk_threshold": ""},
    "matryoshka_batchtopk": _FOUR | {"topk_threshold": ""},
    "transcoder": _ACROSS,
    "skip_transcoder": _ACROSS | _SKIP,
    "jumprelu_transcoder": _ACROSS | _THRESHOLD,
    "jumprelu_skip_transcoder": _ACROSS | _THRESHOLD | _SKIP,
}
_NOT_READ = {
    "temporal": "its latents depend on the tokens before",
    "matching_pursuit": "its latents come from a search, not from an encoder",
}
_SCALED = {
    "layer_norm": "each token is scaled by its own standard deviation",
    "constant_norm_rescale": "each token is scaled to the same length",
    "covariance_whitening": "the whitening matrices are not in these files; save it for inference",
}


def _read(path: Path, asked: Asked) -> Parts:
    origin = path / "cfg.json"
    config = read_config(json_of(origin), origin, asked)
    _refuse(config, origin, asked)
    tensors = safetensors_of(path / WEIGHTS_FILE)
    tensors = _without_old_names(tensors, config, path / WEIGHTS_FILE)
    expected = _TENSORS[config.architecture]
    sizes = dict(config.sizes)
    if "transcoder" not in config.architecture:
        sizes.pop("d_out")
    found, _ = take(tensors, path / WEIGHTS_FILE, expected, sizes=sizes, dtype=config.dtype)
    parts = _parts(found, config, asked)
    if config.rescale:
        parts = with_decoder_norms_folded(parts, str(path))
    if config.normalize == "expected_average_only_in":
        parts = with_input_scale(parts, _scale(path, config, asked))
    return replace(parts, recorded=_recorded(path, config))


def _parts(found: dict[str, Tensor], config: SAELensConfig, asked: Asked) -> Parts:
    tensors: dict[str, Any] = dict(found)
    if config.architecture == "gated":
        gates = [tensors.pop(name) for name in _GATES]
        tensors |= gated_to_jumprelu(tensors["W_enc"], *gates)
    if (threshold := tensors.pop("topk_threshold", None)) is not None:
        tensors["threshold"] = threshold.expand(tensors["b_enc"].shape[0])
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    transcoder = "transcoder" in config.architecture
    return Parts(
        **tensors,
        activation=_activation(config, "threshold" in tensors),
        pre_bias=config.pre_bias,
        hook=asked.hook or config.hook,
        hook_out=(asked.hook_out or config.hook_out) if transcoder else None,
        model=config.model,
        notes={"architecture": config.architecture, "saelens": config.about},
    )


def _activation(config: SAELensConfig, jumps: bool) -> ActivationFunction:
    if config.architecture in ("topk", "abstopk"):
        return {"topk": TopK, "abstopk": AbsTopK}[config.architecture](config.k or 1)
    return JumpReLU() if jumps else ReLU()


def _refuse(config: SAELensConfig, origin: Path, asked: Asked) -> None:
    """Everything that saelab does not compute."""
    architecture = config.architecture
    if architecture not in _TENSORS:
        reason = _NOT_READ.get(architecture, "saelab does not know it")
        raise FormatError(
            f"{origin}: the architecture {architecture!r} cannot be read: {reason}. There is "
            f"{', '.join(_TENSORS)}."
        )
    if config.normalize in _SCALED:
        raise FormatError(
            f"{origin}: normalize_activations={config.normalize!r} cannot be expressed: "
            f"{_SCALED[config.normalize]}, which no fixed weights can do."
        )
    if config.normalize not in ("none", "expected_average_only_in"):
        raise FormatError(f"{origin}: normalize_activations={config.normalize!r} is not known.")
    if config.head is not None and asked.hook is None:
        raise FormatError(
            f"{origin}: it reads attention head {config.head!r} alone, and saelab's hook points "
            "are whole vectors. Name a hook point that gives that head: hook=..."
        )
    if "transcoder" in architecture:
        if config.pre_bias or config.normalize != "none":
            raise FormatError(
                f"{origin}: a transcoder with apply_b_dec_to_input={config.pre_bias} and "
                f"normalize_activations={config.normalize!r} contradicts itself."
            )
        if (asked.hook_out or config.hook_out) is None:
            raise FormatError(
                f"{origin}: it is a transcoder, and does not say what it writes. Say "
                "hook_out='blocks.8.hook_mlp_out', or wherever it does."
            )
    if config.rescale and not architecture.endswith("topk"):
        raise FormatError(
            f"{origin}: rescale_acts_by_decoder_norm has no meaning for {architecture!r}."
        )


def _without_old_names(
    tensors: dict[str, Tensor], config: SAELensConfig, origin: Path
) -> dict[str, Tensor]:
    tensors = dict(tensors)
    factor = tensors.pop("scaling_factor", tensors.pop("finetuning_scaling_factor", None))
    if factor is not None and not torch.allclose(factor.float(), torch.ones(factor.shape)):
        raise FormatError(
            f"{origin} holds a scaling factor of latents that was found after training "
            "(finetuning_scaling_factor); SAELens itself no longer applies it, so what it should "
            "compute is unclear. Multiply W_dec by it and remove it."
        )
    if factor is None and config.finetuned:
        raise FormatError(f"{origin} lacks the scaling_factor that cfg.json says it has.")
    if "log_threshold" in tensors and "threshold" not in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    return tensors


def _scale(path: Path, config: SAELensConfig, asked: Asked) -> float:
    """What the activations were multiplied by; SAELens keeps it beside its checkpoints."""
    scale: Any = asked.input_scale
    if scale is None and (path / "activation_scaler.json").exists():
        scale = json_of(path / "activation_scaler.json").get("scaling_factor")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e12:
        raise FormatError(
            f"{path / 'cfg.json'}: normalize_activations={config.normalize!r} multiplies the "
            f"activations by a factor that the files do not give (found {scale!r}). It is "
            "sqrt(d_in) / their mean norm; say input_scale=... (--input-scale)."
        )
    return float(scale)


def _recorded(path: Path, config: SAELensConfig) -> dict[str, float]:
    found = {}
    sparsity = path / "sparsity.safetensors"
    if sparsity.exists():
        logs = safetensors_of(sparsity).get("sparsity")
        if logs is not None and logs.dtype.is_floating_point and bool(torch.isfinite(logs).all()):
            found["l0"] = float(10 ** logs.double() @ torch.ones(logs.shape[0]).double())
    for key in ("l0", "explained_variance"):
        value = config.about.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    return found


def _write(dictionaries: Sequence[Parts]) -> dict[str, bytes]:
    (parts,) = dictionaries
    transcoder = parts.hook_out is not None or parts.W_dec.shape[1] != parts.W_enc.shape[0]
    named = parts.activation.saelens()
    if named is None:
        raise FormatError(
            f"SAELens has no dictionary with the activation function {parts.activation}, so this "
            "one cannot be expressed exactly. Keep it in saelab's own format."
        )
    architecture, extra = named
    weights = {
        "W_enc": parts.W_enc,
        "b_enc": parts.b_enc,
        "W_dec": parts.W_dec,
        "b_dec": parts.b_dec,
        **parts.activation.file_tensors(),
    }
    if transcoder or parts.W_skip is not None:
        architecture = _transcoder(parts, architecture, transcoder)
        extra = {"d_out": parts.W_dec.shape[1]}
        weights["b_enc"] = without_pre_bias(parts).b_enc
        if parts.W_skip is not None:
            weights["W_skip"] = parts.W_skip.T
    config = _config(parts, architecture, extra, transcoder)
    return {"cfg.json": _json(config), WEIGHTS_FILE: save(_stored(weights))}


def _transcoder(parts: Parts, architecture: str, transcoder: bool) -> str:
    """SAELens's transcoders are ReLU and JumpReLU, with a skip connection or without."""
    prefix = {"standard": "", "jumprelu": "jumprelu_"}.get(architecture)
    if prefix is None or not transcoder:
        what = f"transcoders with {parts.activation}" if transcoder else "skip autoencoders"
        raise FormatError(
            f"SAELens has no {what}, so this dictionary cannot be expressed exactly. Keep it in "
            "saelab's own format, or write it as circuit-tracer or sparsify."
        )
    return f"{prefix}{'skip_' if parts.W_skip is not None else ''}transcoder"


def _config(
    parts: Parts, architecture: str, extra: dict[str, Any], transcoder: bool
) -> dict[str, Any]:
    hook = parts.hook or "unknown"
    metadata: dict[str, Any] = {
        "sae_lens_version": SAELENS_LAYOUT,
        "sae_lens_training_version": None,
        "hook_name": hook,
        **({} if parts.hook_out is None else {"hook_name_out": parts.hook_out}),
        "model_name": parts.model,
        "prepend_bos": True,
    }
    return {
        "d_in": parts.W_enc.shape[0],
        "d_sae": parts.W_enc.shape[1],
        "dtype": str(parts.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": parts.pre_bias and not transcoder,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        "metadata": metadata,
        "architecture": architecture,
        **extra,
    }


def _json(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _stored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


SAELENS = Format(
    name="saelens",
    peer="SAELens 3 to 6 (writes 6.54.12)",
    files="cfg.json and sae_weights.safetensors",
    recognizes=lambda path: (path / WEIGHTS_FILE).exists(),
    read=_read,
    write=_write,
)
