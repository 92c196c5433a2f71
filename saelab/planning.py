"""How much memory, disk and time will a harvest and a training run take?

Disk is counted, memory is the sum of what is known to be alive at once at the worst moment, and
time is measured: one forward pass and two training steps on this machine.
"""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch

from saelab.activation_functions import TopK
from saelab.files import format_bytes
from saelab.kernels.encoding import CHUNK_BYTES, MAX_CHUNK_ROWS
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.store import ActivationStore, HarvestConfig, estimate_bytes
from saelab.tokens import Tokens
from saelab.training import Trainer
from saelab.training.config import TrainConfig
from saelab.training.initialization import SAMPLE_TOKENS

__all__ = ["Plan", "disk_of_run", "free_disk", "memory_of_training", "plan"]

_STORED = {"float32": 4, "bfloat16": 2, "float16": 2}
_COPIES_WHILE_WRITING = 3  # the bytes of each tensor, of the file, and of the file as Python has it


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be needed, by stage."""

    disk: Mapping[str, int]
    """Bytes that stay on disk."""
    memory: Mapping[str, int]
    """Largest resident memory of the process, in bytes; on an accelerator, host and device."""
    seconds: Mapping[str, float]
    """Wall time on this machine as it is now; empty if it was not measured."""

    def lines(self) -> list[str]:
        """The plan as a few lines for people."""
        disk = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.disk.items())
        memory = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.memory.items())
        lines = [
            f"Disk: {format_bytes(sum(self.disk.values()))} ({disk}).",
            f"Memory at most: {memory}.",
        ]
        if self.seconds:
            times = ", ".join(f"{name} {_duration(time)}" for name, time in self.seconds.items())
            lines.append(f"Time: {_duration(sum(self.seconds.values()))} ({times}).")
        return lines


def plan(
    model: LanguageModel,
    tokens: Tokens,
    hooks: Sequence[str],
    *,
    d_sae: int,
    k: int = 32,
    harvesting: HarvestConfig | None = None,
    training: TrainConfig | None = None,
    measure: bool = True,
) -> Plan:
    """Work out what harvesting these tokens and training one dictionary on them will take.

    Args:
        model: Loaded as it will be for the harvest.
        tokens: What will be harvested.
        hooks: Hook points; the dictionary is trained on the first.
        d_sae: Latents.
        k: Latents per token.
        harvesting: As for `harvest`.
        training: As for `train`.
        measure: Whether to time a forward pass and training steps, which takes some seconds and
            as much memory as the run itself.

    Raises:
        HookPointError: The model has no such hook point.
    """
    harvesting, training = harvesting or HarvestConfig(), training or TrainConfig()
    batch = tokens.ids[: harvesting.rows_per_batch].to(model.device, torch.int64)
    resident, before = _resident(), _peak()
    started = time.perf_counter()
    found = model.activations(batch, list(hooks))
    once = time.perf_counter() - started
    widths = [found[hook].shape[-1] for hook in hooks]
    forward = max(_peak() - max(before, resident), sum(x.nbytes for x in found.values()))
    del found
    sae_bytes = _sae_bytes(widths[0], d_sae)
    memory = {
        "harvest": resident + forward + _shards_in_memory(tokens, widths, harvesting),
        "train": memory_of_training(widths[0], d_sae, k, tokens.n_kept, harvesting, training),
    }
    seconds = {}
    if measure:
        started = time.perf_counter()
        model.activations(batch, list(hooks))
        rate = batch.numel() / min(once, time.perf_counter() - started)
        seconds["harvest"] = tokens.n_tokens / rate
        if 4 * sae_bytes < _available():
            seconds["train"] = _seconds_of_training(widths[0], d_sae, k, training, model.device)
    return Plan(
        disk={
            "activations": estimate_bytes(
                tokens, widths, harvesting.dtype, harvesting.tokens_per_shard
            ),
            **disk_of_run(widths[0], d_sae),
        },
        memory=memory,
        seconds=seconds,
    )


def disk_of_run(d_in: int, d_sae: int) -> dict[str, int]:
    """Bytes a finished run leaves: the dictionary, and one checkpoint with Adam's two moments.

    While a checkpoint is written, the previous one is there too.
    """
    return {
        "dictionary": _sae_bytes(d_in, d_sae),
        "checkpoint": 3 * _sae_bytes(d_in, d_sae) + 8 * d_sae,
    }


def memory_of_training(
    d_in: int,
    d_sae: int,
    k: int,
    n_tokens: int,
    harvesting: HarvestConfig,
    training: TrainConfig,
) -> int:
    """Largest resident memory of a training process on the CPU, in bytes.

    The process itself, then weights, gradients and two moments, then the worst of three moments:
    fitting scale and center to a sample; a step, beside two windows; a checkpoint, beside two
    windows.
    """
    weights = _sae_bytes(d_in, d_sae)
    stored = d_in * _STORED[harvesting.dtype]
    shard = min(harvesting.tokens_per_shard, n_tokens)
    sample = min(SAMPLE_TOKENS, n_tokens)
    sampled_from = min(n_tokens, max(2 * sample, 8 * shard))
    fitting = max(
        sampled_from * stored + shard * stored + sample * d_in * 4,
        # the sample and its scaled copy in float32; scaled, centred and squared in float64
        sample * d_in * (4 + 4 + 8 + 8 + 8),
    )
    window = min(n_tokens, training.window_tokens + shard) * stored
    rows = max(16, min(MAX_CHUNK_ROWS, CHUNK_BYTES // (4 * d_sae), training.batch_size))
    step = (
        rows * d_sae * 4  # one chunk of pre-activations
        + training.batch_size * d_in * 4 * 6  # inputs, centred, reconstruction, error, gradients
        + training.batch_size * k * 48  # pairs: indices, values, their order by latent
    )
    # the state serialized, and W_enc made contiguous
    checkpoint = _COPIES_WHILE_WRITING * 3 * weights + d_in * d_sae * 4
    running = 2 * window + shard * stored + max(step, checkpoint)
    return _bare_process() + 4 * weights + max(fitting, running)


def free_disk(folder: Path) -> int:
    """Free bytes where a folder is or would be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _sae_bytes(d_in: int, d_sae: int) -> int:
    return 4 * (2 * d_in * d_sae + d_sae + d_in)


