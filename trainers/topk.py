"""TopK: exactly k latents per token, and dead latents revived by what the others miss.

    f = ReLU(TopK_k(W_enc (x - b_dec) + b_enc))        x_hat = W_dec f + b_dec
    loss = |x - x_hat|^2 / variance + 1/32 AuxK

Gao, la Tour, Tillman, Goh, Troll, Radford, Sutskever, Leike, Wu 2024, "Scaling and evaluating
sparse autoencoders". Followed: decoder directions of norm 1, W_enc starting as W_dec transposed,
b_dec at the geometric median, the decoder gradient projected, Adam with eps 6.25e-10, AuxK with
coefficient 1/32 and about d_in / 2 dead latents. Different: latents count as dead after a tenth of
the budget, not after 10 million tokens, because laptop budgets are smaller than that; the learning
rate rises and falls linearly at the two ends.

    python -m trainers.topk runs/acts runs/topk --d-sae 9216 --k 32
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from saelab.activation_functions import TopK
from saelab.cli.programs import run_program
from saelab.objectives import AuxK, Reconstruction
from saelab.run_folders import record_store
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.train_config import TrainConfig
from saelab.training import TrainResult, train


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A TopK dictionary."""

    hook: str | None = None
    """Hook point, if the store has several."""
    d_sae: int = 4608
    """Latents; 8 times the width of the default model."""
    k: int = 32
    """Latents per token."""
    auxk: float = 1 / 32
    """Weight of the AuxK term."""
    tokens: int = 1_500_000
    """Training budget in tokens."""
    batch_size: int = 2048
    """Tokens per step; the paper's 131,072 would leave a small budget with too few steps."""
    lr: float | None = None
    """Peak learning rate; None for 1e-3 * sqrt(4608 / d_sae), the paper's scaling."""
    seed: int = 0
    """Of the decoder's start and of the order of the data."""


def make(
    recipe: Recipe, store: Path, out: Path, progress: Callable[[int, int, str], None] | None = None
) -> TrainResult:
    """Train one dictionary on a store; run again to go on after an interruption."""
    activations = ActivationStore.open(store, recipe.hook)
    sae = SAE(
        activations.d_in, recipe.d_sae, TopK(recipe.k), hook=activations.hook, seed=recipe.seed
    )
    config = TrainConfig(
        tokens=recipe.tokens, batch_size=recipe.batch_size, lr=recipe.lr, seed=recipe.seed
    )
    terms = (Reconstruction(), AuxK(coefficient=recipe.auxk))
    result = train(sae, activations, config, out, terms=terms, progress=progress)
    record_store(out, store)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe from the command line."""
    return run_program("python -m trainers.topk", __doc__ or "", Recipe, make, argv)


if __name__ == "__main__":
    sys.exit(main())
