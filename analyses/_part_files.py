"""CSV files written part by part: a part's rows take the place of those of before, and say that it is done."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class PartFile:
    """A CSV file with its columns, of which `key` tells the parts apart."""

    path: Path
    columns: Sequence[str]
    key: Sequence[str]

    def rows(self) -> list[Row]:
        """All rows, none where there is no file."""
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def holds(self, part: Mapping[str, Any]) -> bool:
        """Whether the part's rows are in the file."""
        return any(self._is_of(row, part) for row in self.rows())

    def write(self, part: Mapping[str, Any], rows: Iterable[Row]) -> None:
        """Put a part's rows in place of those of before; the file is whole at every moment."""
        new = [dict(part) | row for row in rows]
        kept = [row for row in self.rows() if not self._is_of(row, part)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows([*kept, *new])
        os.replace(partial, self.path)
        print(
            f"{', '.join(str(part[name]) for name in self.key)}: {len(new)} rows of {self.path}", flush=True
        )

    def _is_of(self, row: Row, part: Mapping[str, Any]) -> bool:
        return all(row[name] == part[name] for name in self.key)
