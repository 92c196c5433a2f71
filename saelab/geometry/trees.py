"""Do the nested levels of a Matryoshka dictionary form a tree?

Levels are prefixes of the latents: 0 to m_1, m_1 to m_2, ... A latent's parent is the latent of a
lower level with the largest

    score = P(parent active | child active) * cos(parent, child)

among those that are active with it `lift` times as often as on a token at random; below `bar` it
is an orphan. The lift matters: a latent that is always on would be the parent of everything. The
null moves the codes of the parents by half of the text.

Source: Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders",
for the dictionaries; the score is a convention of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, ShapeError
from saelab.geometry.coactivation import coactive
from saelab.geometry.nulls import checked_directions
from saelab.sparse_codes import SparseCodes

__all__ = ["LatentTree", "latent_tree"]

_CHUNK = 1024


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LatentTree:
    """A parent for each latent above the first level, or none."""

    parent: Int[Tensor, " latent"]
    """-1 for roots, orphans and latents that do not fire."""
    score: Float[Tensor, " latent"]
    """P(parent | child) times cosine; 0 without a parent."""
    level: Int[Tensor, " latent"]
    """Which prefix a latent first belongs to, from 0."""
    depth: Int[Tensor, " latent"]
    """Edges up to the latent without a parent."""
    candidates: int
    """Latents above level 0 that fire: the denominator of the orphan rate."""
    orphan_rate: float
    """Share of them without a parent."""
    orphan_rate_null: float
    """The same with the parents' codes moved by half of the text."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "parent": self.parent.tolist(),
            "score": self.score.tolist(),
            "level": self.level.tolist(),
            "orphan_rate": self.orphan_rate,
            "orphan_rate_null": self.orphan_rate_null,
        }

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.candidates:,} latents above the first level: depth up to "
            f"{int(self.depth.max())}, {self.orphan_rate:.1%} orphans "
            f"(null {self.orphan_rate_null:.1%})"
        )


def latent_tree(
    directions: Float[Tensor, "latent d"],
    codes: SparseCodes,
    prefixes: Sequence[int],
    *,
    bar: float = 0.2,
    lift: float = 2.0,
    signed: bool = False,
) -> LatentTree:
    """Find each latent's parent among the lower levels.

    Args:
        directions: Decoder rows of all latents.
        codes: Codes of some tokens.
        prefixes: Sizes of the nested dictionaries, ascending; the last is all of it.
        bar: Least score of an edge.
        lift: How many times the base rate P(parent | child) must be.
        signed: Take |cosine|.

    Raises:
        ConfigError: The prefixes do not ascend to the number of latents, or a bar is out of range.
    """
    unit = checked_directions(directions).cpu()
    sizes = list(prefixes)
    if len(unit) != codes.d_sae:
        raise ShapeError(f"{len(unit)} directions but codes of {codes.d_sae} latents.")
    if sizes != sorted(set(sizes)) or len(sizes) < 2 or sizes[0] < 1 or sizes[-1] != len(unit):
        raise ConfigError(
            f"prefixes={sizes} must ascend from 1 or more to {len(unit)}, with at least two."
        )
    if not 0 < bar < 1 or lift < 1:
        raise ConfigError(f"bar={bar} must be in (0, 1) and lift={lift} at least 1.")
    level = torch.bucketize(torch.arange(len(unit)), torch.tensor(sizes), right=True)
    fires = codes.firing_counts().cpu()
    below = torch.tensor([0, *sizes])[level]
    parent, score = _parents(unit, codes, below, bar, lift, signed, 0)
    null, _ = _parents(unit, codes, below, bar, lift, signed, max(1, len(codes) // 2))
    asked = (level > 0) & (fires > 0)
    depth = torch.zeros_like(level)
    # Parents come before their children, so one pass in order is enough.
    for child in (parent >= 0).nonzero().squeeze(1).tolist():
        depth[child] = depth[parent[child]] + 1
    n = int(asked.sum())
    return LatentTree(
        parent=parent,
        score=score,
        level=level,
        depth=depth,
        candidates=n,
        orphan_rate=float((parent[asked] < 0).double().mean()) if n else 0.0,
        orphan_rate_null=float((null[asked] < 0).double().mean()) if n else 0.0,
    )


def _parents(
    unit: Tensor,
    codes: SparseCodes,
    below: Tensor,
    bar: float,
    lift: float,
    signed: bool,
    shift: int,
) -> tuple[Tensor, Tensor]:
    both = coactive(codes, codes, shift).T.tocsr()
    fires = codes.firing_counts().double().cpu()
    base = fires / max(1, len(codes))
    parent, best = torch.full((len(unit),), -1), torch.zeros(len(unit))
    for start in range(0, len(unit), _CHUNK):
        stop = min(start + _CHUNK, len(unit))
        given = torch.from_numpy(both[start:stop].toarray().astype(np.float64))
        given /= fires[start:stop, None].clamp_min(1)
        cosines = unit[start:stop] @ unit.T
        score = given.float() * (cosines.abs() if signed else cosines.clamp_min(0))
        allowed = torch.arange(len(unit))[None, :] < below[start:stop, None]
        score[~(allowed & (given >= lift * base))] = 0
        value, index = score.max(1)
        found = value >= bar
        parent[start:stop][found] = index[found]
        best[start:stop][found] = value[found]
    return parent, best
