"""The processes of one run, as `torchrun` starts them: which one is this, and what do all know?

    split     each rank holds                      what is exchanged in a step
    tokens    the whole dictionary                 gradients; what a rule says of the whole batch
    latents   its share of the latents             the strongest latents; the reconstruction

Everything else in the library sees a `Ranks`, and in a run of one process that object does nothing.
No tensor is pickled: only numbers travel.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, final, get_args

import torch
from torch import Tensor

from saelab.errors import ConfigError, SaelabError

__all__ = ["ALONE", "Ranks", "Split", "launched", "ranks"]

Split = Literal["tokens", "latents"]
"""What is divided among the processes of a run."""
Found = TypeVar("Found")


@final
class Ranks:
    """The processes of a run and what they can work out together.

    Args:
        split: What is divided among them.
        rank: Number of this process, from 0.
        world: How many there are; with one, every method returns what it was given.

    >>> ALONE.world, ALONE.any(True), ALONE.mean(torch.tensor(3.0)).item()
    (1, True, 3.0)
    """

    def __init__(self, split: Split = "tokens", rank: int = 0, world: int = 1) -> None:
        if split not in get_args(Split):
            raise ConfigError(f"A run is split by {' or '.join(get_args(Split))}, not {split!r}.")
        self.split, self.rank, self.world = split, rank, world

    @property
    def divides_tokens(self) -> bool:
        """Whether each rank sees only its rows of every batch."""
        return self.world > 1 and self.split == "tokens"

    @property
    def divides_latents(self) -> bool:
        """Whether each rank holds only its share of the latents."""
        return self.world > 1 and self.split == "latents"

    @property
    def device(self) -> torch.device:
        """Where this process computes and what it exchanges must lie."""
        return _here() if self.world > 1 else torch.device("cpu")

    def share(self, n: int, what: str) -> slice:
        """This rank's part of `n` things, in the order of the ranks.

        Raises:
            ConfigError: They cannot be divided evenly.
        """
        if n % self.world:
            raise ConfigError(
                f"{n} {what} cannot be divided among {self.world} processes. Use a multiple of "
                f"{self.world}, such as {max(n // self.world, 1) * self.world}."
            )
        size = n // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks; every rank gets the same bits."""
        if self.world > 1:
            stored = tensor if tensor.is_contiguous() else tensor.T
            torch.distributed.all_reduce(stored)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the ranks, without gradient."""
        return tensor if self.world == 1 else self.sum_(tensor.detach().clone()).div_(self.world)

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks; its gradient is passed on to each summand."""
        return tensor if self.world == 1 else _Add.apply(tensor, self)  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank."""
        return flag if self.world == 1 else bool(self.sum_(torch.tensor(int(flag), device=_here())))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which may differ in length, in the order of the ranks."""
        if self.world == 1:
            return [tensor]
        lengths = torch.zeros(self.world, dtype=torch.int64, device=tensor.device)
        lengths[self.rank] = len(tensor)
        sizes = self.sum_(lengths).tolist()
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(found, padded)
        return [part[:size] for part, size in zip(found, sizes, strict=True)]

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """As `gather`, for equal shapes and into the host's memory, a part at a time."""
        if self.world == 1:
            return [tensor]
        found = []
        for rank in range(self.world):
            part = tensor.clone() if rank == self.rank else torch.empty_like(tensor)
            torch.distributed.broadcast(part, rank)
            found.append(part.cpu())
        return found

    def first(self, work: Callable[[], Found]) -> Found:
        """Let rank 0 do something before the others; if it fails there, every rank stops.

        Raises:
            SaelabError: What rank 0 raised, or that it did.
        """
        if self.world == 1:
            return work()
        error: SaelabError | None = None
        found: Any = None
        if self.rank == 0:
            try:
                found = work()
            except SaelabError as raised:
                error = raised
        if self.any(error is not None):
            raise error or ConfigError("The first process of the run stopped; see its message.")
        return work() if self.rank else found

    def agree(self, tensor: Tensor, what: str) -> None:
        """Check that all ranks hold the same numbers.

        Raises:
            ConfigError: They do not.
        """
        mark = tensor.detach().double().sum().reshape(1)
        mark = mark.to(self.device) if self.world > 1 else mark
        if any(not torch.equal(other, mark) for other in self.gather(mark)):
            raise ConfigError(
                f"The processes of the run hold different {what}. They must be started with the "
                "same dictionary, data and settings, by the same version of everything."
            )


ALONE = Ranks()
"""A run of one process."""


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:  # noqa: ARG004
        return ranks.sum_(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        return grads[0], None


def launched() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def ranks(split: Split = "tokens", timeout: float = 1800.0) -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started; alone, nothing happens.

        with saelab.distributed.ranks("tokens") as ranks:
            saelab.train(sae, store, config, "runs/topk", ranks=ranks)

    Args:
        split: What is divided among the processes.
        timeout: Seconds to wait for another process before giving up.

    Raises:
        ConfigError: There is no such split.
    """
    if not launched():
        yield Ranks(split)
        return
    made = not torch.distributed.is_initialized()
    if made:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(seconds=timeout)
        )
    try:
        yield Ranks(split, torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        if made:
            torch.distributed.destroy_process_group()


def _here() -> torch.device:
    """Where a tensor must lie so that the processes can exchange it."""
    nccl = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
