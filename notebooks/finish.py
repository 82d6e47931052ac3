"""What a notebook that ran still needs before it is committed.

    python notebooks/finish.py          # all notebooks here; needs a browser (steerlab.plots.save)

A picture beside every plotly figure: code hosts strip scripts, so they show none else, and a front end that draws
plotly still does. And nothing that libraries said on standard error, which names folders of the machine.
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


def without_errors(notebook: Any) -> Any:
    """The notebook without what was said on standard error."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Draw what is missing, in one browser for all notebooks."""
    paths = sorted(Path(__file__).parent.glob("*.ipynb"))
    notebooks = {path: without_errors(nbformat.read(path, as_version=4)) for path in paths}
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
