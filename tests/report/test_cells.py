from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report.sample import estimate, results
from rich.console import Console

from steerlab import plots
from steerlab.plots import Series
from steerlab.report import terminal_table
from steerlab.report.cells import csv_text, numeric_columns, shown, table_of_figure
from steerlab.results import Cell, SkippedResult, Table
from steerlab.statistics import Estimate


@pytest.mark.parametrize(
    ("cell", "text", "interval"),
    [
        (Estimate(value=0.83, low=0.79, high=0.87), "0.83", "[0.79, 0.87]"),
        (Estimate(value=math.nan), "n/a", ""),
        (True, "yes", ""),
        (12345, "12,345", ""),
        (0.12345, "0.123", ""),
        (0.0, "0", ""),
        (1.5e-7, "1.50e-07", ""),
        (1234.56, "1,234.6", ""),
        (89.1, "89.1", ""),
        (-1.489, "-1.49", ""),
        (None, "–", ""),
        ("<b>", "<b>", ""),
    ],
)
def test_cells_as_people_read_them(cell: Cell, text: str, interval: str) -> None:
    assert (shown(cell).text, shown(cell).interval) == (text, interval)


def test_the_hint_says_how_the_interval_was_made() -> None:
    assert shown(estimate(0.5)).hint == "n = 60; cluster bootstrap, seed 0"


def test_numeric_columns() -> None:
    table = Table(
        key="k", title="t", columns=["a", "b", "c", "d"], rows=[[1, "x", None, True], [None, 2, None, False]]
    )
    assert numeric_columns(table) == [True, False, False, False]


@settings(deadline=None, max_examples=50)
@example([("\r", 0.0), ('"\n,', 1.5)])
@given(
    st.lists(st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=5)
)
def test_csv_keeps_every_cell(rows: list[tuple[str, float]]) -> None:
    cells: list[list[Cell]] = [[text, Estimate(value=value, n=3)] for text, value in rows]
    read = list(
        csv.reader(
            io.StringIO(csv_text(Table(key="k", title="t", columns=["a", "b"], rows=cells)), newline="")
        )
    )
    assert read[0] == ["a", "b", "b low", "b high", "b n"]
    assert [(row[0], float(row[1]), row[2], row[4]) for row in read[1:]] == [(t, v, "", "3") for t, v in rows]


def test_tables_of_figures_hold_what_is_drawn() -> None:
    line = Series("POST", [0.5, 0.7], [0.4, math.nan], [0.6, math.nan], x=[0.2, 0.8], n=[3, 4])
    table = table_of_figure("k", "t", plots.reliability([line], title="x"))
    assert table.columns == ["Series", "Confidence", "Share right"]
    assert [row[:2] for row in table.rows] == [["POST", 0.2], ["POST", 0.8]]
    assert str(table.rows[0][2]) == "0.50 [0.40, 0.60]"
    assert str(table.rows[1][2]) == "0.70 [n/a]"
    name = "a <name> that is far too long for a tick label & more"
    bars = table_of_figure("k", "t", plots.bars([name], [Series("BASE", [1.0])], title="x", x_title="Topic"))
    assert bars.columns[1] == "Topic"
    assert bars.rows == [["BASE", name, 1.0]]
    heat = table_of_figure(
        "k", "t", plots.heatmap([[1, 2]], [name, "b"], ["c"], title="x", low=[[0, 1]], high=[[2, 3]])
    )
    assert heat.columns == ["", name, "b"]
    assert str(heat.rows[0][2]) == "2.00 [1.00, 3.00]"


def test_terminal_table_shows_the_main_number_of_each_study() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal_table(results()))
    text = console.export_text()
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "0.93 [0.88, 0.98]" in rows["Truthfulness"]
    assert "0.00 [-0.12, 0.12] random directions" in rows["Truthfulness"]
    assert "not identified" in rows["Refusal"]
    assert "surer than it is right" in rows["Confidence"]
    assert "different vocabularies" in rows["Branching"]


def test_terminal_table_takes_no_markup_from_results() -> None:
    result = results()[1].model_copy(update={"headline": None, "summary": ["[bold]x[/bold] [/nonsense]"]})
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal_table({"refusal": result}))
    assert "[bold]x[/bold] [/nonsense]" in console.export_text()


def test_terminal_table_sends_no_escape_sequence_of_a_run() -> None:
    console = Console(file=io.StringIO(), width=200)
    result = SkippedResult(study="refusal", reason="\x1b]0;owned\x07\x1b[2J")
    console.print(terminal_table([result]))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "␛]0;owned␇␛[2J" in written
    assert "\x1b" not in written
