"""How are several sets of tokens made one?"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from saelab.errors import ConfigError
from saelab.tokens.rows import Tokens

__all__ = ["cat"]


def cat(parts: Sequence[Tokens]) -> Tokens:
    """Put tokens one after the other; parts of one split get their common document indices back.

    Raises:
        ConfigError: There are no parts, or they differ in length, tokenizer, BOS or separator.
    """
    if not parts:
        raise ConfigError("cat needs at least one Tokens; it was given an empty list.")
    first = parts[0]
    for name in ("length", "tokenizer", "bos_token_id", "separator_token_id"):
        values = [getattr(part, name) for part in parts]
        if len(set(values)) > 1:
            raise ConfigError(
                f"These tokens cannot be joined: their {name} is {values}. Make them with the same "
                "model and settings."
            )
    shared = all(part.document_names == first.document_names for part in parts) and all(
        part.corpus.get("sha256") == first.corpus.get("sha256") for part in parts
    )
    names: list[str] = list(first.document_names) if shared else []
    documents = []
    for part in parts:
        shift = 0 if shared else len(names)
        documents.append(torch.where(part.document >= 0, part.document + shift, -1))
        names += [] if shared else part.document_names
    return replace(
        first,
        ids=torch.cat([part.ids for part in parts]),
        document=torch.cat(documents),
        kept=torch.cat([part.kept for part in parts]),
        document_names=names,
        corpus=_joint_corpus([part.corpus for part in parts]),
        padded=any(part.padded for part in parts),
    )


def _joint_corpus(parts: list[dict[str, Any]]) -> dict[str, Any]:
    if all(part == parts[0] for part in parts):
        return parts[0]
    joint = {
        key: "; ".join(dict.fromkeys(str(part.get(key, "unknown")) for part in parts))
        for key in ("name", "licence", "source")
    }
    digests = "".join(part.get("sha256", "") for part in parts)
    return {**joint, "sha256": hashlib.sha256(digests.encode()).hexdigest(), "parts": parts}
