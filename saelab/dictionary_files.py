"""A dictionary on disk: the SAELens v6 files, and saelab.json for what they cannot say.

    cfg.json                 architecture, sizes and hook point, as SAELens 6 reads them
    sae_weights.safetensors  W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_out], b_dec, folded; a
                             skip connection as W_skip [d_out, d_in], transposed as there
    saelab.json              our whole configuration, checksums, and where it came from

The scales of the normalization are folded into the stored weights, so that SAELens, which has
no such part, encodes the same values; they are powers of two, so taking them out again when we
load restores every bit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.errors import CheckpointError
from saelab.files import provenance, read_json, read_tensors, write_json, write_tensors

__all__ = ["FORMAT_VERSION", "fill", "read_dictionary", "write_dictionary"]

FORMAT = "saelab-dictionary"
FORMAT_VERSION = 1
WEIGHTS_FILE = "sae_weights.safetensors"
SAELENS_LAYOUT = "6.54.12"
"""The SAELens release whose layout cfg.json follows; older readers migrate files without one."""


def write_dictionary(
    folder: str | Path,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    saelens: tuple[str, dict[str, Any]] | None,
) -> None:
    """Write the three files; saelab.json last, so that a folder with it is complete.

    Args:
        folder: Made if missing; files of the same names are replaced.
        weights: W_enc, b_enc, W_dec, b_dec and the activation function's own tensors, folded.
        settings: What `read_dictionary` will return: sizes, activation, normalization, hook.
        saelens: SAELens's architecture that computes the same, and its extra settings; None if
            it has none, and then cfg.json names an architecture of our own.
    """
    folder = Path(folder)
    weights = _skip_transposed(weights)
    files = {
        WEIGHTS_FILE: write_tensors(folder / WEIGHTS_FILE, weights),
        "cfg.json": write_json(folder / "cfg.json", _saelens_config(settings, saelens)),
    }
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, **settings}
    write_json(folder / "saelab.json", {**manifest, "files": files, "provenance": provenance()})


def read_dictionary(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and settings that `write_dictionary` wrote, checking both.

    Raises:
        CheckpointError: A file is missing or altered, or is of a newer format version.
    """
    folder = Path(folder)
    if not (folder / "saelab.json").exists():
        found = "no such folder" if not folder.is_dir() else "saelab.json is missing"
        raise CheckpointError(
            f"No dictionary at {folder}: {found}. A dictionary is a folder holding cfg.json, "
            f"{WEIGHTS_FILE} and saelab.json, as sae.save(folder) writes it."
        )
    settings = read_json(folder / "saelab.json", "a dictionary's saelab.json")
    if settings.get("format") != FORMAT or settings.get("version", 0) > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / 'saelab.json'} says format {settings.get('format')!r} version "
            f"{settings.get('version')!r}; this saelab reads {FORMAT!r} up to {FORMAT_VERSION}."
        )
    weights = read_tensors(folder / WEIGHTS_FILE, settings.get("files", {}).get(WEIGHTS_FILE))
    return _skip_transposed(weights), settings


def fill(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy weights into parameters of the same names.

    Raises:
        CheckpointError: A shape is not what the dictionary's settings say.
    """
    for name, weight in weights.items():
        if weight.shape != parameters[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)} where the settings say "
                f"{tuple(parameters[name].shape)}."
            )
        parameters[name].copy_(weight)


def _skip_transposed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.T if name == "W_skip" else w for name, w in weights.items()}


def _saelens_config(
    settings: Mapping[str, Any], saelens: tuple[str, dict[str, Any]] | None
) -> dict[str, Any]:
    architecture, extra = _architecture(settings, saelens)
    hook = settings["hook"] or "unknown"
    written = {} if settings["hook_out"] is None else {"hook_name_out": settings["hook_out"]}
    return {
        "d_in": settings["d_in"],
        "d_sae": settings["d_sae"],
        "dtype": settings["dtype"],
        "device": "cpu",
        "apply_b_dec_to_input": settings["pre_bias"],
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook.endswith("hook_z") else "none",
        "metadata": {
            "sae_lens_version": SAELENS_LAYOUT,
            "sae_lens_training_version": None,
            "hook_name": hook,
            **written,
            "model_name": (settings["metadata"].get("model") or {}).get("name"),
            "prepend_bos": True,
        },
        "architecture": architecture,
        **extra,
    }


_TRANSCODERS = {
    ("standard", False): "transcoder",
    ("standard", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
}
"""SAELens's name of a transcoder, by its name of the activation function and whether it skips."""


def _architecture(
    settings: Mapping[str, Any], saelens: tuple[str, dict[str, Any]] | None
) -> tuple[str, dict[str, Any]]:
    """The architecture that cfg.json names, and its extra settings."""
    skip, transcoder = settings["skip"], _is_transcoder(settings)
    if saelens is not None and not transcoder and not skip:
        return saelens
    known = saelens and transcoder and _TRANSCODERS.get((saelens[0], skip))
    if known:
        return known, {"d_out": settings["d_out"]}
    kind = ("_skip" if skip else "") + ("_transcoder" if transcoder else "")
    return f"saelab_{settings['activation']['name']}{kind}", (
        {"d_out": settings["d_out"]} if transcoder else {}
    )


def _is_transcoder(settings: Mapping[str, Any]) -> bool:
    return settings["hook_out"] is not None or settings["d_out"] != settings["d_in"]
