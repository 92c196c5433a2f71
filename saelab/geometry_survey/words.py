"""Are relations between words directions of the model, and does the dictionary keep them?

The model reads each word by itself and gives its last token's activation at the dictionary's hook
point; a pair's difference is h(b) - h(a). Of each relation the mean cosine of the differences of
two pairs that share no word, once of the activations and once of their reconstructions; null: as
many pairs drawn from all relations.

A picture of the pairs needs axes, and an axis fitted to pairs flatters them. So the horizontal axis
of each pair is the mean difference of the other half of its relation's pairs.

Sources: Mikolov et al. 2013 for the analogies; Li et al. 2024, "The geometry of concepts".
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import DataError
from saelab.geometry.crystals import RelationSeparation, separate_relations
from saelab.geometry.function_vectors import function_vectors
from saelab.geometry.nulls import AgainstNull
from saelab.geometry_survey.word_pairs import word_pairs
from saelab.models import LanguageModel
from saelab.sae import SAE

__all__ = ["Relation", "WordCrystals", "last_activations", "word_crystals"]

LEAST_PAIRS = 4
"""Pairs that a relation needs: two on either side of its division."""


@final
@dataclass(frozen=True, kw_only=True)
class Relation:
    """One relation."""

    name: str
    """What the pairs have in common."""
    pairs: tuple[tuple[str, str], ...]
    """The words."""
    cosine: AgainstNull
    """Mean cosine of two differences of the activations; null: pairs of all relations."""
    cosine_recons: AgainstNull
    """The same of what the dictionary makes of the activations."""
    places: tuple[tuple[float, float, float, float], ...]
    """Of each pair x and y of the first word, x and y of the second, in mean lengths of a
    difference: x along the mean difference of the other half of the pairs, y along the largest
    component of the midpoints that is orthogonal to it."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        nulls = {name: getattr(self, name).to_json() for name in ("cosine", "cosine_recons")}
        return {**asdict(self), **nulls}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Relation":
        """From what `to_json` gave."""
        return cls(
            name=str(value["name"]),
            pairs=tuple((str(a), str(b)) for a, b in value["pairs"]),
            cosine=AgainstNull.from_json(value["cosine"]),
            cosine_recons=AgainstNull.from_json(value["cosine_recons"]),
            places=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in
                         value["places"]),
        )  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True)
class WordCrystals:
    """Pairs of words, all relations together."""

    relations: tuple[Relation, ...]
    """The one with the largest excess of the cosine first."""
    separation: AgainstNull
    """Silhouette by relation of pairs that the discriminant analysis was not fitted to."""
    raw: float
    """The silhouette of the differences as they are."""
    found: AgainstNull
    """Share of pairs whose second word is nearest to the first plus the relation's vector."""
    without: float
    """The same share with no vector added."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "relations": [one.to_json() for one in self.relations],
            "separation": self.separation.to_json(),
            "raw": self.raw,
            "found": self.found.to_json(),
            "without": self.without,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "WordCrystals":
        """From what `to_json` gave."""
        return cls(
            relations=tuple(Relation.from_json(one) for one in value["relations"]),
            separation=AgainstNull.from_json(value["separation"]),
            raw=float(value["raw"]),
            found=AgainstNull.from_json(value["found"]),
            without=float(value["without"]),
        )


def word_crystals(
    model: LanguageModel,
    sae: SAE,
    relations: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    *,
    n_null: int = 100,
    seed: int = 0,
) -> WordCrystals:
    """Measure pairs of words at a dictionary's hook point.

    Args:
        model: The model the dictionary was trained on.
        sae: The dictionary.
        relations: Pairs of words by relation; English ones by default.
        n_null: Draws of the null of the cosines; those of the others are fewer.
        seed: Of them.

    Raises:
        DataError: The model has no tokenizer, or tells apart the words of fewer than two
            relations of four pairs.
    """
    asked = word_pairs() if relations is None else relations
    if sae.hook is None or model.tokenizer is None:
        raise DataError("Pairs of words need a hook point and a model with a tokenizer.")
    words = list(dict.fromkeys(word for pairs in asked.values() for pair in pairs for word in pair))
    x = last_activations(model, sae.hook, words)
    at = {word: row for row, word in enumerate(words)}
    kept = {
        name: [(a, b) for a, b in pairs if not torch.equal(x[at[a]], x[at[b]])]
        for name, pairs in asked.items()
    }
    kept = {name: pairs for name, pairs in kept.items() if len(pairs) >= LEAST_PAIRS}
    if len(kept) < 2:
        raise DataError(
            f"The model tells apart the words of {len(kept)} of {len(asked)} relations; two with "
            f"{LEAST_PAIRS} pairs each are needed. Its tokenizer does not know these words."
        )
    pairs = torch.tensor([[at[a], at[b]] for some in kept.values() for a, b in some])
    of = torch.tensor([i for i, some in enumerate(kept.values()) for _ in some])
    with torch.no_grad():
        recons = sae(x.to(sae.device)).float().cpu()
    own, again = (_cosines(table, pairs, of, n_null, seed) for table in (x, recons))
    found = [
        Relation(
            name=name,
            pairs=tuple(some),
            cosine=own[i],
            cosine_recons=again[i],
            places=_places(x, pairs[of == i]),
        )
        for i, (name, some) in enumerate(kept.items())
    ]
    separation = _separated(x, pairs, of, seed)
    vectors = function_vectors(x[pairs[:, 0]], x[pairs[:, 1]], of, n_null=20, seed=seed)
    return WordCrystals(
        relations=tuple(sorted(found, key=lambda one: -one.cosine.excess)),
        separation=separation.held_out,
        raw=separation.raw,
        found=vectors.accuracy,
        without=vectors.without,
    )


def last_activations(
    model: LanguageModel, hook: str, words: Sequence[str]
) -> Float[Tensor, "word d"]:
    """The last token's activation of each word read by itself, in float32 on the CPU."""
    first = [] if model.bos_token_id is None else [model.bos_token_id]
    rows = [[*first, *model.encode(f" {word}")] for word in words]
    found: dict[int, Tensor] = {}
    for length in sorted({len(row) for row in rows}):
        some = [place for place, row in enumerate(rows) if len(row) == length]
        for start in range(0, len(some), 64):
            part = some[start : start + 64]
            tokens = torch.tensor([rows[place] for place in part])
            x = model.activations(tokens, [hook])[hook][:, -1]
            found |= dict(zip(part, x.float().cpu(), strict=True))
    return torch.stack([found[place] for place in range(len(rows))])


