"""What is a set of tokens? Equal rows of ids that know their documents and what is excluded.

Rows all have the same length and begin with the model's BOS token. Every position knows the
document it belongs to, and whether it is *kept*: BOS, separators between documents, padding and
special tokens are read by the model but excluded from training, evaluation and display.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.errors import ConfigError, CorpusError, ShapeError
from saelab.files import provenance, read_json, read_tensors, write_json, write_tensors
from saelab.models import LanguageModel
from saelab.tokens.division import count_of, draw_documents
from saelab.tokens.layout import RowLayout, TokenRun, lay_out
from saelab.tokens.statistics import describe_run

__all__ = ["Tokens"]

_FORMAT_VERSION = 1


@final
@dataclass(frozen=True, eq=False)
class Tokens:
    """Rows of token ids with the document of each position and what is excluded."""

    ids: Int[Tensor, "row pos"]
    """Token ids, int32."""
    document: Int[Tensor, "row pos"]
    """Index into `document_names`, int32; -1 at BOS, separators and padding."""
    kept: Bool[Tensor, "row pos"]
    """False at BOS, separators, padding and special tokens: excluded everywhere downstream."""
    document_names: list[str]
    """Name of each document, in reading order."""
    bos_token_id: int | None
    """The id every row begins with; None if rows begin with text."""
    corpus: dict[str, Any] = field(default_factory=dict)
    """name, licence, source, sha256 of the text, and what was left out; JSON-able."""
    tokenizer: str = "none"
    """Class and vocabulary hash of the tokenizer."""
    separator_token_id: int | None = None
    """The id between two documents in one row."""
    padded: bool = False
    """Whether rows are filled up at the right, each holding one document."""

    def __post_init__(self) -> None:
        """Store ids and documents as int32."""
        if not self.ids.shape == self.document.shape == self.kept.shape:
            raise ShapeError(
                f"ids {tuple(self.ids.shape)}, document {tuple(self.document.shape)} and kept "
                f"{tuple(self.kept.shape)} must have one shape [row, pos]."
            )
        object.__setattr__(self, "ids", self.ids.to(torch.int32))
        object.__setattr__(self, "document", self.document.to(torch.int32))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens in a row, BOS included."""
        return self.ids.shape[1]

    @property
    def n_tokens(self) -> int:
        """Positions in all, kept or not: rows times length."""
        return self.ids.numel()

    @property
    def n_kept(self) -> int:
        """Positions that training, evaluation and display use."""
        return int(self.kept.sum())

    @property
    def mask(self) -> Bool[Tensor, "row pos"]:
        """Attention mask for the model: False at the padding on the right, True elsewhere."""
        if not self.padded:
            return torch.ones_like(self.kept)
        inside = self.document >= 0
        return inside.flip(1).cumsum(1).flip(1) > 0

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over shape, ids, documents and kept positions, as lower-case hex."""
        digest = hashlib.sha256(repr(tuple(self.ids.shape)).encode())
        for tensor in (self.ids, self.document, self.kept):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, rows: slice | int) -> "Tokens":
        if not isinstance(rows, slice):  # one row as a Tokens would lose its row axis
            raise ConfigError(
                f"Tokens are cut by rows: tokens[3:4], not tokens[{rows!r}]. "
                "For one row's ids use tokens.ids[3]."
            )
        return replace(self, ids=self.ids[rows], document=self.document[rows], kept=self.kept[rows])

    def describe(self) -> str:
        """One sentence: how much text, from where, and what is excluded.

        >>> tokens = Tokens(torch.tensor([[0, 5, 6]]), torch.tensor([[-1, 0, 0]]),
        ...                 torch.tensor([[False, True, True]]), ["a"], 0, {"name": "a"})
        >>> tokens.describe()  # doctest: +NORMALIZE_WHITESPACE
        '1 row of 3 tokens from 1 document of a; 2 of 3 positions are kept: BOS, separators,
        padding and special tokens are excluded from training, evaluation and display.'
        """
        documents = len(torch.unique(self.document[self.document >= 0]))
        return (
            f"{count_of(self.n_rows, 'row')} of {count_of(self.length, 'token')} from "
            f"{count_of(documents, 'document')} of {self.corpus.get('name', 'unnamed text')}; "
            f"{self.n_kept:,} of {self.n_tokens:,} positions are kept: BOS, separators, padding "
            "and special tokens are excluded from training, evaluation and display."
        )

    def split(
        self,
        held_out: float = 0.1,
        seed: int = 0,
        by: Literal["document", "position"] = "document",
    ) -> tuple["Tokens", "Tokens"]:
        """Divide into training and held-out tokens that share no document.

        Whole documents are drawn at random for the held-out side until it has about the wanted
        share of the text, and each side's documents are laid out in rows anew. Document indices
        and names stay those of the whole. Same seed, same split.

        Args:
            held_out: Wanted share of the text tokens, between 0 and 1.
            seed: Draws the documents.
            by: "document"; or "position", which holds out the last rows as they are and so lets
                the document at the cut be on both sides: the only way to split a single document.

        Returns:
            (training, held out).

        Raises:
            ConfigError: `held_out` is not between 0 and 1.
            CorpusError: There are too few documents, or too little text for a row on each side.
        """
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out={held_out} must be between 0 and 1, both excluded.")
        if by == "position":
            return self._split_rows(held_out)
        run, _ = self.run()
        inside = np.isin(run.document, draw_documents(run.document, held_out, seed))
        notes = {"held_out": held_out, "seed": seed, "by": by}
        return (
            self._laid_out(run.where(~inside), {"part": "training", **notes}),
            self._laid_out(run.where(inside), {"part": "held out", **notes}),
        )

    def _split_rows(self, held_out: float) -> tuple["Tokens", "Tokens"]:
        cut = self.n_rows - round(self.n_rows * held_out)
        if not 0 < cut < self.n_rows:
            raise CorpusError(
                f"{count_of(self.n_rows, 'row')} cannot be split with held_out={held_out}: one "
                "side would be empty. Use more text, shorter rows, or another share."
            )
        notes = {"held_out": held_out, "by": "position"}
        train, held = (
            replace(side, corpus={**side.corpus, "split": {"part": part, **notes}})
            for part, side in (("training", self[:cut]), ("held out", self[cut:]))
        )
        return train, held

    def _laid_out(self, run: TokenRun, notes: dict[str, Any]) -> "Tokens":
        layout = RowLayout(
            length=self.length,
            bos_token_id=self.bos_token_id,
            separator_token_id=self.separator_token_id,
            padded=self.padded,
        )
        ids, document, kept, dropped = lay_out(run, layout)
        if not len(ids):
            raise CorpusError(
                f"The {notes['part']} side has {len(run.ids):,} text tokens, fewer than one row of "
                f"{self.length}. Use more text, shorter rows, or another share than "
                f"held_out={notes['held_out']}."
            )
        return replace(
            self,
            ids=torch.from_numpy(ids),
            document=torch.from_numpy(document),
            kept=torch.from_numpy(kept),
            corpus={**self.corpus, "dropped_tokens": dropped, "split": notes},
        )

    def run(self) -> tuple[TokenRun, Int[np.ndarray, " token"]]:
        """The documents' tokens one after the other, and the row each came from."""
        document = self.document.cpu().numpy().reshape(-1)
        place = np.flatnonzero(document >= 0)
        run = TokenRun(
            ids=self.ids.cpu().numpy().reshape(-1)[place],
            document=document[place],
            kept=self.kept.cpu().numpy().reshape(-1)[place],
        )
        return run, place // self.length

    def statistics(self, model: LanguageModel | None = None) -> dict[str, Any]:
        """Counts, frequent tokens, entropy, document lengths and repetition; JSON-able.

        Args:
            model: If given, the most frequent tokens are spelt out.

        Returns:
            n_tokens, n_kept, rows, length and documents, and what
            `saelab.tokens.statistics.describe_run` counts over the kept tokens.
        """
        run, _ = self.run()
        found = describe_run(run, len(self.document_names))
        if model is not None:
            strings = model.token_strings([entry["token"] for entry in found["top_tokens"]])
            for entry, string in zip(found["top_tokens"], strings, strict=True):
                entry["text"] = string
        return {
            "n_tokens": self.n_tokens,
            "n_kept": self.n_kept,
            "rows": self.n_rows,
            "length": self.length,
            "documents": len(np.unique(run.document)),
            **found,
        }

    def save(self, path: str | Path) -> None:
        """Write `tokens.safetensors` and `tokens.json` into the folder `path`."""
        tensors = {"ids": self.ids, "document": self.document, "kept": self.kept}
        digest = write_tensors(Path(path) / "tokens.safetensors", tensors)
        write_json(
            Path(path) / "tokens.json",
            {
                "format_version": _FORMAT_VERSION,
                "files": {"tokens.safetensors": digest},
                "sha256": self.sha256,
                "bos_token_id": self.bos_token_id,
                "separator_token_id": self.separator_token_id,
                "padded": self.padded,
                "tokenizer": self.tokenizer,
                "corpus": self.corpus,
                "provenance": provenance(),
                "document_names": self.document_names,
            },
        )

    @staticmethod
    def load(path: str | Path) -> "Tokens":
        """Read what `save` wrote.

        Raises:
            CorpusError: A file is missing, truncated, altered or of a newer format.
        """
        manifest_path = Path(path) / "tokens.json"
        manifest = read_json(manifest_path, "a manifest of tokens", CorpusError)
        if (version := manifest.get("format_version")) != _FORMAT_VERSION:
            raise CorpusError(
                f"{manifest_path} has format version {version}; this saelab reads "
                f"{_FORMAT_VERSION}. Use the saelab that wrote it, or make the tokens again."
            )
        try:
            digest = manifest["files"]["tokens.safetensors"]
            tensors = read_tensors(Path(path) / "tokens.safetensors", digest, CorpusError)
            names = ("document_names", "bos_token_id", "corpus", "tokenizer")
            names += ("separator_token_id", "padded")
            return Tokens(**tensors, **{name: manifest[name] for name in names})
        except KeyError as cause:
            raise CorpusError(
                f"{manifest_path} lacks the entry {cause}: it was altered. Restore it, or make "
                "the tokens again."
            ) from None
