"""dictionary_learning: ae.pt, a state dict in a pickle, and config.json.

What its `load_dictionary` gives is what is read: an AutoEncoder has its decoder normalized on
loading there, and so it has here. A BatchTopK whose threshold was never set is refused: the peer
would let every positive latent through.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.activation_functions import BatchTopK, JumpReLU, ReLU, TopK
from saelab.errors import FormatError
from saelab.formats.base import Asked, Format, number
from saelab.formats.dictionary_learning_files import write_files
from saelab.formats.foreign import json_of, pickle_of, take
from saelab.formats.parts import Parts, gated_to_jumprelu, with_decoder_norms_folded

__all__ = ["DICTIONARY_LEARNING"]

_LINEAR = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "decoder.weight": "d_in d_sae"}
_DIRECT = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
_CLASSES: dict[str, dict[str, str]] = {
    "AutoEncoder": _LINEAR | {"bias": "d_in"},
    "AutoEncoderNew": _LINEAR | {"decoder.bias": "d_in"},
    "GatedAutoEncoder": {
        "encoder.weight": "d_sae d_in",
        "decoder.weight": "d_in d_sae",
        "decoder_bias": "d_in",
        "r_mag": "d_sae",
        "gate_bias": "d_sae",
        "mag_bias": "d_sae",
    },
    "JumpReluAutoEncoder": _DIRECT | {"threshold": "d_sae"},
    "AutoEncoderTopK": _LINEAR | {"b_dec": "d_in"},
    "BatchTopKSAE": _LINEAR | {"b_dec": "d_in"},
    "MatryoshkaBatchTopKSAE": _DIRECT,
}
_SETTINGS: dict[str, set[str]] = {
    "AutoEncoderTopK": {"k", "threshold"},
    "BatchTopKSAE": {"k", "threshold"},
    "MatryoshkaBatchTopKSAE": {"k", "threshold", "group_sizes"},
}
"""Entries of the state dict that are not weights."""
FILES = re.compile(r"ae(_\d+)?\.pt")
"""A finished dictionary, or a checkpoint with its step."""
_PLACES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}


@final
@dataclass(frozen=True, kw_only=True)
class _State:
    """One ae.pt, checked."""

    weights: dict[str, Tensor]
    settings: dict[str, Any]
    trainer: Mapping[str, Any]
    origin: Path
    d_sae: int

    def direct(self) -> dict[str, Any]:
        """The weights in saelab's orientation, by the names of `Parts`."""
        found = dict(self.weights)
        if "W_enc" in found:
            return found
        biases = [found[name] for name in ("bias", "decoder.bias", "b_dec") if name in found]
        return {
            "W_enc": found["encoder.weight"].T,
            "b_enc": found["encoder.bias"],
            "W_dec": found["decoder.weight"].T,
            "b_dec": biases[0],
        }

    def k(self) -> int:
        """Latents per token, which is in both files."""
        here, there = self.settings.get("k"), self.trainer.get("k")
        if isinstance(here, Tensor):
            here = here.item() if here.numel() == 1 else None
        given = [k for k in (here, there) if k is not None]
        if not given or any(k != given[0] for k in given):
            raise FormatError(f"{self.origin}: k is {here!r} here and {there!r} in config.json.")
        k = number({"k": given[0]}, "k", self.origin) or 0
        if k > self.d_sae:
            raise FormatError(
                f"{self.origin}: k={k} is more than the {self.d_sae} latents there are."
            )
        return k


def _read(path: Path, asked: Asked) -> Parts:
    weights = path if path.is_file() else path / "ae.pt"
    origin = weights.with_name("config.json")
    if weights.parent.name == "checkpoints" and not origin.exists():
        origin = weights.parent.with_name("config.json")
    config = json_of(origin) if origin.exists() else {}
    trainer, buffer = _section(config, "trainer", origin), _section(config, "buffer", origin)
    state = pickle_of(weights)
    kind = _class_of(trainer, state, weights)
    settings = {name: state.pop(name) for name in _SETTINGS.get(kind, ()) if name in state}
    sizes = {
        "d_in": number(trainer, "activation_dim", origin, required=False),
        "d_sae": number(trainer, "dict_size", origin, required=False),
    }
    tensors, found = take(state, weights, _CLASSES[kind], sizes=sizes)
    checked = _State(
        weights=tensors, settings=settings, trainer=trainer, origin=weights, d_sae=found["d_sae"]
    )
    return _placed(_PARTS[kind](checked), kind, trainer, buffer, asked, origin)


def _section(config: Mapping[str, Any], name: str, origin: Path) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise FormatError(f"{origin}: {name!r} should be an object, not {section!r}.")
    return section


