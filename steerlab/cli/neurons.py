"""`steerlab neurons`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from steerlab.cli._app import app, out
from steerlab.cli._options import Device, Dtype, ModelName, Seed, TrustRemoteCode, load_model

if TYPE_CHECKING:
    import numpy as np

    from steerlab.models import LanguageModel
    from steerlab.neurons.weights import Neurons, OutputSpace

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
    from steerlab.neurons.weights import with_kurtosis

    loaded = None if weights_only else load_model(model, device, dtype, trust_remote_code)
    listed, space, tensors = _from_checkpoint(model, seed) if loaded is None else _from_model(loaded, seed)
    if rule == "universal":
        listed = with_kurtosis(listed, *tensors, space)
    chosen = listed.chosen(rule, count)
    measured = list(range(len(listed.norm))) if output else chosen
    effects = {} if loaded is None else _effects(loaded, texts, measured)
    out.print(_table(listed, chosen, effects, every=output is not None))
    out.print(
        f"Layer {listed.layer}, {len(listed.norm)} neurons, {space.null_size} directions in the unembedding's "
        f"null space; rule: {rule}.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if output:
        _write(output, listed, chosen, effects)
        out.print(f"All neurons: {output}", markup=False, highlight=False, soft_wrap=True)


def _from_checkpoint(name: str, seed: int) -> tuple[Neurons, OutputSpace, tuple[Any, Any, Any]]:
    """Neurons of a checkpoint's last layer, from three of its tensors."""
    from steerlab import zoo
    from steerlab.models import read_output_weights
    from steerlab.neurons import checkpoint_neurons

    place = zoo.path(name.removeprefix("zoo:")) if name.startswith("zoo:") else name
    weights = read_output_weights(place)
    return *checkpoint_neurons(weights, seed=seed), (weights.w_out, weights.unembedding, weights.gain)


def _from_model(model: LanguageModel, seed: int) -> tuple[Neurons, OutputSpace, tuple[Any, Any, Any]]:
    """The same of a loaded model."""
    from steerlab.neurons.weights import layer_neurons, norm_centres, output_space

    last = model.n_layers - 1
    space = output_space(model.unembedding, model.final_norm_gain, centred=norm_centres(model), seed=seed)
    tensors = (model.w_out(last), model.unembedding, model.final_norm_gain)
    return layer_neurons(model, last, space), space, tensors


def _effects(model: LanguageModel, texts: Path | None, neurons: list[int]) -> dict[str, np.ndarray]:
    """What ablating each neuron does to confidence on some texts."""
    from steerlab import datasets
    from steerlab.neurons import NeuronHead, all_effects
    from steerlab.neurons.effects import within

    lines = datasets.read_prompts(texts) if texts else datasets.plain_text()[:20]
    effects = all_effects(NeuronHead(model, within(model, lines)), neurons)
    return {
        "Δ entropy": effects.signed,
        "|Δ entropy|": effects.total,
        "via norm": effects.through_norm(),
        "Δ loss": effects.loss,
    }


def _table(listed: Neurons, chosen: list[int], effects: dict[str, np.ndarray], *, every: bool) -> Table:
    table = Table("neuron", "|w_out|", "LogitVar", "null space", *effects, title_justify="left")
    for row, neuron in enumerate(chosen):
        at = neuron if every else row
        numbers = [listed.norm[neuron], listed.logit_var[neuron], listed.null_share[neuron]]
        numbers += [column[at] for column in effects.values()]
        table.add_row(f"{listed.layer}.{neuron}", *(f"{number:.3g}" for number in numbers))
    return table


def _write(path: Path, listed: Neurons, chosen: list[int], effects: dict[str, np.ndarray]) -> None:
    from steerlab.errors import DatasetError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "neuron", "norm", "logit_var", "null_share", "chosen", *effects])
            for neuron in range(len(listed.norm)):
                numbers = [listed.norm[neuron], listed.logit_var[neuron], listed.null_share[neuron]]
                extra = [column[neuron] for column in effects.values()]
                writer.writerow([listed.layer, neuron, *numbers, neuron in chosen, *extra])
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error}.") from error
