"""Do dictionaries find atoms that were planted, and what does each choice change?

    python -m benchmarks.planted               # everything, some minutes
    python -m benchmarks.planted --only auxk

prints, for each dictionary, the share of true atoms that some decoder direction matches with a
cosine above 0.9 (either sign for signed latents), and FVU, L0 and the size of reconstructions (1
if they are not shrunk) on tokens that were not trained on. One seed: differences below 0.01 in FVU
and 0.03 in recovery mean nothing.
"""

import argparse
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    BatchAbsTopK,
    BatchTopK,
    Choice,
    Gated,
    GroupMax,
    JumpReLU,
    NormMatching,
    ReLU,
    TopK,
)
from saelab.decoder_norms import start_directions
from saelab.objectives import (
    AFA,
    L1,
    AuxK,
    AuxZipf,
    GateL1,
    GateReconstruction,
    Matryoshka,
    MultiTopK,
    PAnnealing,
    PreActivation,
    Reconstruction,
    TanhL0,
    TargetL0,
    Term,
)
from saelab.planted import PlantedAtoms, recovery
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig
from saelab.training.group_bias import GroupBias, GroupBiasConfig

# Another seed than dictionaries start from: with the same one, directions would start as the atoms.
PLAIN = PlantedAtoms(seed=11)
SIGNED = PlantedAtoms(n_atoms=96, signed=True, seed=11)
STEPS, BATCH = 2000, 512


def measure(
    label: str,
    activation: ActivationFunction,
    terms: Sequence[Term] | None = None,
    *,
    d_sae: int = 128,
    planted: PlantedAtoms = PLAIN,
    dead_after: int = 10_240,
    untied: bool = False,
    start: float | None = None,
    bias: GroupBias | None = None,
    frozen: tuple[str, ...] = (),
) -> None:
    """Train one dictionary and print its line; `start` frees decoder lengths, from that one on."""
    sae = SAE(planted.d, d_sae, activation, tied=bias is not None)
    if start is not None:
        start_directions(sae, start)
    if untied:
        with torch.no_grad():
            sae.W_enc.copy_(SAE(planted.d, d_sae, TopK(1), seed=9).W_dec.T)
    store = ActivationStore.from_tensor(planted.sample(131_072, seed=1))
    config = TrainConfig(
        tokens=STEPS * BATCH,
        batch_size=BATCH,
        lr=1e-3,
        warmup=0.0,
        dead_after_tokens=dead_after,
        decoder="unit" if start is None else "free",
        center="geometric_median" if bias is None else "mean",
        frozen=frozen,
    )
    train(sae, store, config, terms=terms, upkeep=[] if bias is None else [bias])
    held_out = planted.sample(20_000, seed=2)
    codes = sae.encode(held_out)
    error = (held_out - sae.decode(codes)).square().sum()
    fvu = (error / (held_out - held_out.mean(0)).square().sum()).item()
    found = recovery(planted.atoms, sae.W_dec.detach(), signed=activation.signed)
    l0 = codes.l0().float().mean().item()
    print(
        f"{label:36}  {d_sae:5}  {found:9.3f}  {fvu:6.4f}  {l0:5.2f}  {size(sae, held_out):5.3f}",
        flush=True,
    )


def size(sae: SAE, x: Float[Tensor, "token d_in"]) -> float:
    """The c for which reconstructions over c come nearest, from b_dec on: below 1 if shrunk."""
    center = sae.b_dec.detach() / sae.normalization.scale_out
    made, true = sae(x).detach() - center, x - center
    return (made.square().sum() / (made * true).sum()).item()


def auxk() -> None:
    """AuxK against none, and when a latent counts as dead."""
    only = [Reconstruction()]
    measure("TopK tied", TopK(5))
    measure("TopK untied", TopK(5), untied=True)
    measure("TopK untied, no AuxK", TopK(5), only, d_sae=512, untied=True)
    for dead_after in (2_560, 10_240, 51_200):
        label = f"TopK untied, AuxK after {dead_after:,}"
        measure(label, TopK(5), d_sae=512, untied=True, dead_after=dead_after)


