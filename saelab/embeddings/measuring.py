"""Are texts of one label near each other, and what does it cost to keep and to search them?

The label of a text is that of its nearest neighbor among training texts, by cosine. Dense baselines
keep as many numbers as a sparse code keeps latents:

    truncated     the first k coordinates; right for embeddings trained for it, a floor for others
    pca           the k directions of largest variance; unsupervised, linear, and what an
                  unsupervised Matryoshka map under squared error comes to
    prefix map    a linear map trained with labels so that each prefix of its output tells them:
                  what Matryoshka training does to a frozen embedding; compare it with labeled heads

k latents are k numbers and k places: `bytes_of` counts both, so that k of one and k of the other
are not taken for the same size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.documents.index import InvertedIndex
from saelab.embeddings.contrast import label_contrast
from saelab.embeddings.heads import unit_codes
from saelab.errors import ConfigError, ShapeError
from saelab.sparse_codes import SparseCodes
from saelab.training.optimizers import Adam

__all__ = [
    "Neighbors",
    "bytes_of",
    "dense_neighbors",
    "pca",
    "prefix_map",
    "sparse_neighbors",
    "truncated",
]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """The nearest training text of each query."""

    nearest: Int[Tensor, " query"]
    """Which; -1 where nothing has anything in common with the query."""

    def accuracy(self, known: Int[Tensor, " text"], wanted: Int[Tensor, " query"]) -> float:
        """Share of queries whose neighbor has their label; one without a neighbor is wrong."""
        found = self.nearest >= 0
        right = known[self.nearest[found]] == wanted[found]
        return float(right.sum()) / len(self.nearest)


def sparse_neighbors(texts: SparseCodes, queries: SparseCodes) -> Neighbors:
    """By cosine of codes, through posting lists."""
    hits = InvertedIndex.of(unit_codes(texts)).search(unit_codes(queries), 1)
    return Neighbors(nearest=hits.documents[:, 0])


def dense_neighbors(
    texts: Float[Tensor, "text d"], queries: Float[Tensor, "query d"], at_once: int = 512
) -> Neighbors:
    """By cosine of vectors, all compared; among equals the first."""
    unit = torch.nn.functional.normalize(texts, dim=1)
    found = []
    for part in queries.split(at_once):
        cosines = torch.nn.functional.normalize(part, dim=1) @ unit.T
        found.append(cosines.argmax(1))
    return Neighbors(nearest=torch.cat(found))


def truncated(embeddings: Float[Tensor, "text d"], k: int) -> Float[Tensor, "text k"]:
    """The first k coordinates."""
    _check(k, embeddings)
    return embeddings[:, :k]


def pca(
    embeddings: Float[Tensor, "text d"], others: Float[Tensor, "other d"], k: int
) -> tuple[Float[Tensor, "text k"], Float[Tensor, "other k"]]:
    """Both along the k directions of largest variance of the first, from its mean."""
    _check(k, embeddings)
    mean = embeddings.mean(0)
    centred = (embeddings - mean).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    directions = vectors.flip(1)[:, :k].float()
    return (embeddings - mean) @ directions, (others - mean) @ directions


def prefix_map(
    embeddings: Float[Tensor, "text d"],
    labels: Int[Tensor, " text"],
    lengths: Sequence[int],
    *,
    steps: int = 600,
    batch_size: int = 256,
    lr: float = 1e-3,
    temperature: float = 0.2,
    seed: int = 0,
) -> Float[Tensor, "d longest"]:
    """A linear map of which every prefix of the given lengths tells labels apart.

    minimize the mean over lengths m of label_contrast((e - mean) M[:, :m])

    Args:
        embeddings: Of training texts.
        labels: Of each.
        lengths: Prefixes that are to be used.
        steps: Batches.
        batch_size: Embeddings of a batch.
        lr: Adam's learning rate.
        temperature: Of the contrast.
        seed: Of the batches; the map starts as the leading principal directions.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, applied to frozen embeddings.
    """
    longest = max(lengths)
    _check(longest, embeddings)
    inputs = embeddings - embeddings.mean(0)
    inputs = inputs / inputs.square().sum(1).mean().sqrt()
    _, vectors = torch.linalg.eigh((inputs.T @ inputs).double())
    weights = vectors.flip(1)[:, :longest].float().contiguous().requires_grad_()
    optimizer = Adam({"map": weights.detach()})
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(inputs), generator=generator)[:batch_size]
        out = inputs[rows] @ weights
        losses = [label_contrast(out[:, :m], labels[rows], temperature) for m in lengths]
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), [weights])
        optimizer.step({"map": gradient}, lr)
    return weights.detach()


def bytes_of(k: int, width: int | None = None) -> int:
    """Bytes of one text: k numbers of two bytes, and for a sparse code of `width` latents k places.

    >>> bytes_of(32), bytes_of(32, 1536), bytes_of(32, 100_000)
    (64, 128, 192)
    """
    place = 0 if width is None else 2 if width <= 1 << 16 else 4
    return k * (2 + place)


def _check(k: int, embeddings: Tensor) -> None:
    if embeddings.ndim != 2:
        raise ShapeError(f"Embeddings are [text, d]; found {list(embeddings.shape)}.")
    if not 1 <= k <= embeddings.shape[1]:
        raise ConfigError(f"k={k} of {embeddings.shape[1]} coordinates: use 1 to all of them.")
