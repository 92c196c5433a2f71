"""What does every format promise, and what may a reader be told that the files do not say?"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from saelab.errors import FormatError
from saelab.formats.parts import Parts

__all__ = ["Asked", "Format", "number", "only_known"]


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user says besides the path."""

    hook: str | None = None
    """Hook point the dictionary reads, where the files do not say, or to overrule them."""
    hook_out: str | None = None
    """Hook point a transcoder writes."""
    layer: int | None = None
    """Which of the layers in the folder."""
    input_scale: float | None = None
    """What the activations are multiplied by, where the files say only that they are."""
    ignore: Collection[str] = ()
    """Unknown keys of the configuration that you have checked: they change no number."""


@final
@dataclass(frozen=True, kw_only=True)
class Format:
    """One library's files."""

    name: str
    """What `format=` calls it."""
    peer: str
    """Whose files they are, and of which release."""
    files: str
    """What the folder holds, for messages."""
    recognizes: Callable[[Path], bool]
    """Whether a path looks like this format, from its names alone."""
    read: Callable[[Path, Asked], Parts]
    """The dictionary, or FormatError."""
    write: Callable[[Sequence[Parts]], dict[str, bytes]] | None = None
    """File name to content, or FormatError; None where nothing can be written."""


def only_known(
    config: Mapping[str, Any], known: Collection[str], asked: Asked, origin: Path
) -> None:
    """Refuse keys that nobody has looked at: one of them may change what is computed."""
    if unknown := sorted(set(config) - set(known) - set(asked.ignore)):
        raise FormatError(
            f"{origin} has settings that this saelab does not know: {', '.join(unknown)}. If they "
            f"do not change what is computed, say ignore={unknown!r} (--ignore on the command "
            "line)."
        )


def number(
    config: Mapping[str, Any], key: str, origin: Path, *, required: bool = True
) -> int | None:
    """A positive whole number of a configuration.

    Raises:
        FormatError: It is missing or something else.
    """
    value = config.get(key)
    if value is None and not required:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 40:
        raise FormatError(f"{origin}: {key}={value!r} should be a positive whole number.")
    return value
