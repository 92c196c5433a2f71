"""How are the sparse codes of a corpus kept, so that one latent's tokens are found at once?

A shard holds some token rows, its pairs sorted by latent and then by token: a range of latents is
one slice of each file, read without the rest. A shard is finished when its description, written
last, is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import CheckpointError
from saelab.files import read_json, sha256_of, write_json, write_tensors
from saelab.sparse_codes import SparseCodes

__all__ = ["CodeShards", "Pairs"]


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """Latent-token pairs, sorted by latent and then by token."""

    latent: Int[Tensor, " pair"]
    """Which latent."""
    token: Int[Tensor, " pair"]
    """Where: row * length + position."""
    value: Float[Tensor, " pair"]
    """The activation; never zero."""


@final
@dataclass(frozen=True)
class CodeShards:
    """The shards of a folder, by number."""

    folder: Path
    """Where they are."""
    rows: int
    """Token rows in a shard (fewer in the last)."""
    length: int
    """Positions in a row."""
    n_rows: int
    """Token rows in all."""
    d_sae: int
    """Latents of the dictionary."""

    def __len__(self) -> int:
        """Number of shards."""
        return -(-self.n_rows // self.rows)

    def range(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last."""
        return shard * self.rows, min((shard + 1) * self.rows, self.n_rows)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{shard:05d}.safetensors"

    def finished(self, shard: int) -> bool:
        """Whether a shard is there and whole."""
        described = self.path(shard).with_suffix(".json")
        if not described.exists() or not self.path(shard).exists():
            return False
        record = read_json(described, "a description of codes")
        return record.get("sha256") == sha256_of(self.path(shard))

    def write(self, shard: int, codes: SparseCodes, measured: Bool[Tensor, "row pos"]) -> None:
        """Write the codes of a shard's measured positions, in row-major order one each."""
        places = measured.flatten().nonzero().squeeze(1)
        token = places[codes.tokens]
        order = torch.argsort(codes.indices, stable=True)
        starts = torch.zeros(self.d_sae + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(codes.indices, minlength=self.d_sae), 0, out=starts[1:])
        tensors = {
            "starts": starts,
            "token": token[order].to(torch.int32),
            "value": codes.values[order].float(),
            "measured": measured.to(torch.uint8),
        }
        digest = write_tensors(self.path(shard), tensors)
        record = {"sha256": digest, "rows": list(self.range(shard)), "pairs": codes.n_pairs}
        write_json(self.path(shard).with_suffix(".json"), record)

    def measured(self) -> Bool[Tensor, "row pos"]:
        """Which positions were measured, over all shards."""
        parts = [self._tensor(shard, "measured").bool() for shard in range(len(self))]
        return torch.cat(parts)

    def counts(self) -> Int[Tensor, " d_sae"]:
        """Measured tokens on which each latent is not zero."""
        total = torch.zeros(self.d_sae, dtype=torch.int64)
        for shard in range(len(self)):
            total += self._tensor(shard, "starts").diff()
        return total

    def pairs(self, first: int, stop: int, shards: Sequence[int] | None = None) -> Pairs:
        """The pairs of latents `first` to `stop - 1`, of all shards or some."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for shard in range(len(self)) if shards is None else shards:
            with self._opened(shard) as file:
                starts = file.get_slice("starts")[first : stop + 1]
                low, high = int(starts[0]), int(starts[-1])
                if low == high:
                    continue
                token = file.get_slice("token")[low:high].long()
                value = file.get_slice("value")[low:high]
            latent = torch.arange(first, stop).repeat_interleave(starts.diff())
            parts.append((latent, token + self.range(shard)[0] * self.length, value))
        if not parts:
            nothing = torch.empty(0, dtype=torch.int64)
            return Pairs(nothing, nothing, torch.empty(0))
        latent, token, value = (torch.cat(column) for column in zip(*parts, strict=True))
        order = torch.argsort(latent, stable=True)  # shards ascend, so tokens stay sorted
        return Pairs(latent[order], token[order], value[order])

    def _tensor(self, shard: int, name: str) -> Tensor:
        with self._opened(shard) as file:
            return file.get_tensor(name)

    def _opened(self, shard: int):
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(str(self.path(shard)), "pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path(shard)} cannot be read ({error}). Delete it and build the atlas again."
            ) from None
