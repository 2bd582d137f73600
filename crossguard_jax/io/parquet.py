"""Rows of Parquet files, a few at a time: a picture column of gigabytes is never held whole."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.io import archives
from crossguard_jax.io.files import note
from crossguard_jax.io.lines import CUT, Row, RowError

ROWS_AT_ONCE = 16


def read_parquet(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields ``(position from 1, dict of the columns or RowError)`` for each row.

    Raises:
      UserError: the file cannot be opened, is no Parquet, or has no such column.
    """
    from pyarrow import ArrowException, parquet  # takes a second to import, and few need it

    row = 0
    try:
        note(Path(path))
        with archives.opened(path) as opened:
            file = parquet.ParquetFile(opened)
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                there = short(", ".join(file.schema_arrow.names))
                raise UserError(f"{path}: no column {missing[0]!r} (there are {there})")
            batch: Any
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                for value in batch.to_pylist():
                    row += 1
                    yield row, value
    except (OSError, ArrowException) as error:
        if row == 0:
            raise UserError(
                f"{path}: cannot be read as Parquet ({short(error)}); download it again"
            ) from error
        yield row + 1, RowError(f"{CUT} ({short(error)}); download it again")