def _cosines(
    x: Tensor, pairs: Int[Tensor, "pair two"], of: Int[Tensor, " pair"], n_null: int, seed: int
) -> list[AgainstNull]:
    """Of each relation the mean cosine of two differences that share no word."""
    differences = (x[pairs[:, 1]] - x[pairs[:, 0]]).double()
    unit = torch.nn.functional.normalize(differences, dim=1)
    cosines = unit @ unit.T
    met = (pairs[:, None, :, None] == pairs[None, :, None, :]).flatten(2).any(2)

    def mean(rows: Tensor) -> float:
        free = ~met[rows][:, rows]
        return float(cosines[rows][:, rows][free].mean()) if bool(free.any()) else 0.0

    generator = torch.Generator().manual_seed(seed)
    found = []
    for relation in range(int(of.max()) + 1):
        rows = (of == relation).nonzero().squeeze(1)
        draws = [
            mean(torch.randperm(len(of), generator=generator)[: len(rows)]) for _ in range(n_null)
        ]
        found.append(
            AgainstNull(value=mean(rows), draws=tuple(draws), null="pairs of all relations")
        )
    return found


def _places(
    x: Tensor, pairs: Int[Tensor, "pair two"]
) -> tuple[tuple[float, float, float, float], ...]:
    a, b = x[pairs[:, 0]].double(), x[pairs[:, 1]].double()
    length = float((b - a).norm(dim=1).mean())
    middle = (a + b).mean(0) / 2
    even = torch.arange(len(pairs)) % 2 == 0
    placed: dict[int, tuple[float, float, float, float]] = {}
    whole = torch.nn.functional.normalize((b - a).mean(0), dim=0)
    midpoints = (a + b) / 2 - middle
    side = torch.linalg.svd(midpoints - torch.outer(midpoints @ whole, whole))[2][0]
    for half in (even, ~even):
        across = torch.nn.functional.normalize((b - a)[~half].mean(0), dim=0)
        up = torch.nn.functional.normalize(side - (side @ across) * across, dim=0)
        for row in half.nonzero().squeeze(1).tolist():
            ends = [(end[row] - middle) / length for end in (a, b)]
            x0, y0, x1, y1 = (float(end @ axis) for end in ends for axis in (across, up))
            placed[row] = (x0, y0, x1, y1)
    return tuple(placed[row] for row in range(len(pairs)))


def _separated(
    x: Tensor, pairs: Int[Tensor, "pair two"], of: Int[Tensor, " pair"], seed: int
) -> RelationSeparation:
    """Pairs that share a word, also by way of a third, are on one side of the division."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ones = torch.ones(len(pairs)).numpy()
    ends = (pairs[:, 0].numpy(), pairs[:, 1].numpy())
    of_word = connected_components(coo_matrix((ones, ends), shape=(len(x), len(x))))[1]
    groups = torch.from_numpy(of_word).long()[pairs[:, 0]]
    differences = x[pairs[:, 1]] - x[pairs[:, 0]]
    return separate_relations(differences, of, groups=groups, n_null=10, seed=seed)
