"""What stands in a file of data: a regular file, unpacked where it ends in .gz, bounded, in UTF-8.

A device or a pipe may never end, and a small packed file may unpack to more than the memory holds: both are refused
before they are read.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from pathlib import Path

from steerlab.errors import DatasetError, reason

#: Bytes that are read of one file, unpacked.
LIMIT = 2**29


def ending_of(file: Path) -> str:
    """The ending that tells the format, in lower case: ".csv" of both "a.csv" and "a.CSV.gz"."""
    return _unpacked(file).suffix.lower()


def stem_of(file: Path) -> str:
    """The name without endings: "cities" of both "cities.csv" and "cities.csv.gz"."""
    return _unpacked(file).stem


def bytes_of(file: Path) -> bytes:
    """The bytes of a file, unpacked. Raises `DatasetError` for a file that is not to be read or is too large."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise DatasetError(f"{file}: cannot be read (a device or a pipe); name a regular file.")
        with gzip.open(file) if _is_packed(file) else file.open("rb") as opened:
            data = opened.read(LIMIT + 1)
    except DatasetError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{file}: cannot be unpacked ({reason(error)}); pack the file again.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no file can have that name"
        raise DatasetError(f"{file}: cannot be read ({why}); name an existing file or folder.") from error
    if len(data) > LIMIT:
        raise too_large(file)
    return data


def text_of(file: Path) -> str:
    """The text of a file. Raises `DatasetError` as `bytes_of`, and for what is not UTF-8."""
    data = bytes_of(file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{file}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8."
        ) from error


def lines_of(file: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, each with its number from 1. Raises `DatasetError` as `text_of`."""
    lines = text_of(file).replace("\r\n", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def too_large(file: Path) -> DatasetError:
    """The error that a file holds more than is read."""
    return DatasetError(
        f"{file}: holds more than {LIMIT / 2**20:.0f} MiB; split the file, or leave out what is not needed."
    )


# -- private --


def _is_packed(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _unpacked(file: Path) -> Path:
    return file.with_suffix("") if _is_packed(file) else file