def _shards_in_memory(tokens: Tokens, widths: Sequence[int], config: HarvestConfig) -> int:
    """A shard being written, and, where there are several, the beginning of the next one."""
    shard = min(config.tokens_per_shard, tokens.n_tokens)
    copies = 1 + _COPIES_WHILE_WRITING + (shard < tokens.n_tokens)
    return copies * shard * sum(widths) * _STORED[config.dtype]


def _seconds_of_training(
    d_in: int, d_sae: int, k: int, config: TrainConfig, device: torch.device
) -> float:
    """The budget's time, from two steps on random activations; the first step is not counted."""
    sample = torch.randn(config.batch_size, d_in, generator=torch.Generator().manual_seed(0))
    short = replace(config, tokens=max(config.tokens, 3 * config.batch_size), mirrors=())
    sae = SAE(d_in, d_sae, TopK(k)).to(device)
    trainer = Trainer(sae, ActivationStore.from_tensor(sample), short)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - started)
    return config.steps * min(times[1:])


@functools.cache
def _bare_process() -> int:
    """Resident memory of a Python process that has imported saelab and done nothing."""
    program = "import saelab.training as t; from saelab import planning; print(planning._peak())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    return int(done.stdout) if done.returncode == 0 else _resident()


def _resident() -> int:
    """Resident memory of this process, in bytes."""
    return _status("VmRSS") or _peak()


def _peak() -> int:
    """Largest resident memory this process has had, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is no such file."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith(name + ":")), "")
    return int(line.split()[1]) * 1024 if line else 0


def _available() -> int:
    """Memory that can still be used, in bytes."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return sys.maxsize
    found = [line.split()[1] for line in text.splitlines() if line.startswith("MemAvailable")]
    return int(found[0]) * 1024 if found else sys.maxsize


def _duration(seconds: float) -> str:
    """75 as '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"
