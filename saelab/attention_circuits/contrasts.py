"""Why does a head look there and not elsewhere? Two scores of one query, term by term.

Softmax ignores what all keys share, so a score says little by itself. The difference of two keys'
scores does, and it is a sum over pairs of terms too:

    score[t, s] - score[t, s'] = sum over pairs (i, j) of scaling * q_i . (k_j at s - k_j at s')

It is log(A[t, s] / A[t, s']) wherever scores have no soft cap and both keys are seen.

Source: He et al. 2024 (arXiv 2402.12201) on attributing attention scores to pairs.
"""

from collections.abc import Sequence

import torch

from saelab.circuits import AttentionScore, LocalReplacement, attention_score
from saelab.errors import ConfigError

__all__ = ["attention_contrast"]


def attention_contrast(
    replacement: LocalReplacement,
    layer: int,
    head: int,
    query: int,
    key: int,
    others: Sequence[int] | None = None,
) -> AttentionScore:
    """Take apart by how much the score of one key exceeds the mean score of others.

    Args:
        replacement: The prompt; with `cut_heads=True` terms are what reaches query and key
            directly, else also what earlier heads moved there.
        layer: Of the head.
        head: Which query head.
        query: Position that looks.
        key: Position that is looked at.
        others: Positions it is compared with; every other one that the query sees, if None.

    Returns:
        As of `attention_score`; its `key` holds the differences of keys.

    Raises:
        ConfigError: There is nothing to compare with, or no such head or position.
    """
    compared = [s for s in range(query + 1) if s != key] if others is None else list(others)
    if not compared:
        raise ConfigError(
            f"Query {query} sees no key besides {key}, so there is no other score to compare with. "
            "Choose a later query."
        )
    one = attention_score(replacement, layer, head, query, key)
    rest = [attention_score(replacement, layer, head, query, other) for other in compared]
    mean = torch.stack([other.key for other in rest]).mean(0)
    value = one.value - sum(other.value for other in rest) / len(rest)
    return AttentionScore(value, one.scaling, one.terms, one.query, one.key - mean)
