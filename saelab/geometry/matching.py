"""Which directions of two dictionaries are the same? Neighbors, MMCS, one-to-one matching.

    MMCS(A to B)  mean over i of the largest cos(a_i, b_j): many a may share one b
    MCC           mean cosine of a one-to-one matching: a duplicate finds no second partner

Where a dictionary is signed, |cosine| is meant. Both have a floor: among F random directions in d
dimensions the nearest has a cosine of about sqrt(2 ln F / d), 0.18 for F = 9,216 and d = 576. The
null is the other dictionary with its coordinates shuffled and given random signs, which keeps what
its cloud looks like and removes what the two share.

Directions can be compared where both are of one width and one place of one model. Across layers and
models use `saelab.geometry.correlations` of latents over the same tokens, and `match_by`.

Sources: Sharkey et al. 2022 for MMCS; Kuhn 1955 for the assignment.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry.nulls import AgainstNull, checked_directions, shuffled_coordinates

__all__ = ["MMCS", "Matching", "match", "match_by", "mmcs", "neighbors"]

HUNGARIAN_CELLS = 2**24
"""Largest table the exact assignment is made of by default; beyond it the matching is greedy."""
_CHUNK = 1024
_CANDIDATES = 8


def neighbors(
    a: Float[Tensor, "latent d"],
    b: Float[Tensor, "other d_other"] | None = None,
    n: int = 1,
    *,
    signed: bool = False,
) -> tuple[Int[Tensor, "latent {n}"], Float[Tensor, "latent {n}"]]:
    """The nearest directions of `b`, or the nearest others of `a`.

    Args:
        a: Directions, of any length.
        b: Directions to search; `a` itself by default, without the direction's own row.
        n: How many.
        signed: Take the largest |cosine|.

    Returns:
        Their rows, and the cosines with their sign; the nearest first.

    >>> neighbors(torch.eye(2), torch.tensor([[0.0, -2.0], [3.0, 0.1]]), signed=True)[0].tolist()
    [[1], [0]]
    """
    unit = checked_directions(a, 1)
    table = unit if b is None else checked_directions(b, 1)
    _same_width(unit, table)
    if not 1 <= n <= len(table) - (b is None):
        raise ConfigError(f"n={n} neighbors of {len(table)} directions.")
    found = []
    for start in range(0, len(unit), _CHUNK):
        cosines = unit[start : start + _CHUNK] @ table.T
        score = cosines.abs() if signed else cosines.clone()
        if b is None:
            score.diagonal(start).fill_(-torch.inf)
        rows = score.topk(n, dim=1).indices
        found.append((rows, cosines.gather(1, rows)))
    return torch.cat([rows for rows, _ in found]), torch.cat([cosine for _, cosine in found])


@final
@dataclass(frozen=True, kw_only=True)
class MMCS:
    """Mean max cosine similarity, both ways."""

    forward: AgainstNull
    """Of a to b; null: coordinates of b shuffled, with random signs."""
    backward: AgainstNull
    """Of b to a."""
    expected: float
    """sqrt(2 ln F / d): about what random directions give, for the larger F."""

    def __str__(self) -> str:
        """Two lines."""
        return f"MMCS a to b {self.forward}\n     b to a {self.backward}"


def mmcs(
    a: Float[Tensor, "latent d"],
    b: Float[Tensor, "other d_other"],
    *,
    signed: bool = False,
    n_null: int = 3,
    seed: int = 0,
) -> MMCS:
    """Mean max cosine similarity of two dictionaries; leave dead latents out beforehand."""
    a, b = checked_directions(a, 1), checked_directions(b, 1)
    generator = torch.Generator().manual_seed(seed)

    def both(other: Tensor) -> tuple[float, float]:
        there = neighbors(a, other, signed=signed)[1]
        back = neighbors(other, a, signed=signed)[1]
        values = (there.abs(), back.abs()) if signed else (there, back)
        return float(values[0].mean()), float(values[1].mean())

    own = both(b)
    nulls = [both(shuffled_coordinates(b, generator)) for _ in range(n_null)]
    name = "coordinates shuffled"
    return MMCS(
        forward=AgainstNull(value=own[0], draws=tuple(x for x, _ in nulls), null=name),
        backward=AgainstNull(value=own[1], draws=tuple(x for _, x in nulls), null=name),
        expected=min(1.0, math.sqrt(2 * math.log(max(len(a), len(b), 2)) / a.shape[1])),
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Partners, one to one."""

    partner: Int[Tensor, " latent"]
    """Row of the other dictionary; -1 for latents left over because it is smaller."""
    similarity: Float[Tensor, " latent"]
    """Cosine or correlation with the partner, with its sign; 0 for latents left over."""
    mcc: AgainstNull
    """Mean similarity (its size where signed) of the matched; null as the measure has it."""
    method: str
    """"hungarian" (exact) or "greedy"."""
    signed: bool
    """Whether |similarity| was maximised."""

    def share(self, bar: float = 0.7) -> float:
        """Share of the matched that are at least `bar` alike."""
        matched = self.similarity[self.partner >= 0]
        return float(((matched.abs() if self.signed else matched) >= bar).float().mean())

    def to_json(self) -> dict[str, Any]:
        """A JSON object without the partners."""
        return {
            "n_matched": int((self.partner >= 0).sum()),
            "mcc": self.mcc.to_json(),
            "share_0.7": self.share(),
            "method": self.method,
            "signed": self.signed,
        }

    def __str__(self) -> str:
        """One line."""
        matched = int((self.partner >= 0).sum())
        return (
            f"{matched:,} matched one to one ({self.method}), mean similarity {self.mcc}; "
            f"{self.share():.1%} at 0.7 or more"
        )


