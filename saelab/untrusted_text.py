"""Which characters of a model's or a corpus's text would act on a page, and how are they shown?"""

from collections.abc import Mapping
from unicodedata import category

__all__ = ["LINE_MARKS", "spelled_out"]

LINE_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
"""Line ends and tabs as one quiet sign each."""
_ACTING = {"Cc", "Cf", "Co", "Cs", "Cn"}
_JOINER = "\u200d"  # it only joins emoji and letters into one sign


def spelled_out(text: str, marks: Mapping[str, str] = LINE_MARKS) -> str:
    r"""Text in which nothing acts: what would reorder, hide or control is shown by its code point.

    It is not yet HTML: escape it before it enters a page.

    Args:
        text: Anything, lone surrogates included.
        marks: What certain characters are shown as; here line ends and tabs.

    >>> spelled_out("a\u202eb\n"), spelled_out("a\n", marks={"\n": "\n"})
    ('a⟨202E⟩b↵', 'a\n')
    """
    # One expression, because pages call it for every token they show.
    return "".join(
        marks.get(letter)
        or (f"⟨{ord(letter):04X}⟩" if category(letter) in _ACTING and letter != _JOINER else letter)
        for letter in text
    )
