"""How do documents become token ids? Batch by batch, as plain text, stopping when there is enough.

Text is never read as anything but text: a document that contains the spelling of a special token
("<|endoftext|>") is encoded as those characters, or a web page could put chat marks and document
ends where there are none. Ids that the model counts as special are marked as not kept all the
same, since chats and ready-made ids do contain them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from saelab.corpora import Document, TextDigest, TextFile, TokenDocument
from saelab.errors import CorpusError
from saelab.models import LanguageModel
from saelab.tokens.layout import RowLayout, TokenRun

__all__ = ["EncodedText", "encode_documents", "tokenizer_identity"]

_BATCH_CHARACTERS = 1 << 20
_BATCH_PIECES = 1024


class EncodedText(NamedTuple):
    """Documents as token ids."""

    run: TokenRun
    document_names: list[str]
    sha256: str  # of the text that was encoded
    n_empty: int  # documents passed over because there is nothing in them


class _Piece(NamedTuple):
    name: str
    first: bool  # whether it begins a document
    text: str | None
    ids: torch.Tensor | None

    @property
    def size(self) -> int:
        if self.text is not None:
            return len(self.text)
        return 0 if self.ids is None else self.ids.numel()


def encode_documents(
    model: LanguageModel,
    documents: Iterable[Document | TextFile | TokenDocument],
    layout: RowLayout,
    max_rows: int | None = None,
) -> EncodedText:
    """Encode documents in order until they end or fill `max_rows` rows.

    Args:
        model: Whose tokenizer is used.
        documents: Read once, a batch at a time; only the ids stay in memory.
        layout: How rows will be made, to know when there is enough.
        max_rows: Rows that are wanted at most; None for all the text.

    Raises:
        CorpusError: A text cannot be encoded, or an id is outside the model's vocabulary.
    """
    special = _special_table(model)
    gathered = _Gathered(layout, max_rows)
    pieces = _Pieces(documents)
    wanted = _BATCH_CHARACTERS
    if max_rows is not None:  # do not encode a megabyte for a few rows
        wanted = min(wanted, 4096 + 8 * max_rows * layout.length)
    for batch in _batches(pieces, wanted):
        for piece, ids in zip(batch, _encoded(model, batch), strict=True):
            _check_vocabulary(ids, model, piece.name)
            gathered.add(piece, ids, ~special[ids])
            if gathered.enough():
                return gathered.finish(pieces.n_empty)
    return gathered.finish(pieces.n_empty)


def tokenizer_identity(model: LanguageModel) -> str:
    """The tokenizer's class and a hash of its vocabulary; "none" where there is no tokenizer."""
    get_vocabulary = getattr(model.tokenizer, "get_vocab", None)
    if get_vocabulary is None:
        return "none" if model.tokenizer is None else type(model.tokenizer).__name__
    listing = json.dumps(sorted(get_vocabulary().items(), key=lambda item: (item[1], item[0])))
    digest = hashlib.sha256(listing.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{type(model.tokenizer).__name__} sha256:{digest[:16]}"


class _Pieces:
    """Documents in pieces, the empty ones passed over and counted."""

    def __init__(self, documents: Iterable[Document | TextFile | TokenDocument]) -> None:
        self._documents = documents
        self.n_empty = 0

    def __iter__(self) -> Iterator[_Piece]:
        for document in self._documents:
            found = False
            for piece in self._of(document):
                found = True
                yield piece
            self.n_empty += not found

    def _of(self, document: Document | TextFile | TokenDocument) -> Iterator[_Piece]:
        if isinstance(document, TokenDocument):
            if document.ids.numel():
                yield _Piece(document.name, True, None, document.ids)
            return
        blank, first = "", True
        for text in document.pieces():
            if first and not text.strip():
                blank += text  # kept only if something follows
                continue
            yield _Piece(document.name, first, blank + text, None)
            blank, first = "", False


def _batches(pieces: Iterable[_Piece], wanted: int) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.size
        if size >= wanted or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(model: LanguageModel, batch: list[_Piece]) -> Iterator[np.ndarray]:
    texts = [piece.text for piece in batch if piece.text is not None]
    for piece in batch:
        _check_text(model, piece)
    encoded = iter(_plain_ids(model, texts))
    for piece in batch:
        yield np.asarray(next(encoded) if piece.ids is None else piece.ids, dtype=np.int64)


def _plain_ids(model: LanguageModel, texts: list[str]) -> Iterable[list[int]]:
    """Ids of texts, all at once where the tokenizer can, special spellings as plain characters."""
    tokenizer: Any = model.tokenizer
    if not texts or not callable(tokenizer):
        return map(model.encode, texts)
    encoded: Any = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # a long text is no mistake here
    )
    return encoded["input_ids"]


def _check_text(model: LanguageModel, piece: _Piece) -> None:
    if piece.text is None:
        return
    if model.tokenizer is None:
        raise CorpusError(
            f"The model '{model.name}' has no tokenizer, so it cannot read the text "
            f"'{piece.name}'. Load it with tokenizer=..., or give lists of token ids."
        )
    try:
        piece.text.encode()
    except UnicodeEncodeError as cause:
        raise CorpusError(
            f"'{piece.name}' cannot be written as UTF-8: character {cause.start:,} of a piece is a "
            f"lone surrogate ({piece.text[cause.start]!a}). Repair the text with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None


def _check_vocabulary(ids: np.ndarray, model: LanguageModel, name: str) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < model.d_vocab:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise CorpusError(
            f"'{name}' holds token id {wrong}, but the model '{model.name}' knows ids 0 to "
            f"{model.d_vocab - 1}. The tokenizer or the ids belong to another model."
        )


def _special_table(model: LanguageModel) -> np.ndarray:
    table = np.zeros(model.d_vocab, dtype=bool)
    table[[token for token in model.special_token_ids if 0 <= token < model.d_vocab]] = True
    return table


class _Gathered:
    """Encoded pieces so far, and whether they fill the rows that are wanted."""

    def __init__(self, layout: RowLayout, max_rows: int | None) -> None:
        self._layout, self._max_rows = layout, max_rows
        self._ids: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._sizes: list[int] = []
        self._names: list[str] = []
        self._digest = TextDigest()
        self._full_rows = 0  # rows of the documents before the present one, when padded
        self._total = 0

    def add(self, piece: _Piece, ids: np.ndarray, kept: np.ndarray) -> None:
        if piece.first:
            if self._names:
                self._digest.end_document()
                self._full_rows += -(-self._sizes[-1] // self._layout.text_length)
            self._names.append(piece.name)
            self._sizes.append(0)
        self._digest.add(piece.text if piece.text is not None else str(ids.tolist()))
        self._ids.append(ids.astype(np.int32))
        self._kept.append(kept)
        self._sizes[-1] += len(ids)
        self._total += len(ids)

    def enough(self) -> bool:
        if self._max_rows is None:
            return False
        if self._layout.padded:
            present = -(-self._sizes[-1] // self._layout.text_length)
            return self._full_rows + present >= self._max_rows
        return self._total >= self._max_rows * self._layout.text_length

    def finish(self, n_empty: int) -> EncodedText:
        if self._names:
            self._digest.end_document()
        run = TokenRun(
            ids=np.concatenate(self._ids) if self._ids else np.zeros(0, np.int32),
            kept=np.concatenate(self._kept) if self._kept else np.zeros(0, bool),
            document=np.repeat(np.arange(len(self._sizes), dtype=np.int32), self._sizes),
        )
        return EncodedText(run, self._names, self._digest.hexdigest(), n_empty)
