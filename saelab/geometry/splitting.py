"""Into what do the latents of a narrow dictionary split in a wider one, and what is absorbed?

With i a latent of the narrow dictionary and j one of the wide one, cos_ij of their directions and
P_ij = P(i active | j active) on the same tokens,

    child       cos_ij >= cosine_bar and P_ij >= both_bar and P_ij > P(i active), the base rate
    split       a latent with at least two children; covered = P(some child active | i active),
                overlap = mean P(another child active | a child active): 0 is a partition
    absorption  cos_ij >= cosine_bar but P_ij < absent_bar: j means what i means, and i is silent

The null moves the narrow dictionary's codes by half of the text: cosines and densities stay, and
every child that is left is chance.

Sources: Bricken et al. 2023, "Towards monosemanticity", for splitting; Chanin et al. 2024, "A is
for absorption". The bars are conventions, not theirs.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.geometry.coactivation import active, coactive
from saelab.geometry.nulls import checked_directions
from saelab.sparse_codes import SparseCodes

__all__ = ["Split", "SplittingGraph", "splitting"]

_CHUNK = 1024


@final
@dataclass(frozen=True, kw_only=True)
class Split:
    """A latent with several children."""

    parent: int
    """Latent of the narrow dictionary."""
    children: tuple[int, ...]
    """Latents of the wide one."""
    covered: float
    """P(some child active | parent active), 0 to 1."""
    overlap: float
    """Mean over children of P(another active | it active); 0 where they partition."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SplittingGraph:
    """Edges from a narrow dictionary to a wide one."""

    children: Int[Tensor, "edge two"]
    """(parent, child), parent ascending."""
    cosine: Float[Tensor, " edge"]
    """Of their directions, with its sign."""
    given: Float[Tensor, " edge"]
    """P(parent active | child active)."""
    absorbed: Int[Tensor, "pair two"]
    """(latent, the one that absorbs it)."""
    splits: tuple[Split, ...]
    """Most children first."""
    n_null: int
    """Edges with the narrow dictionary's codes moved by half of the text."""
    absorbed_null: int
    """Absorption pairs in the same null: similar directions that do not meet by chance either."""
    orphans: int
    """Latents of the wide dictionary that fire and have no parent."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object: counts, and the splits."""
        return {
            "edges": len(self.children),
            "edges_null": self.n_null,
            "absorbed": len(self.absorbed),
            "absorbed_null": self.absorbed_null,
            "orphans": self.orphans,
            "splits": [
                [split.parent, list(split.children), split.covered, split.overlap]
                for split in self.splits
            ],
        }

    def __str__(self) -> str:
        """Two lines."""
        covered = [split.covered for split in self.splits]
        overlap = [split.overlap for split in self.splits]
        middle = (
            f", median covered {np.median(covered):.2f}, overlap {np.median(overlap):.2f}"
            if covered
            else ""
        )
        return (
            f"{len(self.children):,} parent-child edges (null {self.n_null:,}), "
            f"{self.orphans:,} latents without a parent\n"
            f"  {len(self.splits):,} latents split{middle}; "
            f"{len(self.absorbed):,} absorption pairs (null {self.absorbed_null:,})"
        )


def splitting(
    narrow: Float[Tensor, "latent d"],
    wide: Float[Tensor, "other d"],
    narrow_codes: SparseCodes,
    wide_codes: SparseCodes,
    *,
    cosine_bar: float = 0.6,
    both_bar: float = 0.5,
    absent_bar: float = 0.1,
    signed: bool = False,
) -> SplittingGraph:
    """Find parents, splits and absorption between two widths.

    Args:
        narrow: Decoder directions.
        wide: Those of a wider dictionary of the same hook point.
        narrow_codes: Codes of some tokens.
        wide_codes: Codes of the same tokens.
        cosine_bar: Cosine (its size if `signed`) an edge needs.
        both_bar: P(parent | child) an edge needs; it must also exceed the base rate.
        absent_bar: P(parent | child) below which a similar direction is absorption.
        signed: Compare |cosine|.

    Raises:
        ShapeError: Directions and codes do not belong together.
        ConfigError: A bar is not in (0, 1), or absent_bar is not below both_bar.
    """
    a, b = checked_directions(narrow, 1).cpu(), checked_directions(wide, 1).cpu()
    if len(a) != narrow_codes.d_sae or len(b) != wide_codes.d_sae or a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"Directions {tuple(a.shape)} and {tuple(b.shape)}, codes of {narrow_codes.d_sae} and "
            f"{wide_codes.d_sae} latents."
        )
    if not (0 < cosine_bar < 1 and 0 < absent_bar < both_bar < 1):
        raise ConfigError(
            f"cosine_bar={cosine_bar} and 0 < absent_bar={absent_bar} < both_bar={both_bar} < 1."
        )
    rows, columns, cosine = _similar(a, b, cosine_bar, signed)
    base = (narrow_codes.firing_counts().double() / len(narrow_codes)).cpu()
    fires = wide_codes.firing_counts().double().cpu()
    # A latent that never fires has neither parents nor what it absorbs.
    alive = (fires[columns] > 0) & (base[rows] > 0)
    rows, columns, cosine = rows[alive], columns[alive], cosine[alive]

    def given(shift: int) -> Tensor:
        table = coactive(narrow_codes, wide_codes, shift)
        both = np.asarray(table[rows.numpy().copy(), columns.numpy().copy()]).ravel()
        return torch.from_numpy(both).double() / fires[columns]

    own, null = given(0), given(max(1, len(narrow_codes) // 2))
    edge, edge_null = ((p >= both_bar) & (p > base[rows]) for p in (own, null))
    absorbed = own < absent_bar
    children = torch.stack([rows[edge], columns[edge]], 1)
    return SplittingGraph(
        children=children,
        cosine=cosine[edge],
        given=own[edge].float(),
        absorbed=torch.stack([rows[absorbed], columns[absorbed]], 1),
        splits=_splits(children, narrow_codes, wide_codes),
        n_null=int(edge_null.sum()),
        absorbed_null=int((null < absent_bar).sum()),
        orphans=int((fires > 0).sum()) - len(children[:, 1].unique()),
    )


def _similar(a: Tensor, b: Tensor, bar: float, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for start in range(0, len(a), _CHUNK):
        cosines = a[start : start + _CHUNK] @ b.T
        row, column = ((cosines.abs() if signed else cosines) >= bar).nonzero(as_tuple=True)
        found.append((row + start, column, cosines[row, column]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # pyright: ignore[reportReturnType]


def _splits(
    children: Tensor, narrow_codes: SparseCodes, wide_codes: SparseCodes
) -> tuple[Split, ...]:
    one, other = active(narrow_codes).tocsc(), active(wide_codes).tocsc()
    found = []
    for parent in children[:, 0].unique().tolist():
        own = children[children[:, 0] == parent, 1].tolist()
        if len(own) < 2:
            continue
        fires = other[:, own]
        together = np.asarray(fires.sum(1)).ravel()
        where = one[:, parent].indices
        counts = np.asarray(fires.sum(0)).ravel()
        shared = np.asarray(fires.T @ (together > 1).astype(np.int64)).ravel()
        found.append(
            Split(
                parent=parent,
                children=tuple(own),
                covered=float((together[where] > 0).mean()),
                overlap=float((shared / counts).mean()),
            )
        )
    return tuple(sorted(found, key=lambda split: (-len(split.children), split.parent)))
