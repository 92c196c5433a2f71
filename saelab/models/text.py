"""How does text become token ids and back, with a tokenizer or without one?"""

import re
from collections.abc import Sequence
from typing import Any, final

from saelab.errors import ModelError

__all__ = ["TextCodec", "special_ids"]

_OPEN = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"
_CLOSE = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"


@final
class TextCodec:
    """Text to token ids and back. Without a tokenizer, an id reads as itself in angle quotes."""

    def __init__(self, model_name: str, tokenizer: Any | None) -> None:
        """Keep the tokenizer; None makes token ids stand for text."""
        self.model_name = model_name
        self.tokenizer = tokenizer
        self._strings: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids, with no special token added; one spelled out in the text is plain text."""
        if self.tokenizer is not None:
            # A long text is no mistake here, whatever the tokenizer would say of its length.
            return self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
        if not re.fullmatch(rf"[\d\s,{_OPEN}{_CLOSE}]*", text):
            raise ModelError(
                f"{self.model_name} has no tokenizer, so text must be token ids such as '5 17'; "
                f"found {text[:40]!r}. Give load_model a tokenizer to use words."
            )
        return [int(number) for number in re.findall(r"\d+", text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids, special tokens included."""
        if self.tokenizer is None:
            return "".join(f"{_OPEN}{int(token)}{_CLOSE}" for token in ids)
        plain = [int(token) for token in ids]
        return self.tokenizer.decode(
            plain, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself."""
        strings = []
        for token in map(int, ids):
            if token not in self._strings:
                self._strings[token] = self._string(token)
            strings.append(self._strings[token])
        return strings

    def _string(self, token: int) -> str:
        text = self.decode([token])
        if self.tokenizer is None:
            return text
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # an id the model has and the tokenizer has not
            return text or f"{_OPEN}{token}{_CLOSE}"
        if "\N{REPLACEMENT CHARACTER}" in text:  # part of a character that takes several tokens
            return _byte_escapes(piece) or text
        if piece.startswith("▁") and not text.startswith(" "):  # SentencePiece drops a first space
            return piece.replace("▁", " ")
        return text

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model's answer would start."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            lacks = "tokenizer" if self.tokenizer is None else "chat template"
            raise ModelError(
                f"{self.model_name} has no {lacks}, so it cannot hold a conversation. "
                "Use encode() on plain text, or load a model tuned for chat."
            )
        assert self.tokenizer is not None
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )


def special_ids(tokenizer: Any | None, bos_token_id: int | None) -> frozenset[int]:
    """Ids that stand for no text: what the tokenizer marks as special, and the BOS."""
    ids = {bos_token_id}
    if tokenizer is not None:
        ids |= set(tokenizer.all_special_ids)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids |= {token for token, entry in added.items() if entry.special}
    return frozenset(token for token in ids if token is not None)


def _byte_escapes(piece: str) -> str:
    """A byte-level vocabulary entry, bytes beyond ASCII escaped; empty if it is none."""
    if any(character not in _BYTE_OF for character in piece):
        return ""
    values = [_BYTE_OF[character] for character in piece]
    return "".join(chr(value) if value < 128 else f"\\x{value:02x}" for value in values)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write any byte as one printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF = _byte_alphabet()
