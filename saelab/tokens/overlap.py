"""Does held-out text occur in the training text? N-grams and whole rows found on both sides."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from saelab.errors import ConfigError
from saelab.tokens.rows import Tokens
from saelab.tokens.statistics import hash_columns, ngrams_in

__all__ = ["overlap"]


def overlap(train: Tokens, held_out: Tokens, n: int = 13, worst: int = 10) -> dict[str, Any]:
    """Look for held-out text in the training text.

    share = held-out n-grams that occur in training / all held-out n-grams, an n-gram being n
    successive kept tokens of one document. 0 is clean; a few per cent are set phrases; a document
    near 1 is a copy.

    Args:
        train: Tokens a dictionary is trained on.
        held_out: Tokens it is evaluated on, of the same tokenizer.
        n: Tokens in an n-gram.
        worst: How many of the most affected documents and rows to list.

    Returns:
        n, ngrams, shared, share (0 to 1, 0 where there is no n-gram), duplicate_rows (held-out
        rows whose ids are those of some training row), worst_documents (name, ngrams, shared,
        share) and worst_rows (row, document, ngrams, shared, share), JSON-able.

    Raises:
        ConfigError: `n` is below 1, or the tokenizers differ.

    Source: Brown et al. 2020 (GPT-3), appendix C, looks for 13-grams of words; these are tokens.
    """
    if n < 1:
        raise ConfigError(f"n={n} is not a length of an n-gram. Use 1 or more.")
    if train.tokenizer != held_out.tokenizer:
        raise ConfigError(
            f"Ids of different tokenizers cannot be compared: {train.tokenizer} and "
            f"{held_out.tokenizer}. Make both with the same model."
        )
    run, row = held_out.run()
    counted = np.zeros(len(run.ids), dtype=bool)
    shared = np.zeros(len(run.ids), dtype=bool)
    for position, found in ngrams_in(train.run()[0], run, n):
        counted[position] = True
        shared[position] = found
    total, hits = int(counted.sum()), int(shared.sum())
    documents = [
        {"document": held_out.document_names[index], **record}
        for index, record in _most_shared(run.document, counted, shared, worst)
    ]
    first = held_out.document.amax(dim=1).tolist()
    rows = [
        {"row": index, "document": held_out.document_names[first[index]], **record}
        for index, record in _most_shared(row, counted, shared, worst)
    ]
    return {
        "n": n,
        "ngrams": total,
        "shared": hits,
        "share": hits / total if total else 0.0,
        "duplicate_rows": _duplicate_rows(train, held_out),
        "worst_documents": documents,
        "worst_rows": rows,
    }


def _most_shared(
    group: Int[np.ndarray, " position"],
    counted: Bool[np.ndarray, " position"],
    shared: Bool[np.ndarray, " position"],
    worst: int,
) -> list[tuple[int, dict[str, Any]]]:
    """The groups with the largest share of shared n-grams, those with none left out."""
    ngrams = np.bincount(group[counted])
    hits = np.bincount(group[shared], minlength=len(ngrams))
    share = hits / np.maximum(ngrams, 1)
    order = np.lexsort((-hits, -share))[:worst]
    return [
        (
            int(index),
            {
                "ngrams": int(ngrams[index]),
                "shared": int(hits[index]),
                "share": float(share[index]),
            },
        )
        for index in order
        if hits[index]
    ]


def _duplicate_rows(train: Tokens, held_out: Tokens) -> int:
    if train.length != held_out.length:
        return 0
    hashes = [
        hash_columns(list(part.ids.cpu().numpy().T)) if part.n_rows else np.zeros(0, np.uint64)
        for part in (train, held_out)
    ]
    return int(np.isin(hashes[1], hashes[0]).sum())
