"""Parquet files that are there whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.atlas.schemas import arrow_schema
from saelab.errors import CheckpointError, DiskFullError
from saelab.files import sha256_of

if TYPE_CHECKING:
    import pyarrow

__all__ = ["join_parts", "read_table", "table_of", "write_table"]

ROWS_PER_GROUP = {"examples": 4096, "near_misses": 4096, "logit_histograms": 1024}
"""Rows read at least when one latent is looked up."""
_COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 3}


def table_of(name: str, columns: dict[str, Any]) -> "pyarrow.Table":
    """An Arrow table of the atlas's table `name`, its columns in order and of the right type."""
    import pyarrow as pa

    schema = arrow_schema(name)
    arrays = []
    for field in schema:
        column = columns[field.name]
        if hasattr(column, "numpy") and not isinstance(column, pa.Array):
            column = column.numpy()
        if not isinstance(column, pa.Array):
            column = pa.array(column, from_pandas=True)
        arrays.append(column.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_table(
    path: str | Path, table: "pyarrow.Table", *, durable: bool = True
) -> dict[str, Any]:
    """Write a table atomically; returns its sha256, bytes and rows.

    Args:
        path: Where it goes.
        table: What it holds.
        durable: Wait until the disk has it; not needed where the hash is checked before use.
    """
    return _written(Path(path), table.schema, [table], durable)


def join_parts(path: str | Path, name: str, parts: Sequence[Path]) -> dict[str, Any]:
    """Write the rows of several files as one, a row group at a time.

    Raises:
        CheckpointError: A part cannot be read.
    """

    def groups() -> Iterator["pyarrow.Table"]:
        for part in parts:
            with _opened(part) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group)

    return _written(Path(path), arrow_schema(name), groups(), durable=True)


def read_table(path: str | Path) -> "pyarrow.Table":
    """Read a whole file.

    Raises:
        CheckpointError: It is missing or is not whole.
    """
    with _opened(Path(path)) as file:
        return file.read()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. Build the atlas again.") from None
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(
            f"{path} is not a complete Parquet file ({error}). Build the atlas again."
        ) from None


def _written(path: Path, schema: Any, tables: Any, durable: bool) -> dict[str, Any]:
    import pyarrow.parquet as pq

    group = ROWS_PER_GROUP.get(path.stem, ROWS_PER_GROUP.get(path.parent.name, 16384))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            with pq.ParquetWriter(handle, schema, **_COMPRESSION) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=group)
                    rows += table.num_rows
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        record = {"sha256": sha256_of(temporary), "bytes": temporary.stat().st_size, "rows": rows}
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"No room to write {path}: {error.strerror}. What was finished before is kept; "
                "free some space and run the same command again."
            ) from error
        raise
    return record
