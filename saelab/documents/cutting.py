"""How is a text cut into documents, and how is a changed text noticed?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from saelab.corpora import Document, TextFile, TokenDocument
from saelab.documents.config import DocumentConfig
from saelab.models import LanguageModel

__all__ = ["Unit", "add_text", "cut"]


@final
@dataclass(eq=False)
class Unit:
    """A document before the model has read it."""

    name: str
    """Its name."""
    group: int
    """The text it is of."""
    fields: dict[str, Any]
    """What else is known of the text."""
    rows: list[list[int]]
    """Token ids, cut into what the model reads at once."""


def cut(
    document: Document | TextFile | TokenDocument,
    group: int,
    model: LanguageModel,
    config: DocumentConfig,
) -> tuple[list[Unit], int]:
    """The documents of one text, and how many were left out because they are short.

    Args:
        document: The text.
        group: Its number in the corpus.
        model: Whose tokens it is cut into.
        config: What a document is.
    """
    length, most = config.length, config.max_rows
    ids: list[int] = []
    for piece in _pieces(document):
        ids += piece if isinstance(piece, list) else model.encode(piece)
        if most is not None and len(ids) >= length * most:
            ids = ids[: length * most]
            break
    rows = [ids[start : start + length] for start in range(0, len(ids), length)]
    fields = _plain(getattr(document, "fields", {}))
    name = document.name or f"text {group}"
    if config.unit == "document":
        long_enough = len(ids) >= config.least_tokens
        return ([Unit(name, group, fields, rows)] if long_enough else []), int(not long_enough)
    long = [i for i, row in enumerate(rows) if len(row) >= config.least_tokens]
    units = [Unit(f"{name} #{i + 1}", group, fields, [rows[i]]) for i in long]
    return units, max(1, len(rows)) - len(long)


def _pieces(document: Document | TextFile | TokenDocument) -> Iterator[str | list[int]]:
    if isinstance(document, TokenDocument):
        yield document.ids.tolist()
    else:
        yield from document.pieces()


def add_text(seen: Any, document: Document | TextFile | TokenDocument) -> None:
    """Add a text, and where it ends, to a SHA-256."""
    for piece in _pieces(document):
        seen.update((piece if isinstance(piece, str) else str(piece)).encode("utf-8", "replace"))
    seen.update(b"\xff")


def _plain(fields: Any) -> dict[str, Any]:
    """Fields that JSON can hold; others as text."""
    kinds = (str, int, float, bool, type(None))
    return {str(k): v if isinstance(v, kinds) else str(v) for k, v in dict(fields).items()}
