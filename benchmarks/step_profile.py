"""Where does a training step's time go, beside the encoder matmul that cannot be avoided?

    python -m benchmarks.step_profile --size A B C

One TopK step (k 32) on one thread, where a profiler sees every kernel. Printed are CPU seconds per
step by what they are spent on, as multiples of the bare encoder matmul of the same size measured in
the same process. The multiple of the matmul that the whole step takes is the last line.
"""

import argparse
import cProfile
import pstats
import statistics
import time
import warnings
from collections import defaultdict

import torch

from saelab.activation_functions import TopK
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import TrainConfig, Trainer

SIZES = {"A": (576, 9216, 4096), "B": (576, 36864, 2048), "C": (768, 24576, 4096)}
"""d_in, d_sae and batch."""
PARTS = {
    "addmm": "encoder matmul, in chunks",
    "top_k": "the k largest of each token",
    "sum_pairs": "decoding, and gradients of both matrices",
    "pair_products": "gradients of the latents",
    "_fused_adam_": "Adam",
    "bmm": "projection of the decoder's gradient",
    "see": "firing counters",
    "linalg_vector_norm": "norms",
    "div_": "unit norms",
}
"""What a function of the profile is for."""
STEPS = 5


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=sorted(SIZES), default=["A"], help="which (A)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    for size in arguments.size:
        spent, matmul = measure(*SIZES[size])
        print(f"{size}: d_in {SIZES[size][0]}, d_sae {SIZES[size][1]}, batch {SIZES[size][2]}")
        for part, seconds in sorted(spent.items(), key=lambda pair: -pair[1]):
            print(f"  {part:42} {seconds:6.3f} s  {seconds / matmul:5.2f} matmuls")
        total = sum(spent.values())
        print(f"  {'whole step':42} {total:6.3f} s  {total / matmul:5.2f} matmuls", flush=True)


def measure(d_in: int, d_sae: int, batch: int) -> tuple[dict[str, float], float]:
    """CPU seconds of a step by part, and those of the bare matmul."""
    data = PlantedAtoms(d=d_in, n_atoms=4 * d_in, l0=24.0).sample(2 * batch, seed=1)
    sae = SAE(d_in, d_sae, TopK(32))
    config = TrainConfig(tokens=1000 * batch, batch_size=batch, lr=1e-3)
    trainer = Trainer(sae, ActivationStore.from_tensor(data, hook="benchmark"), config)
    for _ in range(2):
        trainer.step()  # compiles the kernels
    profile = cProfile.Profile(time.process_time)
    matmuls = []
    for _ in range(STEPS):
        started = time.process_time()
        torch.addmm(sae.b_enc.detach(), data[:batch], sae.W_enc.detach())
        matmuls.append(time.process_time() - started)
        profile.enable()
        trainer.step()
        profile.disable()
    spent: dict[str, float] = defaultdict(float)
    for (_, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        key = name.removesuffix(">").rpartition(".")[2].rpartition(" ")[2]
        spent[PARTS.get(key, "everything else")] += own / STEPS
    return dict(spent), statistics.median(matmuls)


if __name__ == "__main__":
    main()
