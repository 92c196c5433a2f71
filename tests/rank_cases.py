"""Work that several processes do together, for tests/test_distributed.py.

The processes are forked from a server that has imported everything; what they find they write
to files, because a test process and its ranks share nothing else.
"""

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    BatchAbsTopK,
    BatchTopK,
    JumpReLU,
    TopK,
)
from saelab.distributed import Ranks, Split, ranks
from saelab.errors import SaelabError
from saelab.files import write_tensors
from saelab.objectives import AuxK, Matryoshka, Reconstruction, TargetL0, Term
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer, train
from saelab.training.config import TrainConfig

WORLD = 2
SECONDS = 120.0
CONFIG = TrainConfig(
    tokens=64 * 30,
    batch_size=64,
    lr=3e-3,
    log_every_tokens=640,
    checkpoint_every_tokens=640,
    dead_after_tokens=128,
)
FAMILIES: dict[str, tuple[Callable[[], ActivationFunction], tuple[Term, ...]]] = {
    "topk": (lambda: TopK(2), (Reconstruction(), AuxK())),
    "abstopk": (lambda: AbsTopK(2), (Reconstruction(), AuxK())),
    "batchtopk": (lambda: BatchTopK(2.0), (Reconstruction(), AuxK())),
    "batchabstopk": (lambda: BatchAbsTopK(2.0), (Reconstruction(), AuxK())),
    "matryoshka": (lambda: BatchTopK(2.0), (Matryoshka(shares=(0.25, 0.75)), AuxK())),
    "jumprelu": (lambda: JumpReLU(threshold=0.5), (Reconstruction(), TargetL0(target=2.0))),
}

Work = Callable[..., None]


def store() -> ActivationStore:
    planted = PlantedAtoms(d=16, n_atoms=24, l0=2.0, exact=True)
    return ActivationStore.from_tensor(planted.sample(2000, seed=1), hook="planted")


def trainer(
    family: str,
    together: Ranks,
    folder: Path | None = None,
    config: TrainConfig = CONFIG,
    dtype: torch.dtype = torch.float64,
) -> Trainer:
    """In double precision, where rounding leaves the two ways of computing 1e-13 apart."""
    activation, terms = FAMILIES[family]
    sae = SAE(16, 48, activation(), dtype=dtype)
    return Trainer(sae, store(), config, folder, terms, ranks=together)


def selected(one: Trainer) -> list[torch.Tensor]:
    """Run a few steps; which latents each token kept, step by step."""
    kept = []
    see = one._firing.see

    def keep(step, batch_size):
        dense = torch.zeros(len(step.targets), one._own.d_sae)
        pairs = step.forward.pairs
        dense[pairs.tokens(), pairs.indices] = 1.0
        kept.append(dense)
        return see(step, batch_size)

    one._firing.see = keep  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(30):
        one.step()
    return kept


def train_and_write(family: str, split: Split, out: Path) -> None:
    """Each rank writes what it selected, and rank 0 the weights and counters."""
    with ranks(split) as together:
        one = trainer(family, together)
        found = {f"kept.{i}": kept for i, kept in enumerate(selected(one))}
        tensors = {f"sae.{n}": t.clone() for n, t in one._state.tensors().items()}
        write_tensors(out / f"{together.rank}.safetensors", {**found, **tensors})


def train_in_folder(family: str, split: Split, out: Path, stop_after: int | None) -> None:
    """A run with a folder; killed, as it were, between two checkpoints if so asked."""
    activation, terms = FAMILIES[family]
    with ranks(split) as together:
        if stop_after is None:
            sae = SAE(16, 48, activation(), dtype=torch.float64)
            train(sae, store(), CONFIG, out, terms=terms, ranks=together)
        else:
            one = trainer(family, together, out)
            for _ in range(stop_after):
                one.advance()


def say_what_is_refused(case: str, out: Path) -> None:
    """Each rank writes the message it was refused with."""
    split: Split = "tokens" if case == "uneven" else "latents"
    with ranks(split) as together:
        try:
            if case == "uneven":
                trainer("topk", together, config=replace(CONFIG, batch_size=63))
            else:
                trainer({"term": "matryoshka", "family": "jumprelu"}[case], together)
        except SaelabError as error:
            (out / f"{together.rank}.txt").write_text(str(error))


def together(work: Work, *arguments: object, world: int = WORLD) -> None:
    """Do some work in several processes, as torchrun would start them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, world, port, work, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    assert not late, f"{len(late)} of {world} processes did not end in {SECONDS} s"
    assert [process.exitcode for process in processes] == [0] * world


def _rank(rank: int, world: int, port: int, work: Work, arguments: tuple[object, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # small runs: many latents are dead
    work(*arguments)
