r"""Text from models and corpora, made visible: no control, bidirectional or broken characters."""

import unicodedata

__all__ = ["one_line", "visible"]


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Escape what a viewer would obey, reorder or refuse, instead of show.

    Control characters, bidirectional overrides, lone surrogates and non-characters become their
    Python escapes; all else stays.

    Args:
        text: Anything.
        keep: Control characters to leave.

    >>> visible("a\x00b\u202ec")
    'a\\x00b\\u202ec'
    """
    return "".join(
        character if character in keep or not _is_hidden(character) else _escape(character)
        for character in text
    )


def one_line(text: str, limit: int | None = None) -> str:
    r"""The same on one line, cut to `limit` characters with an ellipsis.

    >>> one_line("two\nlines", 5)
    'two\\…'
    """
    shown = visible(text, keep="")
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "\u2026"


def _is_hidden(character: str) -> bool:
    code = ord(character)
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or character in "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e"
        or 0x2066 <= code <= 0x2069
        or code & 0xFFFE == 0xFFFE
    )


def _escape(character: str) -> str:
    if ord(character) < 0x100:
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"\\x{ord(character):02x}")
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
