"""How do step time and memory grow with the number of latents, up to a million?

    python -m benchmarks.scaling                                   # d_in 64, up to what fits
    python -m benchmarks.scaling --d-sae 65536 1048576 --d-in 64 --batch 2048 --k 32

Each size runs in a process of its own: a few TopK training steps on planted directions. Printed
are CPU and wall seconds of the median step; the part of a step that does not shrink with the batch
(the optimizer and the passes over all weights), measured as a step with very few tokens; the peak
of resident memory over the start of the process; and that peak over the size of the two weight
matrices. A size that would not fit into the free memory is skipped and named.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from saelab.activation_functions import TopK
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer
from saelab.training.config import TrainConfig

COPIES = 6.0
"""Peak memory, as a multiple of the two matrices, that a size must leave room for."""
FEW = 16
"""Tokens of the step that shows the cost independent of the batch."""


def measure(d_in: int, d_sae: int, batch: int, k: int, repetitions: int) -> dict[str, float]:
    """Median step of one size, and its peak memory."""
    before = _kib("/proc/self/status", "VmRSS")
    data = PlantedAtoms(d=d_in, n_atoms=4 * d_in, l0=24.0).sample(2 * batch, seed=1)
    found = {}
    sae = SAE(d_in, d_sae, TopK(k))
    for name, tokens in (("few", FEW), ("whole", batch)):
        store = ActivationStore.from_tensor(data, hook="benchmark")
        config = TrainConfig(tokens=1000 * tokens, batch_size=tokens, lr=1e-3)
        trainer = Trainer(sae, store, config)
        taken = []
        for _ in range(repetitions + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step()
            taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        found[f"{name}_cpu"] = statistics.median(cpu for cpu, _ in taken[1:])
        found[f"{name}_wall"] = statistics.median(wall for _, wall in taken[1:])
        del trainer, store
    found["bytes"] = float(_kib("/proc/self/status", "VmHWM") - before) * 1024
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    powers = [2**power for power in range(13, 21)]
    parser.add_argument("--d-sae", nargs="+", type=int, default=powers)
    parser.add_argument("--d-in", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"d_in {arguments.d_in}, batch {arguments.batch}, k {arguments.k}"
    )
    print("   d_sae   CPU s   wall s   of it fixed (CPU s)   peak MiB   x the two matrices")
    for d_sae in arguments.d_sae:
        matrices = 2 * 4 * arguments.d_in * d_sae
        free = _kib("/proc/meminfo", "MemAvailable") * 1024
        if COPIES * matrices > free:
            print(f"{d_sae:8}   skipped: needs about {COPIES * matrices / 2**30:.0f} GiB")
            continue
        case = {"d_in": arguments.d_in, "d_sae": d_sae, "batch": arguments.batch}
        case |= {"k": arguments.k, "repetitions": arguments.repetitions}
        command = [sys.executable, "-m", "benchmarks.scaling", "--one", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{d_sae:8}   failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
            continue
        one = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{d_sae:8}  {one['whole_cpu']:6.3f}   {one['whole_wall']:6.3f}   "
            f"{one['few_cpu']:19.3f}   {one['bytes'] / 2**20:8.0f}   "
            f"{one['bytes'] / matrices:18.1f}"
        )


def _kib(file: str, field: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
