"""`steerlab extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from steerlab.cli import _completion
from steerlab.cli._app import app, loading_libraries, out
from steerlab.cli._inputs import load_model, require_files
from steerlab.cli._options import (
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    ModelName,
    Overwrite,
    Quiet,
    Seed,
    Template,
    TrustRemoteCode,
)
from steerlab.cli._results import print_json, print_line
from steerlab.errors import DatasetError
from steerlab.registry import names_in_source

if TYPE_CHECKING:
    from steerlab.directions import Direction


# Long: one parameter an option.
@app.command()
def extract(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="Where the direction goes (.safetensors).")],
    contrast: Annotated[
        str | None,
        typer.Option(
            help="truth (if nothing is named), refusal, another packaged contrast (formal, happy, ...; a wrong "
            "name lists them), or a file of your own: rows of text and label (any two), or of positive and negative.",
            autocompletion=_completion.contrasts,
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
        str,
        typer.Option(
            help=f"Name of an estimator: {', '.join(names_in_source('estimators'))}, or another package's.",
            autocompletion=_completion.estimators,
        ),
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
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find a direction in one model and store it as safetensors, with its held-out accuracy and best layer."""
    from steerlab.opening import require_findable

    require_findable(model)
    given, other = _sides(contrast, positive, negative)
    with loading_libraries():
        from steerlab.extraction import (
            extract_from,
            named_layers,
            own_prompts,
            require_contrast,
            require_place,
        )

    require_place(output, overwrite=overwrite)
    named_layers(layers)
    require_contrast(given, other, label=label, estimator=estimator)
    loaded = load_model(model, device, dtype, trust_remote_code)
    data = own_prompts(loaded, given, other, label=label, template=template)
    direction = extract_from(
        loaded, data, estimator=estimator, layers=layers, coordinates=coordinates, seed=seed
    )
    direction.save(output)
    if as_json:
        print_json(_facts(direction, output, data.sentence))
        return
    if data.sentence:
        print_line(data.sentence)
    out.print(_accuracy_table(direction))
    print_line(f"Direction of {len(direction.sites)} sites, best at {direction.best}: {output}")


def _sides(
    contrast: str | None, positive: Path | None, negative: Path | None
) -> tuple[str | Path, Path | None]:
    """A packaged contrast or a file, or two files of texts."""
    if (positive is None) != (negative is None):
        raise DatasetError("A contrast has two sides; give both --positive and --negative.")
    if positive is None:
        return contrast or "truth", None
    if contrast is not None:
        raise DatasetError("--contrast and --positive name two contrasts; give one of them.")
    require_files(positive, negative)
    return positive, negative


def _facts(direction: Direction, output: Path, sentence: str) -> dict[str, Any]:
    """A stored direction as JSON: where it lies, where it works best, and its accuracy by site."""
    return {
        "direction": output,
        "model": direction.model_name,
        "estimator": direction.estimator,
        "note": sentence,
        "best": None if direction.best is None else str(direction.best),
        "accuracy": {
            str(site): {"value": found.value, "low": found.low, "high": found.high}
            for site, found in direction.accuracy.items()
        },
    }


def _accuracy_table(direction: Direction) -> Table:
    table = Table(
        "site", "held-out accuracy", "", title="Five-fold accuracy, 95 % interval", title_justify="left"
    )
    for site, estimate in direction.accuracy.items():
        table.add_row(str(site), str(estimate), "best" if site == direction.best else "")
    return table
