"""Which learning rate is best for a TopK dictionary of real activations?

    python -m benchmarks.learning_rate runs/acts --tokens 500_000

trains one dictionary a learning rate on one pass over a store and prints the fraction of variance
unexplained on the last batches, which were not trained on before they were measured, with the
share of dead latents. One seed: differences below about 0.003 mean nothing.
"""

import argparse
import warnings

from saelab.activation_functions import TopK
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig

LEARNING_RATES = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def measure(store: ActivationStore, lr: float, d_sae: int, tokens: int) -> tuple[float, float]:
    """Mean FVU of the last 20 rows of metrics, and the final share of dead latents."""
    config = TrainConfig(
        tokens=tokens, batch_size=2048, lr=lr, decay=0.2, log_every_tokens=2048, seed=0
    )
    result = train(SAE(store.d_in, d_sae, TopK(32), hook=store.hook), store, config)
    rows = result.metrics[-20:]
    return sum(row["fvu"] for row in rows) / len(rows), rows[-1]["dead_share"]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", help="folder of a finished harvest")
    parser.add_argument("--tokens", type=int, default=500_000, help="budget of each run (500000)")
    parser.add_argument("--d-sae", type=int, default=4608, help="latents (4608)")
    parser.add_argument("--lr", type=float, nargs="+", default=LEARNING_RATES, help="to try")
    arguments = parser.parse_args()
    store = ActivationStore.open(arguments.store)
    warnings.simplefilter("ignore", UserWarning)  # what is off shows in the table
    print(f"{arguments.d_sae} latents, k 32, {arguments.tokens:,} of {store.n_tokens:,} tokens")
    print("lr       fvu    dead")
    for lr in arguments.lr:
        fvu, dead = measure(store, lr, arguments.d_sae, min(arguments.tokens, store.n_tokens))
        print(f"{lr:.0e}  {fvu:.4f}  {dead:.1%}", flush=True)


if __name__ == "__main__":
    main()
