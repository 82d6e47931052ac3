"""The committed tables of SmolLM2 against itself: what stands of base stands of post, and every difference is zero."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[1] / "figures" / "smollm2_identical"
#: Tables of differences and ratios: the column, what it is of equal models, and the rows that it is so in.
BETWEEN = [
    ("confidence_changes", "change", 0.0, ""),
    ("branching_ratios", "value", 1.0, "base over post"),
    ("branching_prompt_sets", "ratio", 1.0, ""),
    ("branching_attribution", "factor on BF", 1.0, "model"),
]


def rows(name: str) -> list[dict[str, str]]:
    with (FIGURES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("name", "column", "none", "named"), BETWEEN)
def test_every_difference_is_none(name: str, column: str, none: float, named: str) -> None:
    found = [row for row in rows(name) if next(iter(row.values())).startswith(named)]
    assert found
    for row in found:
        assert [float(row[column + end]) for end in ("", " low", " high")] == [none] * 3
        assert row["base_sha256"] == row["post_sha256"]


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.csv")), ids=lambda path: path.stem)
def test_rows_of_base_are_rows_of_post(path: Path) -> None:
    table = rows(path.stem)
    if "model" in (table or [{}])[0]:
        of = {
            role: [list(row.values())[1:] for row in table if row["model"] == role]
            for role in ("base", "post")
        }
        assert of["base"] == of["post"]


def test_no_sentence_names_a_change() -> None:
    said = json.loads((FIGURES / "summary.json").read_text("utf-8"))
    assert any("no change" in line for line in said["confidence"]["says"])
    assert any(line.startswith("No change") for line in said["branching"]["says"])
    assert {study["status"] for study in said.values()} == {"not identified"}
