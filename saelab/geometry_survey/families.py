"""Which latents split, and what nests? Families across widths, or across a dictionary's prefixes.

Two widths of one hook point give parents with their children (saelab.geometry.splitting); the
prefixes of a Matryoshka dictionary give a tree (saelab.geometry.trees). Each with the same count
where the parents' codes are moved by half of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.geometry.splitting import splitting
from saelab.geometry.trees import LatentTree
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes

__all__ = ["SplitFamily", "TreeFamily", "split_family"]

N_SPLITS = 200
"""Splits that are kept: those with most children."""


@final
@dataclass(frozen=True, kw_only=True)
class SplitFamily:
    """How the latents of one dictionary split in a wider one."""

    wider: str
    """Folder of the wider run, relative to the run."""
    n_wider: int
    """Its latents."""
    n_edges: int
    """Parent-child edges."""
    n_edges_null: int
    """The same with the narrow codes moved by half of the text."""
    n_absorbed: int
    """Pairs of one direction that do not fire together."""
    n_absorbed_null: int
    """The same in the null."""
    n_orphans: int
    """Latents of the wider dictionary that fire and have no parent."""
    n_splits: int
    """Latents with two children or more."""
    sizes: tuple[int, ...]
    """Latents with 1, 2, 3, ... children."""
    splits: tuple[tuple[int, float, float, tuple[tuple[int, float, float], ...]], ...]
    """(parent, covered, overlap, ((child, cosine, P(parent | child)), ...)), most children first:
    covered is P(some child | parent), overlap the mean P(another child | a child)."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SplitFamily":
        """From what `to_json` gave."""
        splits = tuple(
            (int(parent), float(covered), float(overlap),
             tuple((int(child), float(cosine), float(given)) for child, cosine, given in children))
            for parent, covered, overlap, children in value["splits"]
        )  # fmt: skip
        sizes = tuple(map(int, value["sizes"]))
        return cls(**{**value, "splits": splits, "sizes": sizes})


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TreeFamily:
    """The tree of a Matryoshka dictionary's prefixes."""

    prefixes: tuple[int, ...]
    """Where each prefix ends."""
    candidates: int
    """Latents above the first prefix that fire."""
    orphan_rate: float
    """Share of them without a parent."""
    orphan_rate_null: float
    """The same with the parents' codes moved by half of the text."""
    parent: Int[Tensor, " latent"]
    """-1 without one."""
    score: Float[Tensor, " latent"]
    """P(parent | child) times cosine."""

    @classmethod
    def of(cls, tree: LatentTree, prefixes: Sequence[int]) -> "TreeFamily":
        """What is kept of a tree."""
        return cls(
            prefixes=tuple(prefixes),
            candidates=tree.candidates,
            orphan_rate=tree.orphan_rate,
            orphan_rate_null=tree.orphan_rate_null,
            parent=tree.parent,
            score=tree.score,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without what is of each latent."""
        return {
            "prefixes": list(self.prefixes),
            "candidates": self.candidates,
            "orphan_rate": self.orphan_rate,
            "orphan_rate_null": self.orphan_rate_null,
        }

    def children(self) -> dict[int, list[int]]:
        """Parent -> its children, ascending."""
        found: dict[int, list[int]] = {}
        for child in (self.parent >= 0).nonzero().squeeze(1).tolist():
            found.setdefault(int(self.parent[child]), []).append(child)
        return found

    def family(self, root: int) -> list[tuple[int, int]]:
        """The edges (parent, child) under a latent, level by level."""
        below, edges, waiting = self.children(), [], [root]
        while waiting:
            parent = waiting.pop(0)
            for child in below.get(parent, []):
                edges.append((parent, child))
                waiting.append(child)
        return edges

    def roots(self, n: int) -> list[tuple[int, int]]:
        """Latents without a parent that have most latents under them: (latent, how many)."""
        size = torch.zeros(len(self.parent), dtype=torch.int64)
        for child in range(len(self.parent) - 1, -1, -1):  # parents come before their children
            if int(self.parent[child]) >= 0:
                size[int(self.parent[child])] += 1 + size[child]
        size[self.parent >= 0] = 0
        order = size.argsort(descending=True, stable=True)[:n].tolist()
        return [(latent, int(size[latent])) for latent in order if int(size[latent]) > 0]


def split_family(
    name: str,
    directions: Float[Tensor, "latent d"],
    codes: SparseCodes,
    wider: SAE,
    x: Float[Tensor, "token d_in"],
) -> SplitFamily:
    """How the latents of a dictionary split in a wider one of the same hook point.

    Args:
        name: Of the wider run.
        directions: The narrow dictionary's.
        codes: Of the narrow one, of some tokens.
        wider: The wider one.
        x: Activations of those tokens.

    Raises:
        DataError: The other dictionary is not wider, or reads something else.
    """
    if wider.d_in != x.shape[1] or wider.d_sae <= len(directions):
        raise DataError(
            f"{name} has {wider.d_sae:,} latents of width {wider.d_in}; a family needs more than "
            f"{len(directions):,}, of width {x.shape[1]}. Name the narrower run first."
        )
    wide_codes = SparseCodes.cat([wider.encode(part) for part in x.split(4096)])
    graph = splitting(
        directions,
        wider.W_dec.detach().cpu(),
        codes,
        wide_codes,
        signed=bool(wider.activation.signed),
    )
    edges = {
        (int(parent), int(child)): (float(cosine), float(given))
        for (parent, child), cosine, given in zip(
            graph.children.tolist(), graph.cosine.tolist(), graph.given.tolist(), strict=True
        )
    }
    numbers = torch.bincount(graph.children[:, 0]) if len(edges) else torch.zeros(1).long()
    sizes = torch.bincount(numbers)[1:].tolist()
    return SplitFamily(
        wider=name,
        n_wider=wider.d_sae,
        n_edges=len(edges),
        n_edges_null=graph.n_null,
        n_absorbed=len(graph.absorbed),
        n_absorbed_null=graph.absorbed_null,
        n_orphans=graph.orphans,
        n_splits=len(graph.splits),
        sizes=tuple(sizes),
        splits=tuple(
            (one.parent, one.covered, one.overlap,
             tuple((child, *edges[one.parent, child]) for child in one.children))
            for one in graph.splits[:N_SPLITS]
        ),
    )  # fmt: skip
