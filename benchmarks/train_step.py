"""How long does one training step take, beside other libraries and beside the bare encoder matmul?

    make peers                                                  # their environment, once
    .venv-peers/bin/python -m benchmarks.train_step --size A    # ours and theirs, one process

Every entry does whole TopK training steps on the same batches: forward, loss, backward, gradient
clipping where the library clips, optimizer, decoder norms, dead counters. Entries take turns, one
step each, so that all of them meet the same machine. CPU seconds are of the whole process, over all
threads; ratios are of medians. No latent is dead this early, so AuxK costs nobody anything.

Sizes:  A  d_in 576, d_sae 9216,  batch 4096      B  576, 36864, 2048      C  768, 24576, 4096

Run without the other libraries it measures saelab and the matmul alone. Set
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=64000000000 to see every entry with an allocator that
keeps freed memory; the fresh matrices of dense training profit most from it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from saelab.activation_functions import TopK
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.train_config import TrainConfig
from saelab.training import Trainer

SIZES = {"A": (576, 9216, 4096), "B": (576, 36864, 2048), "C": (768, 24576, 4096)}
K = 32

Step = Callable[[Tensor], object]


def matmul(d_in: int, d_sae: int, batch: int) -> Step:
    """The encoder's matrix product alone, into memory that is reused."""
    weight, out = torch.randn(d_sae, d_in), torch.empty(batch, d_sae)
    return lambda x: torch.mm(x, weight.T, out=out)


def ours(d_in: int, d_sae: int, batch: int) -> Step:
    """A step of `saelab.Trainer`, fed the given batch."""
    store = ActivationStore.from_tensor(torch.randn(2 * batch, d_in), hook="benchmark")
    config = TrainConfig(tokens=1000 * batch, batch_size=batch, lr=1e-3)
    trainer = Trainer(SAE(d_in, d_sae, TopK(K)), store, config)
    return lambda _: trainer.step()


def saelens(d_in: int, d_sae: int, batch: int) -> Step:
    """SAELens's own trainer step."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=K))
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=1000 * batch,
        device="cpu",
        autocast=False,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter([]))
    return trainer.step


def dictionary_learning(d_in: int, d_sae: int, batch: int) -> Step:  # noqa: ARG001
    """dictionary_learning's own trainer update."""
    from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]

    trainer = TopKTrainer(
        steps=100_000, activation_dim=d_in, dict_size=d_sae, k=K, layer=0, lm_name="x", device="cpu"
    )
    return lambda x: trainer.update(1, x)


def sparsify(d_in: int, d_sae: int, batch: int) -> Step:  # noqa: ARG001
    """The coder of sparsify in the steps of its trainer, which itself wants a language model."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify.config import SparseCoderConfig  # pyright: ignore[reportMissingImports]
    from sparsify.sparse_coder import SparseCoder  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=K), device="cpu")
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)
    fired = torch.zeros(d_sae, dtype=torch.bool)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        fired[out.latent_indices.flatten()] = True

    return step


ENTRIES: dict[str, Callable[[int, int, int], Step]] = {
    "encoder matmul": matmul,
    "saelab": ours,
    "SAELens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify (Adam)": sparsify,
}


def measure(size: str, repetitions: int, names: list[str]) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each step of each entry; the first round is not counted."""
    d_in, d_sae, batch = SIZES[size]
    data = PlantedAtoms(d=d_in, n_atoms=4 * d_in, l0=24.0).sample(batch, seed=1)
    steps: dict[str, Step] = {}
    for name in names:
        try:
            steps[name] = ENTRIES[name](d_in, d_sae, batch)
        except ImportError as error:
            print(f"{name}: left out ({error})")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step(data)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if repetition:
                taken[name].append(spent)
    return taken


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=[*SIZES, "all"], default="A")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), default=list(ENTRIES))
    arguments = parser.parse_args()
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "processor unknown",
    )
    processor = cpu.split(":")[-1].strip()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor}")
    for size in SIZES if arguments.size == "all" else [arguments.size]:
        d_in, d_sae, batch = SIZES[size]
        taken = measure(size, arguments.repetitions, arguments.only)
        median = {n: statistics.median(c for c, _ in t) for n, t in taken.items()}
        print(f"\n{size}: d_in {d_in}, d_sae {d_sae}, k {K}, batch {batch}")
        print("entry                 CPU s: min median max   wall s   x matmul   x saelab")
        for name, times in taken.items():
            cpus, wall = [c for c, _ in times], statistics.median(w for _, w in times)
            print(
                f"{name:20}  {min(cpus):6.3f} {median[name]:6.3f} {max(cpus):6.3f}"
                f"   {wall:6.3f}   {median[name] / median.get('encoder matmul', 1):8.2f}"
                f"   {median[name] / median.get('saelab', 1):8.2f}"
            )


if __name__ == "__main__":
    main()
