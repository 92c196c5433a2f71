"""Does a JumpReLU dictionary reach the L0 it was asked for, and is it as good as TopK there?

    python -m benchmarks.jumprelu_target                      # planted atoms
    python -m benchmarks.jumprelu_target --store runs/acts    # real activations too, some minutes

prints, for each target, the L0 reached on tokens that were not trained on, how far that is from
the target, and FVU on the same tokens; and FVU of a TopK dictionary that keeps as many latents
and was trained on the same tokens in the same order. One seed: differences below 0.003 in FVU mean
nothing.
"""

import argparse
import warnings

from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import ActivationFunction, JumpReLU, TopK
from saelab.objectives import AuxK, Reconstruction, TargetL0, Term
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig

HELD_OUT = 20_000
PLANTED = PlantedAtoms(seed=11)  # not the seed that a dictionary starts from
PLANTED_CONFIG = TrainConfig(
    tokens=2000 * 512, batch_size=512, lr=1e-3, warmup=0.0, dead_after_tokens=10_240
)


def measure(
    store: ActivationStore,
    held_out: Float[Tensor, "token d_in"],
    activation: ActivationFunction,
    terms: list[Term] | None,
    d_sae: int,
    config: TrainConfig,
) -> tuple[float, float]:
    """L0 and FVU on held-out tokens, after training."""
    sae = SAE(store.d_in, d_sae, activation, hook=store.hook)
    train(sae, store, config, terms=terms)
    pairs, error = 0, 0.0
    for rows in held_out.split(4096):
        codes = sae.encode(rows)
        pairs += codes.n_pairs
        error += (rows - sae.decode(codes)).square().sum().item()
    spread = (held_out - held_out.mean(0)).square().sum().item()
    return pairs / len(held_out), error / spread


def compare(
    label: str,
    store: ActivationStore,
    held_out: Float[Tensor, "token d_in"],
    targets: tuple[int, ...],
    d_sae: int,
    config: TrainConfig,
) -> None:
    """One line a target."""
    for target in targets:
        terms = [Reconstruction(), TargetL0(target=float(target)), AuxK()]
        l0, fvu = measure(store, held_out, JumpReLU(), terms, d_sae, config)
        _, other = measure(store, held_out, TopK(target), None, d_sae, config)
        off = l0 / target - 1
        print(f"{label:8} {target:6}  {l0:7.2f}  {off:+6.1%}  {fvu:.4f}  {other:.4f}", flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", help="folder of a finished harvest")
    parser.add_argument("--tokens", type=int, default=300_000, help="budget of each run (300000)")
    parser.add_argument("--d-sae", type=int, default=2304, help="latents on real data (2304)")
    parser.add_argument("--only", choices=("planted", "real"), help="one of the two")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # what is off shows in the table
    print("data     target       L0     off     FVU    TopK")
    if arguments.only != "real":
        store = ActivationStore.from_tensor(PLANTED.sample(131_072, seed=1))
        held_out = PLANTED.sample(HELD_OUT, seed=2)
        compare("planted", store, held_out, (3, 5, 8), 128, PLANTED_CONFIG)
    if arguments.store and arguments.only != "planted":
        whole = ActivationStore.open(arguments.store)
        n = min(arguments.tokens, whole.n_tokens - HELD_OUT)
        store = ActivationStore.from_tensor(whole.rows(0, n).activations)
        held_out = whole.rows(whole.n_tokens - HELD_OUT, whole.n_tokens).activations.float()
        config = TrainConfig(tokens=n, batch_size=2048)
        compare("real", store, held_out, (16, 32, 64), arguments.d_sae, config)


if __name__ == "__main__":
    main()
