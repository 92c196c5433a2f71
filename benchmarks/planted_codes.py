"""Do codes find the heads of a task where it is known which they are?

    python -m benchmarks.planted_codes

Random outputs of 6 layers of 8 heads: all heads write one of six directions each, and noise. On
the positives, and there only, five heads also write a vector of their own, another one on every
example: a `loud` task is four times as long as what is there anyway, a `quiet` one 1.5 times. For
different numbers of examples and both scores, means over seeds of

    area       under the pessimistic ROC curve of the score less its null
    raw        the same of the score itself
    null       the same for labels put on at random
    found      of the planted heads, those with p at most 0.05; and how many others
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from saelab.code_circuits import CodeConfig, ScoreConfig, code_circuit, head_codes
from saelab.patching import roc_area

N_LAYERS, N_HEADS, D = 6, 8, 32
TASK = ((1, 2), (2, 5), (4, 0), (4, 7), (5, 3))


def planted(n: int, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Head outputs of n positives and n negatives, and which are positive."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, D, generator=generator)
    drawn = torch.randint(6, (2 * n, N_LAYERS, N_HEADS), generator=generator)
    x = kinds[drawn] + 0.1 * torch.randn(2 * n, N_LAYERS, N_HEADS, D, generator=generator)
    for layer, head in TASK:
        x[:n, layer, head] += strength * torch.randn(n, D, generator=generator)
    return x, torch.arange(2 * n) < n


def truth() -> Tensor:
    """Which heads do the task."""
    found = torch.zeros(N_LAYERS, N_HEADS, dtype=torch.bool)
    for layer, head in TASK:
        found[layer, head] = True
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="drawings of the data (3)")
    parser.add_argument("--epochs", type=int, default=200, help="of the autoencoder (200)")
    parser.add_argument("--permutations", type=int, default=200, help="of the null (200)")
    asked = parser.parse_args(argv)
    print(f"{'task':6}{'examples':>9}{'score':>11}{'area':>7}{'raw':>7}{'null':>7}{'found':>8}"
          f"{'others':>8}{'seconds':>9}")  # fmt: skip
    for name, strength in (("loud", 4.0), ("quiet", 1.5)):
        for n in (5, 10, 20):
            for score in ("frequency", "unique"):
                config = ScoreConfig(
                    score="unique" if score == "unique" else "frequency",
                    n_permutations=asked.permutations,
                )
                rows = [measured(n, strength, config, s, asked.epochs) for s in range(asked.seeds)]
                mean = torch.tensor(rows).double().mean(0).tolist()
                print(f"{name:6}{n:>5}+{n:<3}{score:>11}{mean[0]:>7.3f}{mean[1]:>7.3f}{mean[2]:>7.3f}"
                      f"{mean[3]:>5.1f}/{len(TASK)}{mean[4]:>8.1f}{mean[5]:>9.1f}")  # fmt: skip
    return 0


def measured(n: int, strength: float, config: ScoreConfig, seed: int, epochs: int) -> list[float]:
    """Area, raw area, area for random labels, planted heads found, others found, seconds."""
    started = time.perf_counter()
    x, positive = planted(n, strength, seed)
    codes = head_codes(x, CodeConfig(seed=seed, epochs=epochs))
    found = code_circuit(codes, positive, config)
    seconds = time.perf_counter() - started
    shuffled = positive[torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed + 1))]
    null = code_circuit(codes, shuffled, config)
    wanted, named = truth().flatten(), set(found.found_heads())
    areas = [roc_area(one.flatten(), wanted)
             for one in (found.head_excess(), found.heads, null.head_excess())]  # fmt: skip
    return [*areas, float(len(named & set(TASK))), float(len(named - set(TASK))), seconds]


if __name__ == "__main__":
    sys.exit(main())
