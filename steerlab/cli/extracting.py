"""`steerlab extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from steerlab.cli._app import app, err, out
from steerlab.cli._options import Device, Dtype, ModelName, Template, TrustRemoteCode, load_model

if TYPE_CHECKING:
    from steerlab.directions import Direction
    from steerlab.extraction import LabelledPrompts
    from steerlab.models import LanguageModel


@app.command()
def extract(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="Where the direction goes (.safetensors).")],
    contrast: Annotated[
        str | None,
        typer.Option(
            help="truth (if nothing is named), refusal, another packaged contrast (formal, happy, ...; a wrong "
            "name lists them), or a file of your own: rows of text and label (any two), or of positive and negative."
        ),
    ] = None,
    positive: Annotated[
        Path | None, typer.Option(help="A file of texts, one a line, that the direction points to.")
    ] = None,
    negative: Annotated[Path | None, typer.Option(help="A file of the other texts, one a line.")] = None,
    label: Annotated[
        str | None, typer.Option(help="The label that the direction points to, where the classes have names.")
    ] = None,
    estimator: Annotated[
        str, typer.Option(help="Name of an estimator (lda, pca, ...); `steerlab doctor` lists them.")
    ] = "difference-in-means",
    layers: Annotated[str, typer.Option(help="`all`, `4`, `4-8` or `2,5,7`.")] = "all",
    coordinates: Annotated[
        Literal["plain", "standardised", "winsorised"],
        typer.Option(
            help="standardised or winsorised for a direction that reads, plain for one that steers."
        ),
    ] = "plain",
    template: Annotated[
        Template | None,
        typer.Option(help="auto, chat, plain or none; requests are rendered, other texts read as they are."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find a direction in one model and store it as safetensors, with its held-out accuracy and best layer."""
    with err.status("Loading the libraries"):
        from steerlab.directions import ESTIMATORS
        from steerlab.extraction import extract_from, require_place

    require_place(output)
    ESTIMATORS[estimator]  # an unknown name is refused before the model is loaded
    loaded = load_model(model, device, dtype, trust_remote_code)
    data = _data(loaded, contrast, positive, negative, label, template)
    if data.sentence:
        out.print(data.sentence, markup=False, highlight=False, soft_wrap=True)
    direction = extract_from(loaded, data, estimator=estimator, layers=layers, coordinates=coordinates)
    direction.save(output)
    out.print(_accuracy_table(direction))
    out.print(
        f"Direction of {len(direction.sites)} sites, best at {direction.best}: {output}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _data(
    model: LanguageModel,
    contrast: str | None,
    positive: Path | None,
    negative: Path | None,
    label: str | None,
    template: Template | None,
) -> LabelledPrompts:
    """A packaged contrast or a file, or two files of texts."""
    from steerlab.errors import DatasetError
    from steerlab.extraction import own_prompts

    if (positive is None) != (negative is None):
        raise DatasetError("A contrast has two sides; give both --positive and --negative.")
    if positive is not None:
        if contrast is not None:
            raise DatasetError("--contrast and --positive name two contrasts; give one of them.")
        return own_prompts(model, positive, negative, label=label, template=template)
    return own_prompts(model, "truth" if contrast is None else contrast, label=label, template=template)


def _accuracy_table(direction: Direction) -> Table:
    table = Table(
        "site", "held-out accuracy", "", title="Five-fold accuracy, 95 % interval", title_justify="left"
    )
    for site, estimate in direction.accuracy.items():
        table.add_row(str(site), str(estimate), "best" if site == direction.best else "")
    return table
