"""What is an atlas's folder, and is it the atlas one asks for?

- `atlas.json`: what it is about, and the SHA-256 of every file; written last;
- `latents.parquet` and the other tables (see `schemas`);
- `decoder_map.parquet`: where each latent lies on the map, once `saelab map` made one;
- `decoder.safetensors`: unit decoder directions, float16;
- `codes/`: sparse codes by shard, if they were kept;
- `dictionary.json`: which dictionary it is of, from the first moment on;
- `annotations.sqlite`: what people wrote; no rebuild touches it;
- `explanations.sqlite`: what language models wrote, and their replies;
- `work/`: parts of an atlas being built.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from saelab.atlas.config import AtlasConfig
from saelab.errors import CheckpointError, ConfigError
from saelab.files import read_json, sha256_of, write_json
from saelab.models import LanguageModel
from saelab.models.identity import hash_of_tensors
from saelab.sae import SAE
from saelab.tokens import Tokens

__all__ = [
    "MANIFEST",
    "PEOPLE",
    "WORK",
    "check_files",
    "identity_of",
    "key_of",
    "read_manifest",
    "refuse_other_dictionary",
]

FORMAT_VERSION = 1
MANIFEST, DICTIONARY, WORK = "atlas.json", "dictionary.json", "work"
PEOPLE = ("annotations.sqlite", "explanations.sqlite")
"""Files that outlive a rebuild."""


def identity_of(
    sae: SAE, model: LanguageModel, tokens: Tokens, config: AtlasConfig
) -> dict[str, Any]:
    """What the tables depend on, JSON-able."""
    weights = dict(sae.state_dict())
    settings = {name: value for name, value in sae.settings().items() if name != "metadata"}
    return {
        "dictionary": {"weights": hash_of_tensors(weights), **settings},
        "model": model.identity.to_json(),
        "tokens": tokens.sha256,
        "config": config.to_json(),
        "format_version": FORMAT_VERSION,
    }


def key_of(identity: dict[str, Any]) -> str:
    """A short name of an identity, the same in every process."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished atlas.

    Raises:
        CheckpointError: It is missing, altered, or of a newer format.
    """
    path = folder / MANIFEST
    if not path.exists() and (folder / WORK).is_dir():
        raise CheckpointError(
            f"The atlas in {folder} is not finished. Build it again with the same settings and it "
            "goes on where it stopped."
        )
    manifest = read_json(path, "an atlas (build one with: saelab atlas RUN)")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this saelab reads {FORMAT_VERSION}. Use the "
            "saelab that wrote it, or build the atlas again."
        )
    if missing := [name for name in ("about", "files", "identity") if name not in manifest]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was altered. Build it again.")
    return manifest


def check_files(folder: Path, files: dict[str, Any], verify: bool) -> None:
    """Compare what is in the folder with what was written.

    Args:
        folder: Of the atlas.
        files: Bytes and SHA-256 by name.
        verify: Hash every file, and not only compare sizes.

    Raises:
        CheckpointError: A file is missing, truncated or altered.
    """
    for name, record in files.items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(
                f"{path} is missing. Build the atlas again: delete atlas.json first."
            )
        if path.stat().st_size != record["bytes"] or (
            verify and sha256_of(path) != record["sha256"]
        ):
            raise CheckpointError(
                f"{path} is not the file that was written (truncated or altered). Build the "
                "atlas again: delete atlas.json first."
            )


def refuse_other_dictionary(folder: Path, identity: dict[str, Any], rebuild: bool) -> None:
    """Let an atlas be replaced only when asked, and never under other people's labels.

    Raises:
        ConfigError: The folder holds another atlas.
    """
    if (folder / DICTIONARY).exists():
        held = read_json(folder / DICTIONARY, "the dictionary an atlas is of")
        labelled = [name for name in PEOPLE if (folder / name).exists()]
        if labelled and held != identity["dictionary"]:
            raise ConfigError(
                f"{folder} is the atlas of another dictionary, with {' and '.join(labelled)} "
                "about its latents. Choose another folder for this dictionary."
            )
    if (folder / MANIFEST).exists():
        held = read_manifest(folder)["identity"]
        if held != identity and not rebuild:
            names = [name for name in held if held[name] != identity.get(name)]
            raise ConfigError(
                f"{folder} holds an atlas of another {' and '.join(names)}. Pass rebuild=True "
                "(--rebuild) to replace its tables, which keeps labels and notes, or choose "
                "another folder."
            )
    write_json(folder / DICTIONARY, identity["dictionary"])