def signed() -> None:
    """Signed latents on signed data."""
    for activation, d_sae in ((AbsTopK(5), 96), (BatchAbsTopK(5), 96), (TopK(5), 96)):
        measure(f"signed data: {activation}", activation, d_sae=d_sae, planted=SIGNED)
    measure("signed data: TopK(k=5)", TopK(5), d_sae=192, planted=SIGNED)


def families() -> None:
    """The other families on plain data."""
    measure("BatchTopK", BatchTopK(5))
    measure("GroupMax", GroupMax(4))
    measure("multi-TopK", TopK(5), [Reconstruction(), MultiTopK(), AuxK()])
    measure("Matryoshka", BatchTopK(5), [Matryoshka(), AuxK()], d_sae=256)
    for target in (4.0, 5.0, 6.0):
        terms = [Reconstruction(), TargetL0(target=target), AuxK()]
        measure(f"JumpReLU, target L0 {target:g}", JumpReLU(), terms)


def choices() -> None:
    """Who picks whom, and budgets that nobody fixes."""
    terms = [Reconstruction(), AuxZipf()]
    measure("Mutual Choice, AuxZipf", Choice(5, [(1.0, "mutual")]), terms)
    measure("Feature Choice, last 10 %", Choice(5), terms)
    measure("Feature Choice, last 10 %, zipf", Choice(5, budgets="zipf"), terms)
    measure("Feature Choice from the start", Choice(5, [(1.0, "feature")]), terms)
    for d, n_atoms in ((64, 128), (256, 128)):
        planted = PlantedAtoms(d=d, n_atoms=n_atoms, seed=11)
        for weight in (1 / 128, 1 / 32):
            terms = [Reconstruction(), AFA(coefficient=weight), AuxK()]
            label = f"top-AFA 1/{round(1 / weight)}, {n_atoms} atoms in {d}"
            measure(label, NormMatching(), terms, d_sae=256, planted=planted)


def biases() -> None:
    """Group Bias Adaptation, as published and with its two pitfalls."""
    config = GroupBiasConfig(groups=4, highest=0.2, lowest=0.025, buffer_tokens=4096)
    planted = PlantedAtoms(n_atoms=96, seed=11)
    for label, activation, frozen in (
        ("group bias", ReLU(), ("b_enc", "b_dec")),
        ("group bias, b_dec trained", ReLU(), ("b_enc",)),
        (
            "group bias, full lengths",
            JumpReLU(threshold=1.0, bandwidth=1e-6),
            ("b_enc", "b_dec", "activation.threshold"),
        ),
    ):
        bias, terms = GroupBias(config), [Reconstruction()]
        measure(label, activation, terms, d_sae=192, planted=planted, bias=bias, frozen=frozen)


def penalties() -> None:
    """Families whose objective has a price for active latents, at two prices each."""
    for price in (1.0, 3.0):
        measure(f"ReLU, L1 {price:g}", ReLU(), [Reconstruction(), L1(coefficient=price)])
        terms = [Reconstruction(), L1(coefficient=price)]
        measure(f"ReLU, L1 {price:g}, free lengths", ReLU(), terms, start=0.1)
        for form in ("Lp^p", "Lp"):
            terms = [Reconstruction(), PAnnealing(coefficient=price, form=form)]
            measure(f"p-annealing {form}, L1 {price:g} at first", ReLU(), terms)
        terms = [Reconstruction(), GateL1(coefficient=price), GateReconstruction()]
        measure(f"Gated, L1 {price:g}", Gated(), terms)
        terms = [Reconstruction(), TanhL0(coefficient=price, start_l0=20.0), PreActivation()]
        measure(f"JumpReLU, tanh {price:g}", JumpReLU(to_encoder=True), terms, start=1.0)


PARTS = {
    "auxk": auxk,
    "signed": signed,
    "families": families,
    "penalties": penalties,
    "choices": choices,
    "biases": biases,
}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # what is off shows in the table
    print(f"{'dictionary':36}  d_sae  recovered     FVU     L0   size")
    for part in arguments.only:
        PARTS[part]()


if __name__ == "__main__":
    main()
