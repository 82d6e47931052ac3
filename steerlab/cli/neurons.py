"""`steerlab neurons`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from steerlab.cli._app import app, out
from steerlab.cli._options import Device, Dtype, ModelName, Seed, TrustRemoteCode, load_model

if TYPE_CHECKING:
    import numpy as np

    from steerlab.neurons.weights import Neurons

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
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """List a model's entropy-neuron candidates, and what ablating each does to its confidence."""
    from steerlab import zoo
    from steerlab.models import read_output_weights
    from steerlab.neurons.weights import (
        checkpoint_neurons,
        layer_neurons,
        norm_centres,
        output_space,
        with_kurtosis,
    )

    effects: dict[str, np.ndarray] = {}
    if weights_only:
        place = zoo.path(model.removeprefix("zoo:")) if model.startswith("zoo:") else model
        weights = read_output_weights(place)
        found, space = checkpoint_neurons(weights, seed=seed)
        parts = (weights.w_out, weights.unembedding, weights.gain)
    else:
        loaded = load_model(model, device, dtype, trust_remote_code)
        space = output_space(
            loaded.unembedding, loaded.final_norm_gain, centred=norm_centres(loaded), seed=seed
        )
        found = layer_neurons(loaded, loaded.n_layers - 1, space)
        parts = (loaded.w_out(loaded.n_layers - 1), loaded.unembedding, loaded.final_norm_gain)
    if rule == "universal":
        found = with_kurtosis(found, *parts, space)
    chosen = found.chosen(rule, count)
    if not weights_only:
        from steerlab import datasets
        from steerlab.neurons.effects import all_effects, within
        from steerlab.neurons.head import NeuronHead

        lines = datasets.read_prompts(texts) if texts else datasets.plain_text()[:20]
        head = NeuronHead(loaded, within(loaded, lines))
        numbers = list(range(len(found.norm))) if output else chosen
        measured = all_effects(head, numbers)
        effects = {
            "Δ entropy": measured.signed,
            "|Δ entropy|": measured.total,
            "via norm": measured.through_norm(),
            "Δ loss": measured.loss,
        }
    out.print(_table(found, chosen, effects, every=output is not None))
    out.print(
        f"Layer {found.layer}, {len(found.norm)} neurons, {space.null_size} directions in the unembedding's "
        f"null space; rule: {rule}.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if output:
        _write(output, found, chosen, effects)
        out.print(f"All neurons: {output}", markup=False, highlight=False, soft_wrap=True)


def _table(found: Neurons, chosen: list[int], effects: dict[str, np.ndarray], *, every: bool) -> Table:
    table = Table("neuron", "|w_out|", "LogitVar", "null space", *effects, title_justify="left")
    for row, neuron in enumerate(chosen):
        at = neuron if every else row
        numbers = [found.norm[neuron], found.logit_var[neuron], found.null_share[neuron]]
        numbers += [column[at] for column in effects.values()]
        table.add_row(f"{found.layer}.{neuron}", *(f"{number:.3g}" for number in numbers))
    return table


def _write(path: Path, found: Neurons, chosen: list[int], effects: dict[str, np.ndarray]) -> None:
    from steerlab.errors import DatasetError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "neuron", "norm", "logit_var", "null_share", "chosen", *effects])
            for neuron in range(len(found.norm)):
                numbers = [found.norm[neuron], found.logit_var[neuron], found.null_share[neuron]]
                extra = [column[neuron] for column in effects.values()]
                writer.writerow([found.layer, neuron, *numbers, neuron in chosen, *extra])
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error}.") from error
