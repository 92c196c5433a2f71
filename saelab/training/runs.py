"""A training run on disk: what it was asked to do, and the state it can go on from.

    run.json       configuration, dictionary, objective, data; written once
    metrics.jsonl  see run_logs
    checkpoints/   see checkpoints
    sae/           the dictionary, once the run is finished

Killed at any moment and started again with the same settings, a run ends with the same bits;
started with others it is refused, naming what differs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.distributed import Ranks
from saelab.errors import ConfigError
from saelab.files import provenance, read_json, write_json
from saelab.kernels import backend_name
from saelab.objectives import Term
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training.checkpoints import latest_checkpoint, read_checkpoint, write_checkpoint
from saelab.training.config import TrainConfig
from saelab.training.upkeep import Upkeep

__all__ = ["TrainingRun", "describe_run", "record_training"]

RUN_FILE = "run.json"
_COMPARED = ("config", "resolved", "sae", "data")


@final
class TrainingRun:
    """The folder of one run, or none: then nothing is kept.

    Args:
        folder: Made if missing; None keeps nothing.
        manifest: What the run was asked to do, as JSON can hold it.
        writes: Whether this process is the one that writes; the others only read.

    Raises:
        ConfigError: The folder holds a run that was asked to do something else.
    """

    def __init__(
        self, folder: str | Path | None, manifest: dict[str, Any], writes: bool = True
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.writes = writes
        self.found: Path | None = None
        """The checkpoint to go on from; None for a new run."""
        if self.folder is None:
            return
        if (self.folder / RUN_FILE).exists():
            _check_same_run(self.folder, manifest)
            self.found = latest_checkpoint(self.folder / "checkpoints")
        elif writes:
            write_json(self.folder / RUN_FILE, {**manifest, "provenance": provenance()})

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers of the checkpoint that was found.

        Raises:
            CheckpointError: It is altered or truncated.
        """
        if self.found is None:
            raise ConfigError("There is no checkpoint to read: the run is new.")
        return read_checkpoint(self.found)

    def write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove older ones.

        Raises:
            DiskFullError: No room; the previous checkpoint is untouched.
        """
        if self.folder is not None and self.writes:
            write_checkpoint(self.folder / "checkpoints", step, tensors, state)

    def how_to_go_on(self, signal_name: str, done: int, total: int) -> str:
        """What to tell somebody who stopped the run."""
        if self.folder is None:
            return f"{signal_name}: stopped after {done:,} tokens; nothing is saved."
        return (
            f"{signal_name}: stopped after {done:,} of {total:,} tokens. "
            f"The state is in {self.folder}; run the same command again to go on exactly there."
        )


def describe_run(
    sae: SAE,
    config: TrainConfig,
    terms: Sequence[Term],
    upkeep: Sequence[Upkeep],
    store: ActivationStore,
    ranks: Ranks,
) -> dict[str, Any]:
    """What a run is asked to do, and on what: the content of run.json."""
    # Metadata of the dictionary is left out: the run adds to it, and it decides nothing.
    settings = {k: v for k, v in sae.settings().items() if k not in ("metadata", "normalization")}
    return {
        "format": "saelab-run",
        "version": 1,
        "config": config.to_json(),
        # Defaults are worked out here, so that a run is never continued under other ones.
        "resolved": {
            "peak_lr": config.peak_lr(sae.d_sae),
            "dead_after": config.dead_after,
            "selection": "float32" if sae.coarse_selection is None else "bfloat16",
        },
        "sae": settings,
        "terms": [term.to_json() for term in terms],
        "upkeep": [one.to_json() for one in upkeep],
        "data": store.identity,
        # Not compared when a run goes on: the same work may be continued elsewhere.
        "machine": {
            "device": str(sae.device),
            "threads": torch.get_num_threads(),
            "kernels": backend_name(sae.device),
            "processes": ranks.world,
            "split": ranks.split if ranks.world > 1 else None,
        },
    }


def record_training(
    sae: SAE,
    config: TrainConfig,
    terms: Sequence[Term],
    upkeep: Sequence[Upkeep],
    store: ActivationStore,
    tokens_done: int,
) -> None:
    """Note in a dictionary's metadata what it was trained on, and how."""
    sae.metadata["training"] = {
        "tokens": tokens_done,
        "terms": [term.to_json() for term in terms],
        "upkeep": [one.to_json() for one in upkeep],
        "config": config.to_json(),
    }
    sae.metadata["data"] = store.identity
    if store.identity.get("model") is not None:
        sae.metadata["model"] = store.identity["model"]


def _check_same_run(folder: Path, manifest: dict[str, Any]) -> None:
    found = _with_defaults(read_json(folder / RUN_FILE, "a run's description"))
    different = [
        f"{part}.{key}: {found[part].get(key)!r} there, {value!r} asked"
        for part in _COMPARED
        for key, value in manifest[part].items()
        if found[part].get(key) != value
    ]
    for part in ("terms", "upkeep"):
        if found[part] != manifest[part]:
            different.append(f"{part}: {found[part]!r} there, {manifest[part]!r} asked")
    if different:
        raise ConfigError(
            f"{folder} holds another run, and would not continue as asked: "
            f"{'; '.join(different)}. Choose another folder, or ask for the same settings."
        )


def _with_defaults(found: dict[str, Any]) -> dict[str, Any]:
    """A run's description with what later versions added, as an older one would have said it."""
    complete = {part: found.get(part) or {} for part in _COMPARED}
    complete["config"] = {**TrainConfig().to_json(), **complete["config"]}
    width = complete["sae"].get("d_in")
    new = {"d_out": width, "hook_out": None, "skip": False, "tied": False}
    complete["sae"] = {**new, **complete["sae"]}
    complete["resolved"] = {"selection": "float32", **complete["resolved"]}
    return {**complete, "terms": found.get("terms"), "upkeep": found.get("upkeep", [])}
