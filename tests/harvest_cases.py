"""A tiny model and tokens that the tests of stores and harvests share."""

from pathlib import Path

import torch

from saelab.models import LanguageModel, load_model
from saelab.tokens import Tokens
from tests.tiny_models import TinyPlainModel, random_tokens

HOOKS = ["embedding.output", "blocks.1.output"]
SMALL = {"rows_per_batch": 4, "tokens_per_shard": 8 * 12, "dtype": "float32"}
"""Two batches of four rows a shard: 37 rows make 5 shards, the last with 5 rows."""


def tiny_model(seed: int = 0) -> LanguageModel:
    return load_model(TinyPlainModel(seed), name="tiny", device="cpu")


def rows_of_tokens(rows: int = 37, length: int = 12, seed: int = 0) -> Tokens:
    """Random rows, four to a document; position 0 and every token 49 are excluded."""
    ids = random_tokens(rows, length, seed=seed)
    document = (torch.arange(rows) // 4).reshape(-1, 1).repeat(1, length)
    kept = ids != 49
    kept[:, 0] = False
    names = [f"document {i}" for i in range(int(document.max()) + 1)]
    corpus = {"name": "random", "licence": "none", "source": "drawn", "sha256": str(seed)}
    return Tokens(ids, document, kept, names, None, corpus)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store but the lock, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
