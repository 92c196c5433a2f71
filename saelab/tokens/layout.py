"""How does a run of documents become equal rows of token ids? Packing and padding.

The run of documents is three arrays of equal length, in reading order: token ids, the document
of each, and whether each is kept. Packed, the run is cut into rows wherever a row is full, a
separator stands between two documents, and what does not fill the last row is dropped. Padded,
every document begins a row of its own and no row holds two.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

__all__ = ["RowLayout", "TokenRun", "lay_out"]


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """How rows are made."""

    length: int
    """Tokens in a row, the first one included."""
    bos_token_id: int | None
    """The id every row starts with; None if rows start with text."""
    separator_token_id: int | None
    """The id between two documents of a packed row; None for nothing between them."""
    padded: bool
    """Whether each document has rows of its own, filled up at the right."""

    @property
    def text_length(self) -> int:
        """Tokens of text that a row has room for."""
        return self.length - (self.bos_token_id is not None)

    @property
    def pad_token_id(self) -> int:
        """The id that fills a row; which one does not matter, since it is masked."""
        for token in (self.separator_token_id, self.bos_token_id):
            if token is not None:
                return token
        return 0


@dataclass(frozen=True)
class TokenRun:
    """Documents one after the other, without BOS, separators or padding."""

    ids: Int32[np.ndarray, " token"]
    document: Int32[np.ndarray, " token"]
    kept: Bool[np.ndarray, " token"]

    def where(self, chosen: Bool[np.ndarray, " token"]) -> "TokenRun":
        """The chosen tokens, in the same order."""
        return TokenRun(self.ids[chosen], self.document[chosen], self.kept[chosen])


def lay_out(
    run: TokenRun, layout: RowLayout, max_rows: int | None = None
) -> tuple[
    Int32[np.ndarray, "row pos"], Int32[np.ndarray, "row pos"], Bool[np.ndarray, "row pos"], int
]:
    """Cut a run of documents into rows.

    Args:
        run: The documents, each one's tokens together.
        layout: Row length, BOS, separator, packed or padded.
        max_rows: Rows beyond this many are left out.

    Returns:
        ids, document (-1 at BOS, separators and padding), kept (False there), and how many text
        tokens found no place.
    """
    starts = np.flatnonzero(np.diff(run.document, prepend=-1))
    make_rows = _padded if layout.padded else _packed
    ids, document, kept = (part[:max_rows] for part in make_rows(run, layout, starts))
    dropped = len(run.ids) - int((document >= 0).sum())
    if layout.bos_token_id is not None:
        ids = np.pad(ids, ((0, 0), (1, 0)), constant_values=layout.bos_token_id)
        document = np.pad(document, ((0, 0), (1, 0)), constant_values=-1)
        kept = np.pad(kept, ((0, 0), (1, 0)), constant_values=False)
    return ids, document, kept, dropped


def _packed(run: TokenRun, layout: RowLayout, starts: np.ndarray) -> list[np.ndarray]:
    width = layout.text_length
    parts = [run.ids, run.document, run.kept]
    if layout.separator_token_id is not None:
        places = []
        for start in starts[1:].tolist():
            # at the start of a row the row's own BOS separates
            if layout.bos_token_id is None or (start + len(places)) % width:
                places.append(start)
        fills = (layout.separator_token_id, -1, False)
        parts = [np.insert(part, places, fill) for part, fill in zip(parts, fills, strict=True)]
    n_rows = len(parts[0]) // width
    return [part[: n_rows * width].reshape(n_rows, width) for part in parts]


def _padded(run: TokenRun, layout: RowLayout, starts: np.ndarray) -> list[np.ndarray]:
    width = layout.text_length
    sizes = np.diff(starts, append=len(run.ids))
    rows_of_each = -(-sizes // width)
    first_row = np.cumsum(rows_of_each) - rows_of_each
    offset = np.arange(len(run.ids)) - np.repeat(starts, sizes)
    target = np.repeat(first_row * width, sizes) + offset
    shape = (int(rows_of_each.sum()), width)
    filled = []
    fills = (layout.pad_token_id, -1, False)
    for part, fill in zip((run.ids, run.document, run.kept), fills, strict=True):
        rows = np.full(shape, fill, dtype=part.dtype)
        rows.reshape(-1)[target] = part
        filled.append(rows)
    return filled
