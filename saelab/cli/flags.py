"""How does a configuration become command-line flags?

Each field of a dataclass is one flag: its name with dashes, its type from the annotation, its
help from the docstring under it, its default from the dataclass. Only flags that were given are
passed on, so the dataclass alone knows the defaults and the checks.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from saelab.errors import ConfigError

__all__ = ["Parser", "add_flags", "field_docs", "from_flags", "parse", "reader"]

Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, raised and not printed.

    Raises:
        ConfigError: Instead of printing the usage and exiting.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the flags are listed."""
        raise ConfigError(f"{message}. See: {self.prog} --help")


def add_flags(parser: argparse.ArgumentParser, config: type, skip: Collection[str] = ()) -> None:
    """Add one flag for every field of a dataclass.

    Args:
        parser: Gets the flags, in a group of their own named after the dataclass.
        config: The dataclass.
        skip: Fields that get no flag here.

    >>> @dataclasses.dataclass
    ... class Size:
    ...     width: int = 3
    >>> parser = Parser(prog="demo")
    >>> add_flags(parser, Size)
    >>> from_flags(Size, parser.parse_args(["--width", "4_000"]))
    Size(width=4000)
    """
    group = parser.add_argument_group(_title(config))
    docs, hints = field_docs(config), get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        required = field.default is dataclasses.MISSING
        required &= field.default_factory is dataclasses.MISSING
        text = docs.get(field.name, "").replace("%", "%%")
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            required=required,
            default=argparse.SUPPRESS,
            help=text if required else f"{text} (default: {_default(field)})",
            **_kind(hints[field.name]),
        )


def from_flags(config: type[Config], arguments: argparse.Namespace, **overrides: Any) -> Config:
    """The configuration that the flags describe; fields without a given flag keep their default.

    Raises:
        ConfigError: The dataclass refuses the combination.
    """
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return config(**{**given, **overrides})


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the words given, or the process's, naming the nearest flag when one is unknown.

    Raises:
        ConfigError: A flag is unknown or missing, or its value is of the wrong kind.
    """
    argv = sys.argv[1:] if argv is None else argv
    known = parser._option_string_actions
    for word in argv:
        flag = word.partition("=")[0]
        if word == "--":
            break
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{parser.prog} has no flag {flag}.{hint} See: {parser.prog} --help")
    return parser.parse_args(argv)


def reader(annotation: Any) -> Callable[[str], Any]:
    """Reads one word as a value of a field's type.

    >>> reader(int | None)("none"), reader(bool)("true"), reader(float)("0.5")
    (None, True, 0.5)
    """
    return _Reader(_options(Literal[True, False] if annotation is bool else annotation))


def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of a class and of its bases, on one line.

    >>> field_docs(Parser)
    {}
    """
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if dataclasses.is_dataclass(owner):
            docs |= _own_docs(owner)
    return docs


def _own_docs(config: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(config))
    except (OSError, TypeError):  # made interactively: there is no source
        return {}
    body = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)).body
    docs = {}
    for field, text in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def _title(config: type) -> str:
    first = inspect.getdoc(config) or ""
    return f"{config.__name__}: {first.splitlines()[0]}" if first else config.__name__


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value == ():
        return "none"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:_}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _kind(annotation: Any) -> dict[str, Any]:
    """What argparse has to know about a field's type."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    options = _options(annotation)
    kinds = [option for option in options if option is not type(None)]
    if len(kinds) == 1 and get_origin(kinds[0]) is tuple:
        inner = _kind(get_args(kinds[0])[0])
        return {**inner, "action": "append", "metavar": inner.get("metavar", "NAME")}
    if len(options) == 1 and get_origin(options[0]) is Literal:
        return {"choices": get_args(options[0])}
    return {"type": _Reader(options), "metavar": _Reader(options).metavar}


def _options(annotation: Any) -> list[Any]:
    """The members of a union, or the one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]


class _Reader:
    """Reads one word as the first of several types that accepts it."""

    def __init__(self, options: list[Any]) -> None:
        self.options = options

    @property
    def metavar(self) -> str:
        names = []
        for option in self.options:
            if get_origin(option) is Literal:
                names += [str(choice) for choice in get_args(option)]
            else:
                names.append("none" if option is type(None) else option.__name__.upper())
        return "|".join(names)

    @property
    def __name__(self) -> str:
        """How argparse calls it in 'invalid ... value'."""
        return self.metavar

    def __call__(self, word: str) -> Any:
        for option in sorted(self.options, key=_width):
            try:
                return _read(option, word)
            except ValueError:
                continue
        raise ValueError(word)


def _spelled(choice: Any) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _width(option: Any) -> int:
    """Narrow types are tried before wide ones, because every word is a str."""
    wide = (int, float, Path, str)
    return wide.index(option) if option in wide else -1


def _read(option: Any, word: str) -> Any:
    if option is type(None):
        if word.lower() != "none":
            raise ValueError(word)
        return None
    if get_origin(option) is Literal:
        choices = {_spelled(choice): choice for choice in get_args(option)}
        if word not in choices:
            raise ValueError(word)
        return choices[word]
    if option is int and not word.lstrip("+-").replace("_", "").isdigit():
        number = float(word)  # 2e6 tokens is a whole number too
        if not number.is_integer():
            raise ValueError(word)
        return int(number)
    return option(word)
