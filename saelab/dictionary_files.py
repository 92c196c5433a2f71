"""A dictionary on disk: the SAELens v6 files, and saelab.json for what they cannot say.

    cfg.json                 architecture, sizes and hook point, as SAELens 6 reads them
    sae_weights.safetensors  W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec, folded
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

__all__ = ["FORMAT_VERSION", "read_dictionary", "write_dictionary"]

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
    return weights, settings


def _saelens_config(
    settings: Mapping[str, Any], saelens: tuple[str, dict[str, Any]] | None
) -> dict[str, Any]:
    architecture, extra = saelens or (f"saelab_{settings['activation']['name']}", {})
    hook = settings["hook"] or "unknown"
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
            "model_name": (settings["metadata"].get("model") or {}).get("name"),
            "prepend_bos": True,
        },
        "architecture": architecture,
        **extra,
    }