def match(
    a: Float[Tensor, "latent d"],
    b: Float[Tensor, "other d_other"],
    *,
    signed: bool = False,
    method: Literal["auto", "hungarian", "greedy"] = "auto",
    n_null: int = 1,
    seed: int = 0,
) -> Matching:
    """Match the directions of two dictionaries one to one.

    Args:
        a: Directions of a seed, width or family.
        b: Directions of another.
        signed: Whether either dictionary is signed, so that -b_j is as good as b_j.
        method: "hungarian" maximises the sum and takes F^2 memory and up to F^3 time; "greedy"
            takes the best pair that is left again and again, among eight neighbors of each at a
            time.
        n_null: Matchings with shuffled coordinates.
        seed: Of those.

    Raises:
        ConfigError: No such method.
        ShapeError: The directions have different widths.

    >>> match(torch.eye(3), -2 * torch.eye(3)[[2, 0, 1]], signed=True).partner.tolist()
    [1, 2, 0]
    """
    a, b = checked_directions(a, 1).cpu(), checked_directions(b, 1).cpu()
    _same_width(a, b)
    chosen = _chosen(method, len(a) * len(b))
    generator = torch.Generator().manual_seed(seed)

    def matched(other: Tensor) -> tuple[Tensor, Tensor]:
        if chosen == "hungarian":
            return _hungarian(a @ other.T, signed)
        return _greedy(a, other, signed)

    partner, similarity = matched(b)
    draws = [_mean(*matched(shuffled_coordinates(b, generator)), signed) for _ in range(n_null)]
    mcc = AgainstNull(
        value=_mean(partner, similarity, signed), draws=tuple(draws), null="coordinates shuffled"
    )
    return Matching(partner=partner, similarity=similarity, mcc=mcc, method=method, signed=signed)


def match_by(
    similarity: Float[Tensor, "latent other"],
    null: Float[Tensor, "latent other"],
    *,
    signed: bool = False,
    null_name: str = "tokens shifted",
) -> Matching:
    """Match by any table of similarities, such as `correlations`, one to one and exactly.

    Args:
        similarity: Finite numbers, larger for more alike.
        null: The same under a null, such as `correlations(a, b, shift=n // 2)`.
        signed: Maximise the size.
        null_name: What the null is.
    """
    if not bool(torch.isfinite(similarity).all()):
        raise DataError("A similarity is NaN or infinite.")
    partner, found = _hungarian(similarity, signed)
    draws = (_mean(*_hungarian(null, signed), signed),)
    mcc = AgainstNull(value=_mean(partner, found, signed), draws=draws, null=null_name)
    return Matching(partner=partner, similarity=found, mcc=mcc, method="hungarian", signed=signed)


def _chosen(method: str, cells: int) -> str:
    if method not in ("auto", "hungarian", "greedy"):
        raise ConfigError(f"method={method!r} is not auto, hungarian or greedy.")
    if method != "auto":
        return method
    return "hungarian" if cells <= HUNGARIAN_CELLS else "greedy"


def _hungarian(table: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    from scipy.optimize import linear_sum_assignment

    score = table.abs() if signed else table
    rows, columns = linear_sum_assignment(score.numpy(), maximize=True)
    partner = torch.full((len(table),), -1)
    similarity = table.new_zeros(len(table))
    rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    partner[rows] = columns
    similarity[rows] = table[rows, columns]
    return partner, similarity


def _greedy(a: Tensor, b: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    partner, similarity = torch.full((len(a),), -1), a.new_zeros(len(a))
    left, right = torch.arange(len(a)), torch.arange(len(b))
    while len(left) and len(right):
        # Each round settles the best pair that is left, so the rounds end; a direction whose
        # candidates are all taken waits for the next.
        near, cosine = neighbors(a[left], b[right], min(_CANDIDATES, len(right)), signed=signed)
        score = cosine.abs() if signed else cosine
        places = score.flatten().argsort(descending=True, stable=True).tolist()
        columns, found, width = near.flatten().tolist(), cosine.flatten().tolist(), near.shape[1]
        free_left, free_right = [True] * len(left), [True] * len(right)
        for place in places:
            i, j = place // width, columns[place]
            if free_left[i] and free_right[j]:
                free_left[i] = free_right[j] = False
                partner[left[i]] = right[j]
                similarity[left[i]] = found[place]
        left, right = left[torch.tensor(free_left)], right[torch.tensor(free_right)]
    return partner, similarity


def _mean(partner: Tensor, similarity: Tensor, signed: bool) -> float:
    matched = similarity[partner >= 0]
    return float((matched.abs() if signed else matched).mean())


def _same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"Directions of widths {a.shape[1]} and {b.shape[1]} have no cosine. Compare latents "
            "by their correlations over the same tokens."
        )
