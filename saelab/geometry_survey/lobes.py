"""What is each lobe about, and do its latents lie together? Names, and company beside chance.

A lobe is a cluster of latents that fire in the same chunks of text. Of each:

    characteristic  latents that go with the rest of the lobe most: mean affinity to its latents,
                    less mean affinity to all others
    company         share of its latents' nearest directions that are of the lobe too; null: lobes
                    shuffled among the latents
    tokens          tokens on which the lobe's latents fire more than latents do in general; the
                    lift is share of the lobe's firing over share of all firing; ranked by
                    log(1 + count) * log(lift), so that words come before commas
    documents       the same of documents, beside lobes shuffled
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.geometry.affinities import AffinityKind, ChunkCounts, affinity
from saelab.geometry.lobes import LobeTest
from saelab.geometry.matching import neighbors
from saelab.geometry.nulls import AgainstNull

__all__ = ["Lobe", "LobeLevel", "Places", "level_of"]

N_CHARACTERISTIC, N_TOKENS, N_DOCUMENTS = 12, 10, 3
LEAST = 20
"""Firings that a token or document must have in a lobe to be named."""


@final
@dataclass(frozen=True, kw_only=True)
class Lobe:
    """One lobe."""

    size: int
    """Latents."""
    characteristic: tuple[int, ...]
    """Its most characteristic latents, the first one first."""
    company: AgainstNull
    """Share of its latents' nearest directions that are of the lobe; null: lobes shuffled."""
    tokens: tuple[tuple[int, float], ...]
    """Ids of the tokens that mark it, with their lift."""
    documents: tuple[tuple[str, AgainstNull], ...]
    """Documents that mark it, with their lift; null: lobes shuffled."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        documents = [[name, lift.to_json()] for name, lift in self.documents]
        return {**asdict(self), "company": self.company.to_json(), "documents": documents}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Lobe":
        """From what `to_json` gave."""
        return cls(
            size=int(value["size"]),
            characteristic=tuple(map(int, value["characteristic"])),
            company=AgainstNull.from_json(value["company"]),
            tokens=tuple((int(token), float(lift)) for token, lift in value["tokens"]),
            documents=tuple(
                (str(name), AgainstNull.from_json(lift)) for name, lift in value["documents"]
            ),
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LobeLevel:
    """All lobes at one number of them."""

    lobes: tuple[Lobe, ...]
    """The largest first."""
    company: AgainstNull
    """Share of nearest directions of one's own lobe, over all latents; null: lobes shuffled."""
    ami: AgainstNull
    """Adjusted mutual information of lobes and clusters by angle; null: labels shuffled."""
    ami_random: AgainstNull
    """The same; null: random directions."""
    accuracy: AgainstNull | None
    """Balanced accuracy of a lobe from a direction; None with a lobe of fewer than five."""
    latents: Int[Tensor, " latent"]
    """Which latents were clustered."""
    of: Int[Tensor, " latent"]
    """Their lobe."""
    regions: Int[Tensor, " latent"]
    """Their cluster by angle."""

    def of_dictionary(self, latents: Int[Tensor, " some"]) -> "LobeLevel":
        """The same with the dictionary's numbers, where rows of some of its latents stood."""
        lobes = tuple(
            replace(one, characteristic=tuple(int(latents[row]) for row in one.characteristic))
            for one in self.lobes
        )
        return replace(self, lobes=lobes, latents=latents[self.latents])

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without what is of each latent."""
        return {
            "lobes": [lobe.to_json() for lobe in self.lobes],
            "company": self.company.to_json(),
            "ami": self.ami.to_json(),
            "ami_random": self.ami_random.to_json(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
        }

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], latents: Tensor, of: Tensor, regions: Tensor
    ) -> "LobeLevel":
        """From what `to_json` gave, and what is of each latent."""
        accuracy = value["accuracy"]
        return cls(
            lobes=tuple(Lobe.from_json(one) for one in value["lobes"]),
            company=AgainstNull.from_json(value["company"]),
            ami=AgainstNull.from_json(value["ami"]),
            ami_random=AgainstNull.from_json(value["ami_random"]),
            accuracy=None if accuracy is None else AgainstNull.from_json(accuracy),
            latents=latents,
            of=of,
            regions=regions,
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Where latents fire: on which tokens, in which documents."""

    tokens: Any
    """scipy csr_matrix [token id, latent]: how often it fires on this id."""
    documents: Any
    """scipy csr_matrix [document, latent]: how often it fires in it."""
    names: tuple[str, ...]
    """Of the documents; empty where they are not known."""


