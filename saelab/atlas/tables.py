"""How are an atlas's tables asked? DuckDB over Parquet, reading nothing outside the atlas.

Every thread gets a cursor of its own on one in-memory database. A query may only select, may read
only the atlas's own tables, and cannot change the settings.
"""

import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from saelab.atlas.schemas import TABLES
from saelab.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import duckdb
    import pandas

__all__ = ["AtlasTables"]

IN_MEMORY = ("latents",)
"""Small tables that every page filters; 65,536 latents take about 30 MB."""


_NAMED = """
CREATE VIEW named AS
WITH human AS (
    SELECT latent,
        first(label ORDER BY abs(sign), -sign) FILTER (label <> '') AS human_label,
        string_agg(note, chr(10) ORDER BY abs(sign), -sign) FILTER (note <> '') AS note,
        bool_or(starred) AS starred
    FROM annotations GROUP BY latent
), model AS (
    SELECT latent, first(text ORDER BY score DESC NULLS LAST, updated DESC) AS llm_label
    FROM explanations GROUP BY latent
)
SELECT latents.*,
    coalesce(human_label, llm_label, auto_label) AS label,
    coalesce(human_label, '') AS human_label,
    coalesce(llm_label, '') AS llm_label,
    coalesce(note, '') AS note,
    coalesce(starred, false) AS starred
FROM latents LEFT JOIN human USING (latent) LEFT JOIN model USING (latent)
"""


@final
class AtlasTables:
    """The tables of one atlas.

    Args:
        folder: Where the Parquet files are.
        made: Which of the optional tables there are.
    """

    def __init__(self, folder: Path, made: Collection[str] = ()) -> None:
        import duckdb

        self.folder = folder
        self._lock = threading.Lock()
        paths = {name: folder / f"{name}.parquet" for name in (*TABLES, *made)}
        self._connection = duckdb.connect(":memory:")
        execute = self._connection.execute
        execute("SET threads = 2")
        execute("SET parquet_metadata_cache = true")
        try:
            for name, path in paths.items():
                kind = "TABLE" if name in IN_MEMORY else "VIEW"
                execute(f"CREATE {kind} {name} AS SELECT * FROM read_parquet({_quoted(path)})")
        except duckdb.Error as error:
            raise CheckpointError(
                f"A table of the atlas in {folder} cannot be read: {_first_line(error)} Build the "
                "atlas again."
            ) from None
        if "decoder_map" not in made:
            execute("CREATE TABLE decoder_map (latent INTEGER, x FLOAT, y FLOAT)")
        execute(
            "CREATE TABLE annotations (latent INTEGER, sign TINYINT, label VARCHAR, note VARCHAR, "
            "starred BOOLEAN, author VARCHAR, updated VARCHAR)"
        )
        execute(
            "CREATE TABLE explanations (latent INTEGER, sign TINYINT, text VARCHAR, "
            "model VARCHAR, method VARCHAR, score DOUBLE, score_name VARCHAR, updated VARCHAR)"
        )
        execute(_NAMED)
        execute("SET python_enable_replacements = false")
        allowed = ", ".join(_quoted(path) for path in paths.values())
        execute(f"SET allowed_paths = [{allowed}]")
        execute("SET enable_external_access = false")
        execute("SET lock_configuration = true")

    def replace(self, table: str, rows: Iterable[tuple]) -> None:
        """Put rows in place of what a table of people's or models' words holds."""
        rows = list(rows)
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN")
            cursor.execute(f"DELETE FROM {table}")
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            cursor.execute("COMMIT")

    def run(self, query: str, parameters: Sequence[Any] = ()) -> "duckdb.DuckDBPyConnection":
        """Run a query that saelab wrote."""
        return self._connection.cursor().execute(query, list(parameters))

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Its rows, by column name."""
        found = self.run(query, parameters)
        names = [column[0] for column in found.description or []]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def named(self, query: str, parameters: dict[str, Any]) -> list[tuple]:
        """Rows of a query that saelab wrote with named parameters."""
        return self._connection.cursor().execute(query, parameters).fetchall()

    def asked(self, query: str, parameters: Sequence[Any] = ()) -> "pandas.DataFrame":
        """Run a query that someone typed.

        Raises:
            ConfigError: It is not one SELECT, or DuckDB refuses it.
        """
        import duckdb

        try:
            statements = self._connection.extract_statements(query)
            kinds = [statement.type for statement in statements]
            if len(kinds) != 1 or kinds[0] != duckdb.StatementType.SELECT:
                raise ConfigError(
                    "An atlas is read with one SELECT; found "
                    f"{', '.join(kind.name for kind in kinds) or 'nothing'}."
                )
            return self._connection.cursor().execute(query, list(parameters)).df()
        except duckdb.Error as error:
            raise ConfigError(f"DuckDB refuses the query: {_first_line(error)}") from None

    def close(self) -> None:
        """Let the files go."""
        self._connection.close()


def _quoted(path: Path) -> str:
    text = str(path.absolute()).replace("'", "''")
    return f"'{text}'"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:400]
