"""What is a document? Text with a name, given in pieces so that size never matters.

A document may be longer than memory allows to encode at once, so it is handed on in pieces of at
most `PIECE_LENGTH` characters. A piece ends before a space that follows a letter or digit, which
is where byte-level tokenizers always begin a new token: encoding the pieces one by one gives the
ids of the whole text. (Tokenizers that put a marker at the start of every text add one such
marker per piece.)
"""

import codecs
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from saelab.errors import CorpusError

__all__ = [
    "PIECE_LENGTH",
    "Corpus",
    "Document",
    "TextDigest",
    "TextFile",
    "TokenDocument",
    "text_pieces",
]

PIECE_LENGTH = 1 << 18
"""Longest piece handed to a tokenizer at once, in characters."""

_READ_BYTES = 1 << 20
_DOCUMENT_END = b"\xff"  # a byte that UTF-8 never contains


@dataclass(frozen=True)
class Document:
    """A text with a name; `fields` holds whatever else is known of it (year, genre)."""

    text: str
    name: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def pieces(self) -> Iterator[str]:
        """The text, cut at spaces into pieces of at most `PIECE_LENGTH` characters."""
        return text_pieces([self.text])


@dataclass(frozen=True)
class TextFile:
    """A document that stays on disk until it is read, a piece at a time."""

    path: Path
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole file, line ends as one newline character each.

        Raises:
            CorpusError: The file is missing, or is not UTF-8.
        """
        return "".join(_decoded(self.path))

    def pieces(self) -> Iterator[str]:
        """The text, cut at spaces into pieces of at most `PIECE_LENGTH` characters."""
        return text_pieces(_decoded(self.path))


@dataclass(frozen=True)
class TokenDocument:
    """A document that is token ids already, for models without a tokenizer."""

    ids: Int[Tensor, " token"]
    name: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, and where they come from."""

    name: str
    """Short name used in reports: "sotu"."""
    licence: str
    """Terms under which the text may be used, or "unknown"."""
    source: str
    """The package, path or data set the text was read from."""
    documents: Iterable[Document | TextFile | TokenDocument]
    """The documents; read again on each iteration unless the source itself was an iterator."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the documents' texts in order, as hex; reads them all."""
        digest = TextDigest()
        for document in self.documents:
            if isinstance(document, TokenDocument):
                digest.add(str(document.ids.tolist()))
            else:
                for piece in document.pieces():
                    digest.add(piece)
            digest.end_document()
        return digest.hexdigest()


class TextDigest:
    """SHA-256 of a run of documents: each text as UTF-8, ended by a byte UTF-8 never contains."""

    def __init__(self) -> None:
        """Start with no documents."""
        self._hash = hashlib.sha256()

    def add(self, piece: str) -> None:
        """Add the next piece of the present document."""
        self._hash.update(piece.encode())

    def end_document(self) -> None:
        """Close the present document, so that moving text between documents changes the digest."""
        self._hash.update(_DOCUMENT_END)

    def hexdigest(self) -> str:
        """The digest so far, as lower-case hex."""
        return self._hash.hexdigest()


def text_pieces(chunks: Iterable[str], length: int = PIECE_LENGTH) -> Iterator[str]:
    """Cut a text, given in chunks of any size, into pieces that can be encoded one by one.

    Args:
        chunks: The text; joined, they are the whole.
        length: Longest piece, in characters.

    Returns:
        Pieces that join to the same text, each at most `length` long.

    >>> list(text_pieces(["one two", " three"], length=8))
    ['one two', ' three']
    """
    held = ""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > length:
            end = _last_cut(held, start, start + length)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _last_cut(text: str, start: int, stop: int) -> int:
    """Where to end the piece `text[start:stop]`: at a word's end if there is one."""
    space = text.rfind(" ", start + 1, stop + 1)
    while space > start:
        if text[space - 1].isalnum():
            return space
        space = text.rfind(" ", start + 1, space)
    return stop


def _decoded(path: Path) -> Iterator[str]:
    try:
        handle = path.open("rb")
    except OSError as cause:
        raise CorpusError(
            f"Cannot read {path}: {cause.strerror or cause}. Check the path and its permissions."
        ) from None
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    read = 0
    with handle:
        while True:
            block = handle.read(_READ_BYTES)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as cause:
                raise CorpusError(
                    f"{path} is not UTF-8 text: byte 0x{cause.object[cause.start]:02x} at offset "
                    f"{read - waiting + cause.start:,} cannot be decoded. Convert it "
                    "(iconv -f latin1 -t utf-8), or leave it out."
                ) from None
            read += len(block)
            yield newlines.decode(text, final=not block)
            if not block:
                return