def _class_of(trainer: Mapping[str, Any], state: Mapping[str, Any], origin: Path) -> str:
    """config.json names the class; without it the tensors do, where only one class has them."""
    named = trainer.get("dict_class")
    if named is not None:
        if not isinstance(named, str) or named not in _CLASSES:
            raise FormatError(
                f"{origin}: dict_class={named!r} is not one of {', '.join(_CLASSES)}."
            )
        return named
    fits = [
        kind
        for kind, axes in _CLASSES.items()
        if set(state) == set(axes) | _SETTINGS.get(kind, set())
    ]
    if len(fits) == 1:
        return fits[0]
    which = " or ".join(fits) or "no class of dictionary_learning"
    raise FormatError(
        f"{origin} could be {which}{', which do not compute the same' if fits else ''}, and there "
        "is no config.json beside it to say. Write one: "
        '{"trainer": {"dict_class": "...", "k": ...}}.'
    )


def _relu(state: _State) -> Parts:
    return Parts(**state.direct(), activation=ReLU(), pre_bias=False)


def _normalized_relu(state: _State) -> Parts:
    parts = replace(_relu(state), pre_bias=True)
    norms = parts.W_dec.norm(dim=1)
    unit = torch.allclose(norms, torch.ones_like(norms))  # as the peer decides it
    return parts if unit else with_decoder_norms_folded(parts, str(state.origin))


def _gated(state: _State) -> Parts:
    found = state.weights
    gates = (found["gate_bias"], found["mag_bias"], found["r_mag"])
    return Parts(
        **gated_to_jumprelu(found["encoder.weight"].T, *gates),
        W_dec=found["decoder.weight"].T,
        b_dec=found["decoder_bias"],
        activation=JumpReLU(),
        pre_bias=True,
    )


def _jumprelu(state: _State) -> Parts:
    return Parts(**state.direct(), activation=JumpReLU(), pre_bias=False)


def _top_k(state: _State) -> Parts:
    return Parts(**state.direct(), activation=TopK(state.k()), pre_bias=True)


def _batch_top_k(state: _State) -> Parts:
    threshold, weights = state.settings.get("threshold"), state.direct()
    value = threshold.item() if isinstance(threshold, Tensor) and threshold.numel() == 1 else -1.0
    if not 0 <= value < float("inf"):
        raise FormatError(
            f"{state.origin}: the threshold of this BatchTopK is {value}: it was never set, so "
            "which latents are active on a token alone is not decided. Train it past "
            "threshold_start_step, or set it."
        )
    return Parts(
        **weights,
        threshold=torch.full((state.d_sae,), value, dtype=weights["b_enc"].dtype),
        activation=BatchTopK(float(state.k())),
        pre_bias=True,
        notes={"matryoshka_widths": _widths(state)} if "group_sizes" in state.settings else {},
    )


def _widths(state: _State) -> list[int]:
    """Sizes of the groups, as widths of the nested prefixes."""
    sizes = state.settings["group_sizes"]
    good = isinstance(sizes, Tensor) and sizes.ndim == 1 and sizes.dtype == torch.int64
    if not good or not len(sizes) or int(sizes.min()) < 1 or int(sizes.sum()) != state.d_sae:
        raise FormatError(
            f"{state.origin}: group_sizes {sizes!r} do not divide {state.d_sae} latents."
        )
    return sizes.cumsum(0).tolist()


_PARTS: dict[str, Callable[[_State], Parts]] = {
    "AutoEncoder": _normalized_relu,
    "AutoEncoderNew": _relu,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _batch_top_k,
}


def _placed(
    parts: Parts,
    kind: str,
    trainer: Mapping[str, Any],
    buffer: Mapping[str, Any],
    asked: Asked,
    origin: Path,
) -> Parts:
    """The same with its hook points, as far as config.json is certain about them."""
    across = buffer.get("io") == "in_and_out"
    if across and (asked.hook is None or asked.hook_out is None):
        raise FormatError(
            f"{origin}: io=in_and_out makes it a transcoder, and the file does not name both "
            "places in words that saelab knows. Say hook=... and hook_out=..."
        )
    named = re.fullmatch(r"([a-z_]+)_layer_(\d+)", str(trainer.get("submodule_name")))
    hook = f"blocks.{named[2]}.{_PLACES[named[1]]}" if named and named[1] in _PLACES else None
    if named and trainer.get("layer") not in (None, int(named[2])):
        raise FormatError(
            f"{origin}: layer={trainer.get('layer')!r} but submodule_name is {named[0]!r}."
        )
    model = trainer.get("lm_name")
    kept = ("layer", "submodule_name", "seed", "steps", "lr", "trainer_class")
    return replace(
        parts,
        hook=asked.hook or hook,
        hook_out=asked.hook_out if across else None,
        model=model if isinstance(model, str) else None,
        notes={
            **parts.notes,
            "class": kind,
            "trainer": {key: trainer[key] for key in kept if key in trainer},
        },
    )


DICTIONARY_LEARNING = Format(
    name="dictionary_learning",
    peer="dictionary_learning 0.1.0",
    files="ae.pt and config.json",
    recognizes=lambda path: bool(FILES.fullmatch(path.name)) or (path / "ae.pt").exists(),
    read=_read,
    write=write_files,
)
