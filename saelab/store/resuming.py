"""May a harvest go on in this folder, and what has to be done again?"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from saelab.errors import StoreError
from saelab.models import LanguageModel
from saelab.store.capture import HarvestConfig
from saelab.store.manifest import NAME, TOKENS, Manifest
from saelab.store.shards import check_file, shard_path

__all__ = [
    "compute_of",
    "lost_shards",
    "refuse_differences",
    "refuse_other_content",
    "remove_leftovers",
]


def compute_of(model: LanguageModel) -> dict[str, Any]:
    """What the bits of an activation depend on, besides weights and tokens."""
    device = model.device.type
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else None,
    }


def refuse_differences(
    folder: Path,
    manifest: Manifest,
    model: LanguageModel,
    hooks: Sequence[str],
    config: HarvestConfig,
) -> None:
    """Refuse to continue a store that was begun with other settings; tokens are checked elsewhere.

    Raises:
        StoreError: Names the first difference.
    """
    identity, compute = model.identity.to_json(), compute_of(model)
    pairs = {name: (value, asdict(config).get(name)) for name, value in manifest.config.items()} | {
        "model weights": (manifest.model.get("weights"), identity.get("weights")),
        "weight conventions": (manifest.model.get("conventions"), identity.get("conventions")),
        "compute dtype": (manifest.compute["dtype"], compute["dtype"]),
        "hook points": (", ".join(hook.name for hook in manifest.hooks), ", ".join(hooks)),
    }
    for name, (begun, asked) in pairs.items():
        if begun != asked:
            raise StoreError(
                f"{folder} was begun with {name} {begun}, and this harvest asks for {asked}. "
                "Use the same settings to continue it, or another folder."
            )
    if compute != manifest.compute and not manifest.complete:
        warnings.warn(
            f"{folder} was begun on {manifest.compute} and continues on {compute}: the rest may "
            "differ in its last bits from an uninterrupted harvest.",
            stacklevel=2,
        )


def refuse_other_content(folder: Path) -> None:
    """Refuse a folder with files in it that are not an activation store's.

    Raises:
        StoreError: Shards without a manifest, or anything else.
    """
    if not folder.exists() or (folder / NAME).exists():
        return
    if not folder.is_dir():
        raise StoreError(f"{folder} is a file; a store is a folder. Choose another name.")
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in (TOKENS, ".lock") and not path.name.endswith(".tmp")
    )
    if not others:
        return
    if any(path.parent.name != TOKENS for path in folder.glob("*/*.safetensors")):
        what = f"holds shards but {NAME} is missing"
    else:
        what = f"is not empty ({', '.join(others[:3])}) and holds no activation store"
    raise StoreError(
        f"{folder} {what}. Nothing was changed: restore the manifest, or choose another folder."
    )


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of a process that was killed; call with the folder locked."""
    for pattern in (".*.tmp", "*/.*.tmp", f"{TOKENS}/*/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def lost_shards(folder: Path, manifest: Manifest) -> list[int]:
    """Finished shards that have lost a file since, and so have to be done again.

    Raises:
        StoreError: A file has another size than the manifest says.
    """
    lost = []
    for shard in manifest.shards:
        for sub_folder, record in shard.files.items():
            path = shard_path(folder, sub_folder, shard.index)
            if not path.exists():
                lost.append(shard.index)
            else:
                check_file(path, record, content=False)
    return lost
