"""Does a training run that is killed at random moments end with the same files as one that is not?

    python -m benchmarks.kill_training --kills 20

trains a small TopK dictionary on planted data, kills the process with SIGKILL at random moments
(in a step, while a checkpoint is written, between its rename and the removal of the older one),
runs the same command again each time, and compares the SHA-256 of every file of the run folder,
but the clock's, with those of a run that was left alone. Prints one line and exits with status 1
if a single byte differs.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.killing import KillReport, kill_program, kill_repeatedly
from saelab.activation_functions import TopK
from saelab.planted import PlantedAtoms
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig

CONFIG = TrainConfig(
    tokens=51_200,
    batch_size=128,
    lr=1e-3,
    log_every_tokens=1280,
    checkpoint_every_tokens=1280,
    dead_after_tokens=2560,
    window_tokens=1024,
)


def train_small(folder: Path, ready: Callable[[], None]) -> None:
    """The work: 400 steps with AuxK active and a checkpoint every tenth."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # many latents die here: AuxK has work to do
    planted = PlantedAtoms(d=32, n_atoms=48, l0=3.0)
    store = ActivationStore.from_tensor(planted.sample(4000, seed=1), hook="planted")
    ready()
    train(SAE(32, 256, TopK(3)), store, CONFIG, folder)


def kill_trainings(folder: Path, kills: int, seed: int = 0) -> KillReport:
    """Kill a training run `kills` times; see `benchmarks.killing`."""
    return kill_repeatedly(train_small, folder, kills, seed=seed)


if __name__ == "__main__":
    kill_program(__doc__ or "", kill_trainings)
