r"""How long does one training step take, beside other libraries and beside the encoder matmul?

    make peers                                                  # their environment, once
    .venv-peers/bin/python -m benchmarks.train_step --size A    # ours and theirs, one process
    .venv-peers/bin/python -m benchmarks.train_step --size all --family all --dead 0 0.2 \
        --allocator both --memory                               # everything; takes hours

Every entry does whole training steps on the same batches: forward, loss, backward, gradient
clipping where the library clips, optimizer, decoder norms, dead counters. Entries take turns, one
step each, so that all of them meet the same machine. CPU seconds are of the whole process, over all
threads; ratios are of medians. With `--dead 0.2` a fifth of the latents counts as dead before each
step, so AuxK runs. In JumpReLU every library starts from its own thresholds, so the number of
active latents differs, and with it the work.

Sizes:  A  d_in 576, d_sae 9216,  batch 4096      B  576, 36864, 2048      C  768, 24576, 4096
        tiny  32, 256, 128 (to try the program)   or any  d_in,d_sae,batch

`--allocator tuned` starts the measurement again with MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=64000000000, which keep freed memory; the fresh matrices of dense training
profit most from it. `--memory` measures each entry in a process of its own: the peak of its
resident memory over what the process had before the entry was built. On a GPU the matmul's rate
and the share of it that a whole step achieves are printed as well.

Importing saelab tells torch's threads to sleep between operations, for every entry of the process;
`GOMP_SPINCOUNT=300000` in the environment brings back torch's own way on Linux.

Run without the other libraries it measures saelab and the matmul alone. Where numba is not
installed, saelab runs its plain kernels; the first line says which.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.train_step_entries import ENTRIES, FAMILIES, Case, Step
from saelab.kernels import backend_name
from saelab.planted import PlantedAtoms

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "64000000000"}
Times = dict[str, list[tuple[float, float]]]


def measure(case: Case, repetitions: int, names: list[str]) -> Times:
    """CPU and wall seconds of each step of each entry; the first round is not counted."""
    data = batch_of(case)
    steps: dict[str, Step] = {}
    for name in names:
        try:
            steps[name] = ENTRIES[name](case, data)
        except (ImportError, AttributeError) as error:
            print(f"{name}: left out ({error})")
    taken: Times = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            _wait(case)
            wall, cpu = time.perf_counter(), time.process_time()
            step(data)
            _wait(case)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if repetition:
                taken[name].append(spent)
    return taken


def batch_of(case: Case) -> Tensor:
    """The batch: planted directions, four times as many as dimensions."""
    d_in, _, batch = case.shape
    data = PlantedAtoms(d=d_in, n_atoms=4 * d_in, l0=24.0).sample(batch, seed=1)
    return data.to(case.device)


def report(case: Case, taken: Times) -> None:
    """One table."""
    d_in, d_sae, batch = case.shape
    on_gpu = case.device != "cpu"
    which = 1 if on_gpu else 0  # the GPU works while the CPU waits
    median = {name: statistics.median(t[which] for t in times) for name, times in taken.items()}
    print(
        f"\n{case.size}: {case.family}, d_in {d_in}, d_sae {d_sae}, k {case.k}, batch {batch}, "
        f"{case.dead:.0%} dead, allocator {_allocator()}"
    )
    unit = "wall" if on_gpu else "CPU"
    print(f"entry                 {unit} s: min median max    wall s   x matmul   x saelab")
    for name, times in taken.items():
        values = [t[which] for t in times]
        wall = statistics.median(w for _, w in times)
        ratios = [_ratio(median, name, other) for other in ("encoder matmul", "saelab")]
        print(
            f"{name:20}  {min(values):7.4f} {median[name]:7.4f} {max(values):7.4f}   {wall:7.4f}"
            f"   {ratios[0]:>8}   {ratios[1]:>8}"
        )
    if on_gpu and {"encoder matmul", "saelab"} <= set(median):
        rate = 2 * d_in * d_sae * batch / median["encoder matmul"]
        share = median["encoder matmul"] / median["saelab"]
        print(f"matmul {rate / 1e12:.2f} TFLOP/s; a saelab step achieves {share:.1%} of that rate.")


def report_memory(case: Case, names: list[str]) -> None:
    """Peak memory of each entry over its start, each in a process of its own."""
    print(f"\n{case.size}: {case.family}, peak memory over start, allocator {_allocator()}")
    for name in names:
        command = [sys.executable, "-m", "benchmarks.train_step", "--one", name]
        done = subprocess.run(
            [*command, json.dumps({f: getattr(case, f) for f in case.__dataclass_fields__})],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{name:20}  left out ({(done.stderr.strip().splitlines() or ['killed'])[-1]})")
        else:
            print(f"{name:20}  {int(done.stdout.split()[-1]) / 2**20:8.0f} MiB")


def memory_of(name: str, case: Case) -> int:
    """Bytes that two steps of one entry take at their peak, over what was in use before."""
    # A narrow step first: what is imported and compiled once is not what a step takes.
    _, d_sae, batch = case.shape
    narrow = replace(case, size=f"64,{d_sae},{min(batch, 1024)}")
    ENTRIES[name](narrow, batch_of(narrow))(batch_of(narrow))
    data = batch_of(case)
    gc.collect()
    if case.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status("VmRSS")
    step = ENTRIES[name](case, data)
    step(data)
    step(data)
    after = _status("VmHWM") if case.device == "cpu" else torch.cuda.max_memory_allocated()
    return after - before


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", nargs="+", default=["A"], metavar="A,B,C,tiny,all,n,n,n")
    parser.add_argument("--family", nargs="+", choices=[*FAMILIES, "all"], default=["topk"])
    parser.add_argument("--dead", nargs="+", type=float, default=[0.0], metavar="SHARE")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), default=list(ENTRIES))
    parser.add_argument("--allocator", choices=["as is", "tuned", "both"], default="as is")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=2, metavar=("ENTRY", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(memory_of(arguments.one[0], Case(**json.loads(arguments.one[1]))))
        return
    if arguments.allocator != "as is":
        _start_again(arguments.allocator)
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}, "
        f"kernels: {backend_name(arguments.device)}, "
        f"OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}"
    )
    sizes = [*"ABC"] if "all" in arguments.size else arguments.size
    families = FAMILIES if "all" in arguments.family else arguments.family
    for size in sizes:
        for family in families:
            for dead in arguments.dead:
                case = Case(
                    size=size, family=family, k=arguments.k, dead=dead, device=arguments.device
                )
                report(case, measure(case, arguments.repetitions, arguments.only))
                if arguments.memory:
                    report_memory(case, arguments.only)


def _start_again(which: str) -> None:
    """The same measurement in processes with the wanted allocator settings."""
    own = sys.argv[1:]
    place = own.index("--allocator")
    rest = own[:place] + own[place + 2 :]
    plain = {name: value for name, value in os.environ.items() if name not in TUNED}
    for environment in [plain, {**plain, **TUNED}][1 if which == "tuned" else 0 :]:
        command = [sys.executable, "-m", "benchmarks.train_step", *rest]
        subprocess.run(command, env=environment, check=True)


def _ratio(median: dict[str, float], name: str, other: str) -> str:
    return f"{median[name] / median[other]:.2f}" if other in median else "-"


def _allocator() -> str:
    return "tuned" if all(os.environ.get(n) == v for n, v in TUNED.items()) else "default"


def _wait(case: Case) -> None:
    if case.device != "cpu":
        torch.cuda.synchronize()


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) << 10


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = next((line for line in lines if "model name" in line), "processor unknown")
    return found.split(":")[-1].strip()


if __name__ == "__main__":
    main()
