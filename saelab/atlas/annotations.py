"""What do people say about latents? Labels, notes and stars, in a file no rebuild touches."""

import json
import sqlite3
from dataclasses import asdict, fields
from pathlib import Path
from typing import final

from saelab.atlas.records import Annotation
from saelab.atlas.written import Written, now
from saelab.errors import ConfigError, FormatError
from saelab.files import write_json

__all__ = ["Annotations"]

FORMAT = "saelab.annotations"
FORMAT_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS annotations (
    latent INTEGER NOT NULL, sign INTEGER NOT NULL, label TEXT NOT NULL, note TEXT NOT NULL,
    starred INTEGER NOT NULL, author TEXT NOT NULL, updated TEXT NOT NULL,
    PRIMARY KEY (latent, sign)
);
"""


@final
class Annotations(Written):
    """The annotations of one dictionary.

    Args:
        path: The SQLite file; made at the first write.
        d_sae: How many latents there are.
    """

    schema = _SCHEMA

    def __init__(self, path: str | Path, d_sae: int) -> None:
        super().__init__(path)
        self.d_sae = d_sae

    def write(
        self,
        latent: int,
        *,
        sign: int = 0,
        label: str | None = None,
        note: str | None = None,
        starred: bool | None = None,
        author: str = "",
    ) -> Annotation:
        """Change what is given and leave the rest.

        Raises:
            ConfigError: There is no such latent or side.
        """
        self._check(latent, sign)
        given = {"label": label, "note": note, "starred": starred}
        with self._writing() as connection:
            found = connection.execute(
                "SELECT * FROM annotations WHERE latent = ? AND sign = ?", (latent, sign)
            ).fetchone()
            old = asdict(_annotation(found)) if found else {"latent": latent, "sign": sign}
            changed = {name: value for name, value in given.items() if value is not None}
            new = Annotation(**{**old, **changed, "author": author, "updated": now()})
            _store(connection, new)
        return new

    def of(self, latent: int) -> tuple[Annotation, ...]:
        """What is written about one latent: the whole first, then its sides."""
        return tuple(
            _annotation(row)
            for row in self._read(
                "SELECT * FROM annotations WHERE latent = ? ORDER BY abs(sign), -sign", (latent,)
            )
        )

    def all(self) -> list[Annotation]:
        """Everything, by latent."""
        query = "SELECT * FROM annotations ORDER BY latent, abs(sign), -sign"
        return [_annotation(row) for row in self._read(query)]

    def remove(self, latent: int, sign: int = 0) -> None:
        """Forget what is written about a latent or a side."""
        self._check(latent, sign)
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM annotations WHERE latent = ? AND sign = ?", (latent, sign)
            )

    def save_json(self, path: str | Path) -> Path:
        """Write everything as readable JSON."""
        rows = [asdict(one) for one in self.all()]
        write_json(
            path,
            {"format": FORMAT, "version": FORMAT_VERSION, "d_sae": self.d_sae, "annotations": rows},
        )
        return Path(path)

    def load_json(self, path: str | Path, *, replace: bool = False) -> int:
        """Add what `save_json` wrote; where both have something, the later change stays.

        Args:
            path: The file.
            replace: Let the file win everywhere.

        Returns:
            How many annotations were taken over.

        Raises:
            FormatError: It is not such a file, or belongs to a dictionary of another size.
        """
        new = self._from_json(Path(path))
        taken = 0
        with self._writing() as connection:
            held = {
                (one.latent, one.sign): one
                for one in map(_annotation, connection.execute("SELECT * FROM annotations"))
            }
            for one in new:
                old = held.get((one.latent, one.sign))
                if old is None or replace or one.updated > old.updated:
                    _store(connection, one)
                    taken += 1
        return taken

    def _from_json(self, path: Path) -> list[Annotation]:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["format"] != FORMAT or value["version"] != FORMAT_VERSION:
                raise FormatError(
                    f"{path} is {value['format']} version {value['version']}; this saelab reads "
                    f"{FORMAT} version {FORMAT_VERSION}."
                )
            if value["d_sae"] != self.d_sae:
                raise FormatError(
                    f"{path} is about a dictionary of {value['d_sae']} latents; this one has "
                    f"{self.d_sae}. Import it into the atlas it was exported from."
                )
            found = [Annotation(**row) for row in value["annotations"]]
            for one in found:
                self._check(one.latent, one.sign)
                if not all(isinstance(getattr(one, n), str) for n in ("label", "note", "updated")):
                    raise TypeError("label, note and updated must be text")
        except FileNotFoundError:
            raise FormatError(f"{path} is missing.") from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path} is not a file of annotations: {error}.") from None
        return found

    def _check(self, latent: int, sign: int) -> None:
        if not 0 <= latent < self.d_sae:
            raise ConfigError(
                f"Latent {latent} is not in the dictionary, which has 0 to {self.d_sae - 1}."
            )
        if sign not in (-1, 0, 1):
            raise ConfigError(f"sign={sign} must be 1, -1, or 0 for the latent as a whole.")


def _annotation(row: tuple) -> Annotation:
    names = [field.name for field in fields(Annotation)]
    values = dict(zip(names, row, strict=True))
    return Annotation(**{**values, "starred": bool(values["starred"])})


def _store(connection: sqlite3.Connection, one: Annotation) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?)",
        tuple(asdict(one).values()),
    )
