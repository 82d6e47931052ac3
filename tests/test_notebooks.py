"""Every notebook runs from top to bottom, and is committed with its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
# Before a notebook: a clean namespace in an empty folder, and studies that read less.
PREAMBLE = """
%reset -f
import os, sys
os.chdir({folder!r})
sys.path.insert(0, {tests!r})
import smaller
smaller.use_smaller_amounts()
smaller.use_a_smaller_card()
del os, sys, smaller
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    """One kernel for all notebooks, since starting it and importing torch takes longer than most cells."""
    client = NotebookClient(new_notebook(), timeout=None, kernel_name="python3")
    with client.setup_kernel():
        yield client


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, kernel: NotebookClient, tmp_path: Path) -> None:
    """Each cell in its turn; a cell that raises raises here."""
    preamble = PREAMBLE.format(folder=str(tmp_path), tests=str(Path(__file__).parent))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    kernel.nb.cells = [new_code_cell(preamble), *cells]
    for number, cell in enumerate(kernel.nb.cells):
        kernel.execute_cell(cell, number)
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert any(cell.outputs for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_picture_beside_it(path: Path) -> None:
    """Code hosts strip scripts, so plotly's own output shows nothing there (`notebooks/finish.py`)."""
    outputs = [
        output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])
    ]
    figures = [
        data for output in outputs if "application/vnd.plotly.v1+json" in (data := output.get("data", {}))
    ]
    assert figures
    assert all(data.get("image/png", "").startswith("iVBOR") for data in figures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_shows_and_says_what_would_change_its_answer(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert "?" in cells[0].source.split("\n\n")[0]
    code = [number for number, cell in enumerate(cells) if cell.cell_type == "code"]
    shown = [
        number for number in code if any("image/png" in out.get("data", {}) for out in cells[number].outputs)
    ]
    assert shown[0] in code[:2], "the first figure stands further down than the first screen"
    assert "What would change this answer" in cells[-1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_is_committed(path: Path) -> None:
    """No standard error, which names folders of the machine it ran on (`notebooks/finish.py` takes it out)."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert [
        output.name for output in outputs if output.output_type == "stream" and output.name != "stdout"
    ] == []
    assert "site-packages" not in path.read_text("utf-8")


def test_there_is_a_quick_start() -> None:
    assert "01_quick_start" in [path.stem for path in NOTEBOOKS]
