"""Tables on disk: one Parquet file per unit or shard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows; missing columns become null."""
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), path)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or some of its columns.

    Raises:
        ValueError: The file is not a table, or lacks a column; the message names it.
    """
    try:
        return pq.read_table(
            path, columns=None if columns is None else list(columns), use_threads=False
        )
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error})") from error


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read a table as one dict per row."""
    return read_table(path, columns).to_pylist()
