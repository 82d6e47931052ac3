"""`steerlab neurons`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from steerlab.cli._app import app, loading_libraries, out
from steerlab.cli._inputs import load_model, require_files, require_free
from steerlab.cli._options import (
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    ModelName,
    Overwrite,
    Quiet,
    Seed,
    TrustRemoteCode,
)
from steerlab.cli._results import print_json, print_line
from steerlab.files import system_reason, whole

if TYPE_CHECKING:
    from steerlab.models import OutputWeights
    from steerlab.neurons import EntropyNeurons

Rule = Literal["published", "null space", "universal"]


@app.command()
def neurons(
    model: ModelName,
    count: Annotated[int, typer.Option(min=1, help="Neurons shown.")] = 10,
    rule: Annotated[
        Rule,
        typer.Option(
            help="published: large norm, lowest LogitVar; `null space`: largest share there; universal."
        ),
    ] = "published",
    weights_only: Annotated[
        bool,
        typer.Option("--weights-only", help="Read three tensors of the checkpoint and load nothing else."),
    ] = False,
    texts: Annotated[
        Path | None, typer.Option(help="Texts, one a line, in place of the packaged ones.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="All neurons of the layer as CSV.")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List a model's entropy-neuron candidates, and what ablating each does to its confidence."""
    from steerlab import datasets
    from steerlab.opening import require_findable

    require_files(texts)
    if output is not None:
        require_free(output, overwrite=overwrite)
    require_findable(model)
    lines = datasets.read_prompts(texts) if texts else None
    with loading_libraries():
        from steerlab.neurons import entropy_neurons
    source = _output_weights(model) if weights_only else load_model(model, device, dtype, trust_remote_code)
    listed = entropy_neurons(source, count=count, rule=rule, texts=lines, every=output is not None, seed=seed)
    if output:
        _write(output, listed, measured=not weights_only)
    if as_json:
        print_json({**listed.model_dump(exclude={"rows"}), "neurons": listed.candidates, "file": output})
        return
    out.print(_table(listed, measured=not weights_only))
    print_line(
        f"Layer {listed.layer}, {listed.width} neurons, {listed.null_size} directions in the unembedding's "
        f"null space; rule: {rule}."
    )
    if output:
        print_line(f"All neurons: {output}")


_EFFECTS = {"Δ entropy": "entropy", "|Δ entropy|": "absolute", "via norm": "via_norm", "Δ loss": "loss"}


def _output_weights(name: str) -> OutputWeights:
    """Three tensors of a checkpoint's last layer."""
    from steerlab import zoo
    from steerlab.models import read_output_weights

    return read_output_weights(zoo.path(name.removeprefix("zoo:")) if name.startswith("zoo:") else name)


def _table(listed: EntropyNeurons, *, measured: bool) -> Table:
    effects = _EFFECTS if measured else {}
    table = Table("neuron", "|w_out|", "LogitVar", "null space", *effects, title_justify="left")
    for row in listed.candidates:
        numbers = [
            row.norm,
            row.logit_var,
            row.null_share,
            *(getattr(row, field) for field in effects.values()),
        ]
        table.add_row(f"{listed.layer}.{row.neuron}", *(f"{number:.3g}" for number in numbers))
    return table


def _write(path: Path, listed: EntropyNeurons, *, measured: bool) -> None:
    from steerlab.errors import DatasetError

    effects = _EFFECTS if measured else {}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["layer", "neuron", "norm", "logit_var", "null_share", "chosen", *effects])
    for row in sorted(listed.rows, key=lambda row: row.neuron):
        numbers = [row.norm, row.logit_var, row.null_share, row.candidate]
        writer.writerow(
            [listed.layer, row.neuron, *numbers, *(getattr(row, field) for field in effects.values())]
        )
    try:
        with whole(path) as partial:
            partial.write_bytes(text.getvalue().encode())
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be written: {system_reason(error)}; choose another place or free space."
        ) from error
