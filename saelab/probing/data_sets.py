"""Where does labeled text come from? Data sets that are installed, and CSV files of the same shape.

saelab ships no data. The 113 binary data sets of Kantamneni et al. 2025 (Are Sparse Autoencoders
Useful?) are files of the package sae-probes, which is read and never imported:

    pip install --no-deps sae-probes==0.4.2

Up to two thirds of the rows of those files repeat another row of the same file, so a division by
rows has the same text on both sides; here every text is given once, and texts that carry both
labels not at all.
"""

import difflib
import importlib.util
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from saelab.corpora import corpus_folder
from saelab.errors import CorpusError

__all__ = ["LabeledTexts", "data_set_names", "load_data_set", "read_labeled_csv"]

INSTALL = "pip install --no-deps sae-probes==0.4.2"
_INDEX = "probing_datasets_MASTER.csv.zst"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LabeledTexts:
    """Different texts, each with one of two labels."""

    name: str
    """What the data set is called."""
    texts: list[str]
    """The texts, in the order of the file."""
    positive: NDArray[Any]
    """Whether each has the positive label."""
    labels: tuple[str, str]
    """What the file calls negative and positive: its two labels in alphabetical order."""
    n_repeated: int
    """Rows left out because their text was there before."""
    n_contradicting: int
    """Rows left out because their text carries both labels."""
    licence: str
    """Under which terms it may be used."""

    def sample(self, n: int | None, seed: int = 0) -> "LabeledTexts":
        """At most n texts, as many of each label, in random order."""
        rows = [np.flatnonzero(self.positive == side).tolist() for side in (False, True)]
        each = min(map(len, rows)) if n is None else min(n // 2, *map(len, rows))
        drawn = [i for side in rows for i in random.Random(seed).sample(side, each)]
        random.Random(seed).shuffle(drawn)
        return LabeledTexts(
            name=self.name,
            texts=[self.texts[i] for i in drawn],
            positive=self.positive[drawn],
            labels=self.labels,
            n_repeated=self.n_repeated,
            n_contradicting=self.n_contradicting,
            licence=self.licence,
        )


def data_set_names(folder: str | Path | None = None) -> list[str]:
    """Names of the binary data sets of sae-probes, such as "glue_sst2", in the package's order.

    Args:
        folder: Of the unpacked package; the installed one if not given, then
            `$SAELAB_CORPORA/sae-probes` and `corpora/sae-probes` in the cache folder.

    Raises:
        CorpusError: The package is not on this machine; the message says how to get it.
    """
    return list(_index(_data_folder(folder)))


def load_data_set(
    name: str,
    folder: str | Path | None = None,
    *,
    negative: Sequence[str] = (),
    positive: Sequence[str] = (),
) -> LabeledTexts:
    """Open one binary data set of sae-probes, or two groups of labels of another one.

    Args:
        name: One of `data_set_names`; any data set of the package if labels are given.
        folder: As in `data_set_names`.
        negative: Labels of the negative texts, one or two stars, say; texts of labels that are in
            neither group are left out. Leave both empty for a binary data set.
        positive: Labels of the positive texts.

    Raises:
        CorpusError: The package is not there, has no such data set or label, or the file is
            damaged.
    """
    data = _data_folder(folder)
    grouped = bool(negative or positive)
    index = _index(data, binary=not grouped)
    if name not in index:
        near = difflib.get_close_matches(name, index, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CorpusError(
            f"sae-probes has no {'' if grouped else 'binary '}data set '{name}'.{hint} It has "
            f"{len(index)}: {', '.join(list(index)[:4])}, ..."
        )
    path = data / f"{index[name]}.zst"
    licence = "MIT package of data sets with terms of their own; see its index for their origins"
    table = _table(path)
    if grouped:
        table = _grouped(table, str(path), tuple(negative), tuple(positive))
    return _labeled(table, name, str(path), "prompt", "target", licence)


def read_labeled_csv(
    path: str | Path, *, text_field: str = "prompt", label_field: str = "target"
) -> LabeledTexts:
    """Read a CSV (or .csv.zst) file with a column of texts and one of two labels.

    Args:
        path: The file.
        text_field: Its column of texts.
        label_field: Its column of labels; the second of the two in alphabetical order is positive.

    Raises:
        CorpusError: The file is missing or damaged, lacks a column, or has not two labels.
    """
    path = Path(path)
    name = path.name.removesuffix(".zst").removesuffix(".csv")
    return _labeled(_table(path), name, str(path), text_field, label_field, "unknown")


def _grouped(table: Any, path: str, negative: tuple[str, ...], positive: tuple[str, ...]) -> Any:
    """The table with two labels, "0 ..." and "1 ...", each standing for a group of labels."""
    there = set(table["target"]) if "target" in table.columns else set()
    if not negative or not positive or {*negative, *positive} - there or {*negative} & {*positive}:
        raise CorpusError(
            f"Labels {negative} against {positive} of {path}: give two groups that share none, of "
            f"its labels {', '.join(sorted(there)[:10])}."
        )
    names = {one: f"0 {'/'.join(negative)}" for one in negative}
    names |= {one: f"1 {'/'.join(positive)}" for one in positive}
    kept = table[table["target"].isin(list(names))]
    return kept.assign(target=kept["target"].map(names))


def _labeled(
    table: Any, name: str, path: str, text_field: str, label_field: str, licence: str
) -> LabeledTexts:
    missing = [field for field in (text_field, label_field) if field not in table.columns]
    if missing:
        raise CorpusError(
            f"{path} has no column {' or '.join(missing)}; it has {', '.join(table.columns)}."
        )
    texts, targets = table[text_field].tolist(), table[label_field].tolist()
    labels = sorted(set(targets))
    if len(labels) != 2:
        raise CorpusError(
            f"{path} has {len(labels)} labels in column {label_field} "
            f"({', '.join(map(str, labels[:5]))}); a binary probe needs two."
        )
    kept, repeated, contradicting = _different(texts, targets)
    return LabeledTexts(
        name=name,
        texts=[texts[i] for i in kept],
        positive=np.array([targets[i] == labels[1] for i in kept], bool),
        labels=(labels[0], labels[1]),
        n_repeated=repeated,
        n_contradicting=contradicting,
        licence=licence,
    )


def _different(texts: Sequence[str], targets: Sequence[str]) -> tuple[list[int], int, int]:
    """Rows with a text of their own; white space at the ends and case make no new text."""
    first: dict[str, int] = {}
    said: dict[str, set[str]] = {}
    for i, (text, target) in enumerate(zip(texts, targets, strict=True)):
        key = " ".join(text.casefold().split())
        if key:
            first.setdefault(key, i)
            said.setdefault(key, set()).add(target)
    kept = [i for key, i in first.items() if len(said[key]) == 1]
    both = {key for key in first if len(said[key]) > 1}
    contradicting = sum(" ".join(text.casefold().split()) in both for text in texts)
    return kept, len(texts) - contradicting - len(kept), contradicting


def _index(data: Path, *, binary: bool = True) -> dict[str, str]:
    """Name of each data set -> its file, relative to the data folder."""
    table = _table(data / _INDEX)
    if binary:
        table = table[table["Data type"] == "Binary Classification"]
    files = zip(table["Dataset Tag"], table["Dataset save name"], strict=True)
    return {tag: file for tag, file in files if (data / f"{file}.zst").is_file()}


def _data_folder(folder: str | Path | None) -> Path:
    places = []
    if folder is not None:
        places = [Path(folder)]
    else:
        spec = importlib.util.find_spec("sae_probes")  # which does not import the package
        places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
        places.append(corpus_folder("sae-probes"))
    for place in places:
        for data in (place, place / "data", place / "sae_probes" / "data"):
            if (data / _INDEX).is_file():
                return data
    where = f"in {folder}" if folder is not None else "on this machine"
    raise CorpusError(
        f"The data sets of sae-probes are not {where}. Get them (45 MB) with:\n  {INSTALL}"
    )


def _table(path: Path) -> Any:
    """A CSV file with every field as text, "NA" and "None" included."""
    import pandas as pd
    import pyarrow as pa

    if not path.is_file():
        raise CorpusError(f"There is no file {path}. Install the package again: {INSTALL}")
    try:
        if path.suffix == ".zst":
            with pa.input_stream(path, compression="zstd") as stream:
                content = stream.read()
        else:
            content = path.read_bytes()
        return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read as CSV: {error}.") from None
