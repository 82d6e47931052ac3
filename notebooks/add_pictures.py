"""Puts a picture beside every plotly figure of the committed notebooks: code hosts strip scripts, so they show none else.

    python notebooks/add_pictures.py          # all notebooks here; needs a browser (steerlab.plots.save)

A front end that draws plotly still does; one that doesn't shows the PNG.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go

from steerlab.plots import save_all

PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"


def bare(notebook: Any) -> Iterator[dict[str, Any]]:
    """The outputs of a notebook that are a plotly figure without a picture."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data and PICTURE not in data:
                yield data


def main() -> None:
    """Draw what is missing, in one browser for all notebooks."""
    paths = sorted(Path(__file__).parent.glob("*.ipynb"))
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    missing = [data for notebook in notebooks.values() for data in bare(notebook)]
    with tempfile.TemporaryDirectory() as folder:
        pictures = {
            Path(folder) / f"{number}.png": go.Figure(
                data=data[PLOTLY]["data"], layout=data[PLOTLY]["layout"], skip_invalid=True
            )
            for number, data in enumerate(missing)
        }
        for saved, data in zip(save_all(pictures, width=760), missing, strict=True):
            if saved.reason:
                raise SystemExit(f"No picture was drawn: {saved.reason}.")
            data[PICTURE] = base64.b64encode(saved.path.read_bytes()).decode()
    for path, notebook in notebooks.items():
        nbformat.write(notebook, path)
    print(f"{len(missing)} pictures added to {len(paths)} notebooks")


if __name__ == "__main__":
    main()
