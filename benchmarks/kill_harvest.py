"""Does a harvest that is killed at random moments end with the same files as one that is not?

    python -m benchmarks.kill_harvest --kills 20

harvests a tiny causal model at two hook points, kills the process with SIGKILL at random moments
(while a forward pass runs, while a shard is half written, between the rename of a shard and the
manifest), runs the same command again each time, and compares the SHA-256 of every file, the
manifest included, with those of a harvest that was left alone. Prints one line and exits with
status 1 if a single byte differs.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.killing import KillReport, kill_program, kill_repeatedly
from saelab.harvesting import harvest
from saelab.models import load_model
from saelab.tokens import Tokens

D_VOCAB = 50
ROWS = 384
LENGTH = 64


class RunningMeans(nn.Module):
    """A tiny causal language model: each block adds a function of the running mean."""

    def __init__(self, d_model: int = 64) -> None:
        """Draw the weights from seed 0."""
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(D_VOCAB, d_model)
        self.blocks = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(3))
        self.head = nn.Linear(d_model, D_VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [row, pos, d_vocab]."""
        x = self.embedding(tokens)
        count = torch.arange(1, x.shape[1] + 1).reshape(1, -1, 1)
        for block in self.blocks:
            x = x + torch.tanh(block(x.cumsum(dim=1) / count))
        return self.head(x)


def random_rows(rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> Tokens:
    """Random token rows, ten documents of them, position 0 excluded."""
    ids = torch.randint(1, D_VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    document = (torch.arange(rows) * 10 // rows).reshape(-1, 1).repeat(1, length)
    kept = torch.ones(rows, length, dtype=torch.bool)
    kept[:, 0] = False
    names = [f"document {i}" for i in range(10)]
    return Tokens(ids, document, kept, names, None, {"name": "random", "sha256": ""})


def harvest_tiny(folder: Path, ready: Callable[[], None]) -> None:
    """The work: 24 shards at two hook points."""
    torch.set_num_threads(1)
    model = load_model(RunningMeans(), name="running means", device="cpu")
    tokens = random_rows()
    ready()
    hooks = ["blocks.0.output", "blocks.2.output"]
    harvest(model, tokens, hooks, folder, rows_per_batch=8, tokens_per_shard=16 * LENGTH)


def kill_harvests(folder: Path, kills: int, seed: int = 0, kills_per_round: int = 5) -> KillReport:
    """Kill a harvest `kills` times; see `benchmarks.killing`."""
    return kill_repeatedly(harvest_tiny, folder, kills, seed=seed, kills_per_round=kills_per_round)


if __name__ == "__main__":
    kill_program(__doc__ or "", kill_harvests)
