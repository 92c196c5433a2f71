"""What is a verb of the command line, and what do verbs share?"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from saelab.cli.progress import Working
from saelab.errors import ConfigError
from saelab.models import LanguageModel, load_model

__all__ = ["Verb", "add_model", "add_text", "opened_model", "say", "text_source"]

DEFAULT_MODEL, DEFAULT_TEXT = "smollm2", "sotu"


@final
@dataclass(frozen=True, kw_only=True)
class Verb:
    """One thing `saelab` can do."""

    name: str
    """The word after `saelab`."""
    summary: str
    """What it does, in one sentence."""
    example: str
    """A command line that works."""
    add_flags: Callable[[argparse.ArgumentParser], None]
    """Declares what may follow the word."""
    run: Callable[[argparse.Namespace], int | None]
    """Does it; None is exit status 0."""
    add_flags_for: Callable[[argparse.ArgumentParser, Sequence[str]], None] | None = None
    """In place of `add_flags` where the flags depend on the words that follow."""


def say(text: str = "") -> None:
    """Write a line for the user on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def add_model(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    """Declare --model and --device."""
    parser.add_argument(
        "--model",
        default=default,
        help="an alias, a hub id, a local transformers folder or a .gguf file "
        f"(default: {default})",
    )
    parser.add_argument(
        "--device", default=None, help="where the model computes, such as cpu or cuda:1"
    )


def add_text(parser: argparse.ArgumentParser, default: str = DEFAULT_TEXT) -> None:
    """Declare --text."""
    parser.add_argument(
        "--text",
        action="append",
        metavar="SOURCE",
        help=f"a corpus's name, a .txt, .jsonl or .parquet file, or a folder; repeatable "
        f"(default: {default})",
    )


def opened_model(source: str, device: str | None = None) -> LanguageModel:
    """Load a model, with a clock while it takes."""
    with Working(f"Loading {source}"):
        return load_model(source, device=device)


def text_source(texts: list[str] | None) -> list[str | Path]:
    """What --text asked for, as `tokens.from_text` wants it.

    Raises:
        ConfigError: A word is neither the name of a corpus nor a path that exists.
    """
    from saelab import corpora

    sources: list[str | Path] = []
    for text in texts or [DEFAULT_TEXT]:
        path = Path(text).expanduser()
        if text not in corpora.names() and not path.exists():
            raise ConfigError(
                f"--text {text}: no such file or folder, and no corpus has this name "
                f"({', '.join(corpora.names())})."
            )
        sources.append(text if text in corpora.names() else path)
    return sources