def level_of(
    test: LobeTest,
    counts: ChunkCounts,
    directions: Float[Tensor, "all d"],
    places: Places,
    *,
    kind: AffinityKind,
    near: int,
    signed: bool,
    shuffles: int,
    seed: int,
) -> LobeLevel:
    """Name the lobes of a test and measure their company.

    Args:
        test: Lobes of some latents of the dictionary.
        counts: In which chunks each of those latents occurs, in the test's order.
        directions: Of the whole dictionary.
        places: Of the whole dictionary.
        kind: Affinity of co-occurrence.
        near: Nearest directions asked.
        signed: Nearness is |cosine|.
        shuffles: Draws of the nulls.
        seed: Of those.
    """
    unit = directions[test.latents]
    close, _ = neighbors(unit, n=min(near, len(unit) - 1), signed=signed)
    generator = torch.Generator().manual_seed(seed)
    lobes = test.lobes
    orders = [torch.randperm(len(lobes), generator=generator) for _ in range(shuffles)]
    n = int(lobes.max()) + 1
    own = _company(close, lobes, n)
    nulls = torch.stack([_company(close, lobes[order], n) for order in orders])
    typical = characteristic(counts, lobes, kind)
    tokens = _marks(places.tokens[:, test.latents.numpy()], lobes)
    documents = _documents(places, test.latents, lobes, orders)
    found = [
        Lobe(
            size=int((lobes == lobe).sum()),
            characteristic=tuple(test.latents[typical[lobe]].tolist()),
            company=_beside(float(own[lobe]), nulls[:, lobe].tolist()),
            tokens=tuple(tokens[lobe]),
            documents=documents[lobe],
        )
        for lobe in range(n)
    ]
    return LobeLevel(
        lobes=tuple(found),
        company=_beside(float(own[n]), nulls[:, n].tolist()),
        ami=test.ami,
        ami_random=test.ami_random,
        accuracy=test.accuracy,
        latents=test.latents,
        of=lobes,
        regions=test.regions,
    )


def characteristic(
    counts: ChunkCounts, lobes: Int[Tensor, " latent"], kind: AffinityKind
) -> list[list[int]]:
    """Rows of the most characteristic latents of each lobe, the first one first."""
    labels = lobes.numpy()
    member = np.eye(int(labels.max()) + 1)[labels]
    sizes, n = member.sum(0), len(labels)
    sums = affinity(counts, kind).times(member)
    inside = sums / np.maximum(sizes - member, 1)
    outside = (sums.sum(1, keepdims=True) - sums) / np.maximum(n - sizes, 1)
    score = np.where(member > 0, inside - outside, -np.inf)
    order = np.argsort(-score, axis=0, kind="stable")
    return [
        order[: min(N_CHARACTERISTIC, int(sizes[lobe])), lobe].tolist()
        for lobe in range(member.shape[1])
    ]


def _company(close: Tensor, lobes: Tensor, n: int) -> Float[Tensor, " lobe_and_all"]:
    """Share of nearest directions of the same lobe, for each lobe, and last for all latents."""
    same = (lobes[close] == lobes[:, None]).double().mean(1)
    sums = torch.zeros(n, dtype=torch.float64).index_add_(0, lobes, same)
    return torch.cat([sums / torch.bincount(lobes, minlength=n), same.mean()[None]])


def _lifts(table: Any, firing: np.ndarray, lobes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lift and count of each row of a table in each lobe; `firing` is of each latent in all."""
    member = np.eye(int(lobes.max()) + 1)[lobes]
    inside, in_all = np.asarray(table @ member), firing @ member
    expected = inside.sum(1, keepdims=True) * in_all / max(1.0, float(in_all.sum()))
    return inside / np.maximum(expected, 1e-12), inside


def _marks(table: Any, lobes: Tensor) -> list[list[tuple[int, float]]]:
    """For each lobe the rows that mark it, best first, with their lift."""
    lift, count = _lifts(table, np.asarray(table.sum(0)).ravel(), lobes.numpy())
    score = np.log1p(count) * np.log(np.maximum(lift, 1)) * (count >= LEAST)
    found = []
    for lobe in range(score.shape[1]):
        order = np.argsort(-score[:, lobe], kind="stable")[:N_TOKENS]
        found.append([(int(row), float(lift[row, lobe])) for row in order if score[row, lobe] > 0])
    return found


def _documents(
    places: Places, latents: Tensor, lobes: Tensor, orders: list[Tensor]
) -> list[tuple[tuple[str, AgainstNull], ...]]:
    """For each lobe the documents that mark it, beside lobes shuffled."""
    if len(places.names) < 2:
        return [()] * (int(lobes.max()) + 1)
    table = places.documents[:, latents.numpy()]
    marks = [rows[:N_DOCUMENTS] for rows in _marks(table, lobes)]
    rows = sorted({row for some in marks for row, _ in some})
    firing, some = np.asarray(table.sum(0)).ravel(), table[rows]
    draws = np.stack([_lifts(some, firing, lobes.numpy()[order.numpy()])[0] for order in orders])
    at = {row: place for place, row in enumerate(rows)}
    return [
        tuple(
            (places.names[row], _beside(lift, draws[:, at[row], lobe].tolist()))
            for row, lift in some_marks
        )
        for lobe, some_marks in enumerate(marks)
    ]


def _beside(value: float, draws: list[float]) -> AgainstNull:
    return AgainstNull(value=value, draws=tuple(draws), null="lobes shuffled")
