"""What a run writes while it trains: one JSON object a line, always, and mirrors when asked.

metrics.jsonl holds numbers (one line every so many tokens), events.jsonl what happened and
deserves attention, timing.jsonl the seconds of training up to a step. Only the last differs between
two runs of the same work. TensorBoard and wandb are imported only when a run names them.
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any, final

from saelab.errors import ConfigError
from saelab.files import write_bytes

__all__ = ["MIRRORS", "RunLog", "read_jsonl"]

MIRRORS = ("tensorboard", "wandb")
"""Where metrics can be sent besides metrics.jsonl."""


@final
class RunLog:
    """The logs of one run folder.

    Args:
        folder: The run folder; None keeps the rows in memory only.
        mirrors: Names from `MIRRORS`.
        resume_step: Rows after this step are dropped first, so that a resumed run's log reads
            like an uninterrupted one's. None starts fresh logs.
    """

    def __init__(
        self, folder: Path | None, mirrors: tuple[str, ...] = (), resume_step: int | None = None
    ) -> None:
        self._folder = folder
        self._mirrors = [_open_mirror(name, folder) for name in mirrors]
        self.metrics: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        for name in ("metrics", "events", "timing"):
            rows = self._kept(name, resume_step)
            setattr(self, name, rows)
            if folder is not None:
                text = "".join(json.dumps(row) + "\n" for row in rows)
                write_bytes(folder / f"{name}.jsonl", text.encode())

    def metric(self, row: dict[str, Any], seconds: float) -> None:
        """Add one line of numbers; it has a `step`. `seconds` is the training time so far."""
        self.metrics.append(row)
        self._append("metrics", row)
        self.time(row["step"], seconds)
        for mirror in self._mirrors:
            mirror.log(row, row["step"])

    def time(self, step: int, seconds: float) -> None:
        """Note how long training has taken up to a step."""
        self.timing.append({"step": step, "seconds": round(seconds, 3)})
        self._append("timing", self.timing[-1])

    def event(self, row: dict[str, Any]) -> None:
        """Add one thing that happened; it has a `step`, a `kind` and a `message`."""
        self.events.append(row)
        self._append("events", row)

    def _kept(self, name: str, resume_step: int | None) -> list[dict[str, Any]]:
        if self._folder is None or resume_step is None:
            return []
        rows = read_jsonl(self._folder / f"{name}.jsonl")
        return [row for row in rows if row["step"] <= resume_step]

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self._folder is not None:
            with (self._folder / f"{name}.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line cut short by a kill is left out, a missing file is empty."""
    rows = []
    path = Path(path)
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class _TensorBoard:
    def __init__(self, folder: Path | None) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(os.fspath((folder or Path("runs")) / "tensorboard"))

    def log(self, row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()


class _WeightsAndBiases:
    def __init__(self, folder: Path | None) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(project="saelab", dir=None if folder is None else os.fspath(folder))

    def log(self, row: dict[str, Any], step: int) -> None:
        self._run.log(row, step=step)


def _open_mirror(name: str, folder: Path | None) -> "_TensorBoard | _WeightsAndBiases":
    makers = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
    if name not in makers:
        raise ConfigError(f"Metrics cannot be mirrored to {name!r}; known: {', '.join(MIRRORS)}.")
    try:
        return makers[name](folder)
    except ImportError as error:
        raise ConfigError(
            f"Metrics were asked to go to {name}, which is not installed ({error}). "
            f"Run: pip install 'saelab[{name}]'"
        ) from None
