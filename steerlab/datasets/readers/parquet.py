"""The rows of a Parquet file, through pyarrow where it is installed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from steerlab.datasets.readers import source
from steerlab.errors import DatasetError, reason


def parquet_rows(file: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The names of a Parquet file's columns, and its rows.

    Raises:
        DatasetError: pyarrow is not installed, or the file is damaged or too large.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(
            f"{file}: Parquet files need the library pyarrow; install steerlab[parquet]."
        ) from error
    data = source.bytes_of(file)
    try:
        opened = parquet.ParquetFile(io.BytesIO(data))
        groups = (opened.metadata.row_group(number) for number in range(opened.num_row_groups))
        if sum(group.total_byte_size for group in groups) > source.LIMIT:
            raise source.too_large(file)
        table = opened.read()
        return tuple(table.column_names), table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file}: not a Parquet file ({reason(error)}); save the file again.") from error
