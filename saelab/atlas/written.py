"""Where is kept what people and models write about latents? In SQLite files no rebuild touches.

SQLite lets several processes write a file at once: each change is one transaction, and a writer
waits for another for up to ten seconds.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from saelab.errors import CheckpointError

__all__ = ["Written", "now"]

WAIT_SECONDS = 10.0
_REVISIONS = "CREATE TABLE IF NOT EXISTS revisions (number INTEGER PRIMARY KEY AUTOINCREMENT);"


class Written:
    """A file of such words.

    Args:
        path: The SQLite file; made at the first write.
    """

    schema: ClassVar[str]
    """SQL that makes its tables where they are missing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def revision(self) -> int:
        """A number that grows with every change, whoever makes it; 0 if nothing was written."""
        found = self._read("SELECT max(number) FROM revisions")
        return int(found[0][0] or 0) if found else 0

    def _read(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple]:
        if not self.path.exists():
            return []
        with self._connected() as connection:
            return connection.execute(query, parameters).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            connection.executescript(self.schema + _REVISIONS)
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("INSERT INTO revisions DEFAULT VALUES")
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection for a moment; what was begun and not committed is undone when it ends.

        Raises:
            CheckpointError: The file is damaged, or another process holds it for too long.
        """
        connection = None
        try:
            connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
            yield connection
        except sqlite3.DatabaseError as error:
            raise CheckpointError(
                f"{self.path} cannot be used ({error}). If another process is writing it, try "
                "again; if it is damaged, restore it from a copy, or move it away to start anew."
            ) from None
        finally:
            if connection is not None:
                connection.close()


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
