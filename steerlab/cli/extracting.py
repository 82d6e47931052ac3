"""`steerlab extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from steerlab.cli._app import app, err, out
from steerlab.cli._options import Device, Dtype, ModelName, Template, TrustRemoteCode, load_model

if TYPE_CHECKING:
    from steerlab.statistics import Estimate

Contrast = Literal["truth", "refusal"]


@app.command()
def extract(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="Where the direction goes (.safetensors).")],
    contrast: Annotated[Contrast, typer.Option(help="Which packaged contrast.")] = "truth",
    prompts: Annotated[
        Path | None, typer.Option(help="File or folder in place of the packaged contrast.")
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(help="Name of an estimator (lda, pca, ...); `steerlab doctor` lists them."),
    ] = "difference-in-means",
    layers: Annotated[str, typer.Option(help="`all`, `4`, `4-8` or `2,5,7`.")] = "all",
    template: Annotated[Template, typer.Option(help="For requests: auto, chat, plain or none.")] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find a direction in one model and store it as safetensors."""
    with err.status("Loading the libraries"):
        from steerlab.directions import ESTIMATORS
        from steerlab.extraction import extract_direction, labelled_prompts, require_place

    require_place(output)
    ESTIMATORS[estimator]  # an unknown name is refused before the model is loaded
    loaded = load_model(model, device, dtype, trust_remote_code)
    data = labelled_prompts(loaded, contrast, prompts, template)
    extraction = extract_direction(
        loaded,
        data.prompts,
        data.labels,
        estimator=estimator,
        layers=layers,
        data_hash=data.hash,
        pairs=data.pairs,
        polarity=data.polarity,
    )
    extraction.direction.save(output)
    out.print(_extraction_table(extraction.accuracy))
    out.print(f"Direction of {len(extraction.direction.sites)} sites: {output}", markup=False, soft_wrap=True)


def _extraction_table(accuracy: dict[str, Estimate]) -> Table:
    table = Table(
        "site", "held-out accuracy", title="Five-fold accuracy, 95 % interval", title_justify="left"
    )
    for site, estimate in accuracy.items():
        table.add_row(site, str(estimate))
    return table
