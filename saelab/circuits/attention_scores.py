"""Why does a head look where it looks? Its score, taken apart into pairs of terms.

    score[t, s] = scaling * q_t . k_s  =  sum over pairs (i, j) of scaling * q_i . k_j

q_i is what term i (a latent, token, error, bias ...) adds to the query at t, k_j what term j adds
to the key at s; rotary positions are in both, since a rotation is linear. The score is the one
before any soft cap and softmax. Softmax ignores what all keys share, so compare scores between
keys before reading one as a reason to attend.

Source: He et al. 2024 (arXiv 2402.12201) on attributing attention scores to pairs.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.circuits.frozen import ReadOuts
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.terms import Term
from saelab.errors import ConfigError

__all__ = ["AttentionScore", "attention_score"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class AttentionScore:
    """One head's score of one key for one query, in terms."""

    value: float
    """The score."""
    scaling: float
    """What a query times a key is multiplied by."""
    terms: tuple[Term, ...]
    """What queries and keys are made of."""
    query: Float[Tensor, "term d_head"]
    """What each term adds to the query."""
    key: Float[Tensor, "term d_head"]
    """What each term adds to the key."""

    def pairs(self) -> Float[Tensor, "term term"]:
        """What each query term (row) and key term (column) add together; sums to the score."""
        return self.scaling * self.query @ self.key.T

    def top_pairs(self, n: int = 10) -> list[tuple[Term, Term, float]]:
        """The largest pairs, by size: query term, key term, what they add."""
        pairs = self.pairs()
        order = pairs.abs().flatten().topk(min(n, pairs.numel())).indices.tolist()
        width = len(self.terms)
        return [
            (self.terms[at // width], self.terms[at % width], float(pairs[at // width, at % width]))
            for at in order
        ]

    def by_query(self) -> Float[Tensor, " term"]:
        """What each term adds through the query, against the whole key."""
        return self.scaling * self.query @ self.key.sum(0)

    def by_key(self) -> Float[Tensor, " term"]:
        """What each term adds through the key, against the whole query."""
        return self.scaling * self.key @ self.query.sum(0)


def attention_score(
    replacement: LocalReplacement, layer: int, head: int, query: int, key: int
) -> AttentionScore:
    """Take one score apart.

    Args:
        replacement: The prompt.
        layer: Which block.
        head: Which query head of it.
        query: Position that looks.
        key: Position that is looked at; not after `query`.

    Raises:
        ConfigError: There is no such head or position.
    """
    map_, n_pos = replacement.map, len(replacement.tokens)
    pattern = map_.held.patterns.get(layer)
    n_heads = 0 if pattern is None else pattern.shape[1]
    if not (0 <= head < n_heads and 0 <= key <= query < n_pos):
        raise ConfigError(
            f"No score of layer {layer}, head {head}, query {query}, key {key}: there are "
            f"{len(map_.held.patterns)} layers of {n_heads} heads, and {n_pos} positions; a key is "
            "at the query or before it."
        )
    scaling = map_.held.scaling[layer]
    queries, keys = map_.reads[f"blocks.{layer}.attn.q"], map_.reads[f"blocks.{layer}.attn.k"]
    d_head = queries.shape[1] // n_heads
    key_head = head * (keys.shape[1] // d_head) // n_heads
    q = _parts(replacement, f"blocks.{layer}.attn.q", query, head, d_head)
    k = _parts(replacement, f"blocks.{layer}.attn.k", key, key_head, d_head)
    whole = queries[query].unflatten(0, (-1, d_head))[head]
    value = scaling * float(whole @ keys[key].unflatten(0, (-1, d_head))[key_head])
    return AttentionScore(value, scaling, replacement.terms(), q, k)


def _parts(
    replacement: LocalReplacement, hook: str, position: int, head: int, d_head: int
) -> Float[Tensor, "term d_head"]:
    x = replacement.map.reads[hook]
    directions = torch.zeros(d_head, x.shape[1], dtype=x.dtype, device=x.device)
    directions[:, head * d_head : (head + 1) * d_head] = torch.eye(d_head).to(x)
    at = torch.full((d_head,), position, device=x.device)
    return replacement.decompose([ReadOuts(hook, at, directions, x.new_zeros(d_head))]).table().T
