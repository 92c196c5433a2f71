"""The verb that reads texts as documents of latents, to compare and search: `documents`."""

import argparse
import re
from pathlib import Path

from saelab import corpora
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import Verb, add_text, opened_model, say, text_source
from saelab.documents import DocumentConfig, read_documents
from saelab.errors import ConfigError
from saelab.run_folders import HarvestSource, dictionary_of, store_of

__all__ = ["COLLECTIONS", "DOCUMENTS"]

COLLECTIONS = "documents"
"""Where collections lie in a run folder, each in a folder of its own."""


def _add_documents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, or a dictionary's folder")
    add_text(parser, "the text the run was trained on")
    parser.add_argument(
        "--name", default=None, help="what to call the collection (default: the text's name)"
    )
    parser.add_argument("--model", default=None, help="the model to run (default: the harvest's)")
    parser.add_argument("--device", default=None, help="where the model computes")
    add_flags(parser, DocumentConfig)


def _documents(arguments: argparse.Namespace) -> None:
    config = from_flags(DocumentConfig, arguments)
    run: Path = arguments.run
    sae = dictionary_of(run)
    held = None
    if arguments.model is None or arguments.text is None:
        held = HarvestSource.of(store_of(run))
    source = held.text if arguments.text is None and held else text_source(arguments.text)
    corpus = corpora.read(source[0] if len(source) == 1 else source)
    name = re.sub(r"[^\w.-]+", "_", arguments.name or corpus.name).strip("._")
    if not name:
        raise ConfigError("The collection needs a name of letters or digits: --name NAME.")
    model = opened_model(arguments.model or (held.model if held else ""), arguments.device)
    folder = run / COLLECTIONS / name
    with ProgressBar("Reading", unit="passage") as bar:
        found = read_documents(model, sae, corpus, folder, config=config, progress=bar)
    say(f"{folder}: {len(found):,} documents, {int(found.n_tokens.sum()):,} tokens.")
    say("Next: saelab explore compares and searches them on the page of data.")


DOCUMENTS = Verb(
    name="documents",
    summary="Read texts as documents of latents, to compare collections and search by concept.",
    example="saelab documents runs/topk --text sotu --max-rows 4",
    add_flags=_add_documents,
    run=_documents,
)
