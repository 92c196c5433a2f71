"""Whose codes appear only where the task can be done? Scores of heads and of pairs, with a null.

    U_h = codes of head h on positives and on no negative
    frequency    share of positives whose code is in U_h
    unique       |U_h| / |codes on positives or negatives|

An edge is scored the same way by pairs of codes of two heads, the first in an earlier layer. A
head with noisy output has many codes of its own on either side, so raw scores reward noise: the
null puts labels on the examples at random many times, and a head is found where its score is beyond
that.

Source: O'Neill and Bui 2024 (arXiv 2405.12522); the permutation null is ours.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.code_circuits.codes import NO_CODE
from saelab.errors import ConfigError, DataError

__all__ = ["CodeCircuit", "HeadPair", "ScoreConfig", "code_circuit"]


TIED = 1e-6
"""Scores closer than this are equal: sums of fractions differ by rounding."""


class HeadPair(NamedTuple):
    """Two heads, as (layer, head)."""

    source: tuple[int, int]
    """The earlier."""
    target: tuple[int, int]
    """The later."""


@final
@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How codes are scored."""

    score: Literal["frequency", "unique"] = "unique"
    """Share of codes, or of positives."""
    n_permutations: int = 200
    """Random labelings of the null."""
    seed: int = 0
    """Of them."""

    def __post_init__(self) -> None:
        if self.n_permutations < 1:
            raise ConfigError(f"ScoreConfig(n_permutations={self.n_permutations}): at least 1.")


@final
@dataclass(frozen=True, slots=True, eq=False)
class CodeCircuit:
    """Scores of heads and of pairs of heads, and what random labels give."""

    heads: Float[Tensor, "layer head"]
    """Score of each head, 0 to 1."""
    heads_null: Float[Tensor, "layer head"]
    """Its mean over random labels."""
    heads_p: Float[Tensor, "layer head"]
    """Share of labelings, the real one included, whose score is at least as large."""
    pairs: Float[Tensor, "layer head layer_2 head_2"]
    """Score of each pair, 0 to 1; NaN unless the first head is in an earlier layer."""
    pairs_null: Float[Tensor, "layer head layer_2 head_2"]
    """Its mean over random labels."""
    pairs_p: Float[Tensor, "layer head layer_2 head_2"]
    """As for heads; NaN where there is no pair."""

    def head_excess(self) -> Float[Tensor, "layer head"]:
        """Score less the mean of its null: what is left of it once noise is taken off."""
        return self.heads - self.heads_null

    def pair_excess(self) -> Float[Tensor, "layer head layer_2 head_2"]:
        """The same for pairs."""
        return self.pairs - self.pairs_null

    def found_heads(self, alpha: float = 0.05) -> list[tuple[int, int]]:
        """Heads whose p-value is at most alpha, the largest excess first."""
        excess = self.head_excess()
        kept = [(layer, head) for layer, head in (self.heads_p <= alpha).nonzero().tolist()]
        return sorted(kept, key=lambda one: -float(excess[one]))

    def found_pairs(self, alpha: float = 0.05) -> list[HeadPair]:
        """Pairs of found heads whose p-value is at most alpha, the largest excess first."""
        heads, excess = set(self.found_heads(alpha)), self.pair_excess()
        kept = [
            HeadPair((a, b), (c, d))
            for a, b, c, d in (self.pairs_p <= alpha).nonzero().tolist()
            if (a, b) in heads and (c, d) in heads
        ]
        return sorted(kept, key=lambda one: -float(excess[(*one.source, *one.target)]))


def code_circuit(
    codes: Int[Tensor, "example layer head"],
    positive: Bool[Tensor, " example"],
    config: ScoreConfig | None = None,
) -> CodeCircuit:
    """Score heads and pairs of heads.

    The smallest p-value there can be is 1 / (1 + n_permutations), and with few examples labelings
    repeat: 5 of 10 can be chosen in 252 ways.

    Args:
        codes: Of `head_codes`.
        positive: On which examples the task can be done.
        config: How.

    Raises:
        DataError: There are fewer than two examples of a kind.
    """
    config = config or ScoreConfig()
    n_positive = int(positive.sum())
    if len(positive) != len(codes) or min(n_positive, len(codes) - n_positive) < 2:
        raise DataError(
            f"{len(codes)} examples with {n_positive} positives of {len(positive)} labels; give "
            "two positives and two negatives at least."
        )
    shape = codes.shape[1:]
    flat = codes.flatten(1)
    # A head without a code is equal to nothing, itself included.
    same = ((flat[:, None] == flat[None]) & (flat != NO_CODE)[:, None]).float()
    generator = torch.Generator().manual_seed(config.seed)
    heads, pairs = _both_scores(same, positive, config.score)
    null_heads, null_pairs = torch.zeros_like(heads), torch.zeros_like(pairs)
    beyond_heads, beyond_pairs = torch.ones_like(heads), torch.ones_like(pairs)
    for _ in range(config.n_permutations):
        labels = positive[torch.randperm(len(positive), generator=generator)]
        random_heads, random_pairs = _both_scores(same, labels, config.score)
        null_heads += random_heads / config.n_permutations
        null_pairs += random_pairs / config.n_permutations
        beyond_heads += random_heads >= heads - TIED
        beyond_pairs += random_pairs >= pairs - TIED
    n = config.n_permutations + 1
    layers = torch.arange(shape[0]).repeat_interleave(shape[1])
    none = ~(layers[:, None] < layers[None])

    def of_pairs(x: Tensor) -> Tensor:
        return x.masked_fill(none, torch.nan).unflatten(1, shape).unflatten(0, shape)

    return CodeCircuit(
        *(x.unflatten(0, shape) for x in (heads, null_heads, beyond_heads / n)),
        *(of_pairs(x) for x in (pairs, null_pairs, beyond_pairs / n)),
    )


def _both_scores(
    same: Float[Tensor, "example example head"], positive: Bool[Tensor, " example"], score: str
) -> tuple[Float[Tensor, " head"], Float[Tensor, "head head_2"]]:
    """Heads by examples of equal code, pairs by examples that are equal at both."""
    with_, without = same[:, positive], same[:, ~positive]
    return (
        _score(with_.sum(1), without.sum(1), positive, score),
        _score(with_.mT @ with_, without.mT @ without, positive, score),
    )


def _score(
    positives: Float[Tensor, "example *unit"],
    negatives: Float[Tensor, "example *unit"],
    positive: Bool[Tensor, " example"],
    score: str,
) -> Float[Tensor, "*unit"]:
    """The score, given how many positives and negatives have each example's code."""
    # An example with a code is equal to itself, so on its own side there is at least one.
    alone = (positives[positive] > 0) & (negatives[positive] == 0)
    if score == "frequency":
        return alone.float().mean(0)
    # Each of m equal codes counts 1 / m: sums over examples are numbers of different codes.
    each, each_other = 1 / positives[positive], 1 / negatives[~positive]
    unique = (each * alone).nan_to_num().sum(0)
    on_positives = each.masked_fill(each.isinf(), 0.0).sum(0)
    only_negative = (negatives[~positive] > 0) & (positives[~positive] == 0)
    n_codes = on_positives + (each_other * only_negative).nan_to_num().sum(0)
    return unique / n_codes.clamp_min(1)
