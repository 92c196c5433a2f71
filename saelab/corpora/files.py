"""How is each kind of text file read? Plain text, JSON lines, Parquet, and folders of them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saelab.corpora.documents import Document, TextFile
from saelab.errors import CorpusError

__all__ = ["FILE_SUFFIXES", "read_folder", "read_jsonl", "read_parquet", "read_text_file"]

_TEXT_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst"}
_LINES_SUFFIXES = {".jsonl", ".ndjson"}
_TABLE_SUFFIXES = {".json", ".csv", ".tsv"}
FILE_SUFFIXES = _TEXT_SUFFIXES | _LINES_SUFFIXES | _TABLE_SUFFIXES | {".parquet"}
"""Endings by which a string is recognized as the name of a text file."""


def read_text_file(path: Path, name: str) -> Iterator[TextFile]:
    """One document: the whole file, which must be UTF-8.

    Raises:
        CorpusError: The file is a table or JSON, whose syntax is not meant to be read as prose.
    """
    if path.suffix.lower() in _TABLE_SUFFIXES:
        raise CorpusError(
            f"{path} is a {path.suffix} file; its quotes and separators would be read as text. "
            "Save it as .jsonl (one record a line) or .parquet, or give its text as "
            f"[Path('{path}').read_text()]."
        )
    yield TextFile(path, name)


def read_folder(folder: Path, text_field: str) -> Iterator[Document | TextFile]:
    """Every text, JSON-lines and Parquet file below a folder, by sorted relative path.

    Hidden files and folders and other kinds of file are passed over; links to folders are not
    followed.

    Raises:
        CorpusError: The folder holds no such file.
    """
    files = _files_below(folder)
    wanted = [file for file in files if file.suffix.lower() in FILE_SUFFIXES - _TABLE_SUFFIXES]
    if not wanted:
        found = sorted({file.suffix or "no ending" for file in files})
        kinds = f" (found: {', '.join(found[:8])})" if found else ""
        raise CorpusError(
            f"No text in the folder {folder}{kinds}. Files that end in .txt, .md, .rst, .jsonl or "
            ".parquet are read from folders; name a file of another kind by its own path."
        )
    for file in wanted:
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in _LINES_SUFFIXES:
            yield from read_jsonl(file, name, text_field)
        elif file.suffix.lower() == ".parquet":
            yield from read_parquet(file, name, text_field)
        else:
            yield from read_text_file(file, name)


def _files_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        found += [Path(place) / entry for entry in files if not entry.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_jsonl(path: Path, name: str, text_field: str) -> Iterator[Document]:
    """One document per line; the record's other fields go with it. Blank lines are passed over.

    Raises:
        CorpusError: A line is not UTF-8, not a JSON object, or has no such text; the message
            gives file and line.
    """
    try:
        handle = path.open("rb")
    except OSError as cause:
        raise CorpusError(f"Cannot read {path}: {cause.strerror or cause}.") from None
    with handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                record = _json_line(line, f"{path}:{number}")
                text = _text_of(record, text_field, f"{path}:{number}")
                fields = {key: record[key] for key in record if key != text_field}
                yield Document(text, f"{name}:{number}", fields)


def _json_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as cause:
        raise CorpusError(
            f"{place} is not UTF-8 text: byte 0x{line[cause.start]:02x} at offset {cause.start} "
            "of the line. Convert the file, or leave it out."
        ) from None
    except (json.JSONDecodeError, RecursionError) as cause:
        raise CorpusError(
            f"{place} is not valid JSON ({cause}). A .jsonl file holds one JSON object a line."
        ) from None
    if not isinstance(record, dict):
        raise CorpusError(
            f"{place} holds a JSON {type(record).__name__}; each line must be an object with a "
            "text field."
        )
    return record


def _text_of(record: dict[str, Any], text_field: str, place: str) -> str:
    if text_field not in record:
        raise CorpusError(
            f"{place} has no field '{text_field}'; it has {', '.join(record) or 'none'}. "
            "Name the right one with text_field=."
        )
    if not isinstance(text := record[text_field], str):
        raise CorpusError(
            f"{place}: the field '{text_field}' is a {type(text).__name__}, not text. "
            "Name the right one with text_field=."
        )
    return text


def read_parquet(path: Path, name: str, text_field: str) -> Iterator[Document]:
    """One document per row of a Parquet table, read a batch at a time. Nulls are empty texts.

    Raises:
        CorpusError: The file is not Parquet, or the column is missing or not text.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        columns = table.schema_arrow.names
    except (OSError, pyarrow.ArrowException) as cause:
        raise CorpusError(f"{path} cannot be read as Parquet: {cause}") from None
    with table:
        if text_field not in columns:
            raise CorpusError(
                f"{path} has no column '{text_field}'; it has {', '.join(columns)}. "
                "Name the right one with text_field=."
            )
        kind = str(table.schema_arrow.field(text_field).type)
        if "string" not in kind:
            raise CorpusError(f"{path}: the column '{text_field}' holds {kind}, not text.")
        row = 0
        try:
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    yield Document(text or "", f"{name}:{row}")
                    row += 1
        except (OSError, pyarrow.ArrowException) as cause:
            raise CorpusError(f"{path} breaks off after row {row:,}: {cause}") from None
