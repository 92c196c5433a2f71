"""Opens the collections of documents of a run, compares them and searches them, each once."""

from collections.abc import Mapping
from typing import Any

import streamlit as st
import torch
from explorer import loaders

from saelab.cli.collecting import COLLECTIONS
from saelab.documents import (
    Comparison,
    DocumentCodes,
    DocumentPooling,
    DocumentSearch,
    FoundDocument,
    cat,
    compare_parts,
    halves,
    open_documents,
)
from saelab.errors import ConfigError

__all__ = ["collections", "differences", "divided", "documents", "found_documents"]


def collections(name: str) -> list[str]:
    """Names of the collections of documents that a run has read."""
    folder = loaders.run(name).folder / COLLECTIONS
    return sorted(path.parent.name for path in folder.glob("*/manifest.json"))


def documents(name: str, collection: str) -> DocumentCodes:
    """One of them.

    Raises:
        ConfigError: There is none of that name.
    """
    return _documents(*_place(name, collection))


def differences(name: str, collection: str, way: str, at: str) -> tuple[Comparison, int]:
    """Documents compared as the page asks, and how many differences random halves have.

    Args:
        name: Of the run.
        collection: Of its documents.
        way: "with" another collection, or "by" a field.
        at: The field's least number, or its value, of one side.
    """
    kind, _, what = way.partition(" ")
    places = (_place(name, collection), *((_place(name, what),) if kind == "with" else ()))
    return _differences(places, way, at)


def found_documents(
    name: str,
    collection: str,
    how: DocumentPooling,
    query: tuple[tuple[tuple[int, int], float], ...],
) -> list[FoundDocument]:
    """Documents that hold most of a concept: ends with their weights."""
    return _search(*_place(name, collection), how).find(dict(query), n=20, around=12)


def divided(documents: DocumentCodes, field: str, at: str) -> tuple[DocumentCodes, torch.Tensor]:
    """The documents whose field is known, and which of them are on the side that is named first.

    Numbers are divided at the least of that side; other values are it, or are not.
    """
    known = torch.tensor([fields.get(field) is not None for fields in documents.fields])
    kept = documents.rows(known)
    return kept, torch.tensor([_first(fields, field, at) for fields in kept.fields])


def _first(fields: Mapping[str, Any], field: str, at: str) -> bool:
    value = fields[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) >= float(at)
    return str(value) == at


def _place(name: str, collection: str) -> tuple[str, float]:
    """The folder of a collection, found by its name, and when it last changed."""
    found = collections(name)
    if collection not in found:
        raise ConfigError(
            f"{name} has read no collection {collection!r}; there are: "
            f"{', '.join(found) or 'none'}."
        )
    folder = loaders.run(name).folder / COLLECTIONS / collection
    return str(folder), loaders.stamp(folder)


@st.cache_resource(show_spinner="Opening the documents …", max_entries=6)
def _documents(folder: str, changed: float) -> DocumentCodes:  # noqa: ARG001
    return open_documents(folder)


@st.cache_resource(show_spinner="Comparing …", max_entries=32)
def _differences(
    places: tuple[tuple[str, float], ...], way: str, at: str
) -> tuple[Comparison, int]:
    first, *others = (_documents(*place) for place in places)
    if others:
        both = cat([first, *others])
        in_a = torch.arange(len(both)) < len(first)
    else:
        both, in_a = divided(first, way.partition(" ")[2], at)
    found = compare_parts(both, in_a)
    return found, len(compare_parts(both, halves(both)).discoveries())


@st.cache_resource(show_spinner="Indexing the documents …", max_entries=6)
def _search(folder: str, changed: float, how: DocumentPooling) -> DocumentSearch:
    return DocumentSearch(_documents(folder, changed), how)
