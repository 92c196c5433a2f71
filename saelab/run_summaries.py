"""Which runs are in a folder, and how good is each? Read from their files, without any model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from saelab.errors import SaelabError
from saelab.files import read_json

__all__ = ["RunSummary", "find_runs"]

DEPTH = 4
"""Folders deeper than this under the root are not looked into."""
_PARTS = frozenset({"sae", "atlas", "checkpoints", "activations", "tokens"})


@final
@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What is known about one run, or about a dictionary that lies in a folder by itself."""

    name: str
    """Its folder relative to the root, with forward slashes."""
    folder: Path
    """Where it is."""
    family: str
    """Name of the activation function, as on disk."""
    hook: str
    """Hook point it reads; empty if unknown."""
    model: str
    """Name of the model; empty if unknown."""
    corpus: str
    """Name of the text it was trained on; empty if unknown."""
    d_in: int
    """Width it reads."""
    d_sae: int
    """Latents."""
    k: float | None
    """Latents per token it aims at, where it does."""
    tokens: int
    """Tokens trained on so far."""
    budget: int | None
    """Tokens it is to be trained on; None for a dictionary without a run."""
    last: Mapping[str, Any]
    """The newest row of metrics.jsonl; empty without one."""
    evaluation: Mapping[str, Any]
    """fvu, l0, dead_share, ce_recovered_zero, ... on held-out text; empty if not evaluated."""
    finished: bool
    """Whether the dictionary was saved."""
    has_atlas: bool
    """Whether an atlas stands beside it."""

    def measured(self, name: str) -> float | None:
        """A number on held-out text, else on the last training batch, else None."""
        value = self.evaluation.get(name, self.last.get(name))
        return None if value is None else float(value)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl so far."""
        return _json_lines(self.folder / "metrics.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """The rows of events.jsonl so far."""
        return _json_lines(self.folder / "events.jsonl")


def find_runs(root: str | Path) -> list[RunSummary]:
    """Every run in a folder, and in those inside it, by name.

    A folder whose files cannot be read is left out: the other runs can still be looked at.
    """
    root = Path(root).absolute()
    found = []
    for folder in sorted(_candidates(root, DEPTH)):
        try:
            found.append(_summary(root, folder))
        except (SaelabError, OSError, KeyError, TypeError):
            continue
    return found


def _candidates(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").exists() or (folder / "saelab.json").exists():
        yield folder
        return
    if depth and folder.is_dir():
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _candidates(inner, depth - 1 if inner.name not in _PARTS else 0)


def _summary(root: Path, folder: Path) -> RunSummary:
    run = read_json(folder / "run.json", "a run") if (folder / "run.json").exists() else {}
    saved = next((f for f in (folder / "sae", folder) if (f / "saelab.json").exists()), None)
    dictionary = {} if saved is None else read_json(saved / "saelab.json", "a dictionary")
    settings = dictionary or run["sae"]
    data = run.get("data") or (dictionary.get("metadata") or {}).get("data") or {}
    rows = _json_lines(folder / "metrics.jsonl", only_last=True)
    last = rows[-1] if rows else {}
    activation = settings["activation"]
    relative = folder.relative_to(root).as_posix()
    return RunSummary(
        name=folder.name if relative == "." else relative,
        folder=folder,
        family=str(activation["name"]),
        hook=str(settings.get("hook") or ""),
        model=str((data.get("model") or {}).get("name") or ""),
        corpus=_corpus(data),
        d_in=int(settings["d_in"]),
        d_sae=int(settings["d_sae"]),
        k=_target(activation, run),
        tokens=int(last.get("tokens") or 0),
        budget=(run.get("config") or {}).get("tokens"),
        last=last,
        evaluation=_evaluation(folder),
        finished=saved is not None,
        has_atlas=(folder / "atlas").is_dir(),
    )


def _target(activation: Mapping[str, Any], run: Mapping[str, Any]) -> float | None:
    for source in (activation, *(run.get("terms") or [])):
        for key in ("k", "target"):
            if source.get(key) is not None:
                return float(source[key])
    return None


def _corpus(data: Mapping[str, Any]) -> str:
    corpora = data.get("corpus") or []
    names = [str(one.get("name")) for one in corpora if one.get("name")]
    return " and ".join(dict.fromkeys(names))


def _evaluation(folder: Path) -> dict[str, Any]:
    path = folder / "evaluation.json"
    if not path.exists():
        return {}
    saved = read_json(path, "an evaluation")
    reconstruction, losses = saved.get("reconstruction") or {}, saved.get("losses") or {}
    numbers = {**reconstruction, **losses, **(saved.get("summary") or {})}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


def _json_lines(path: Path, *, only_last: bool = False) -> list[dict[str, Any]]:
    """The rows of a log; the last one is left out while it is being written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines[-2:] if only_last else lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
