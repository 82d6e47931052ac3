"""`steerlab card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerlab.cli import _completion
from steerlab.cli._app import app, say
from steerlab.cli._inputs import load_model, require_room
from steerlab.cli._options import (
    AblateOption,
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    Keep,
    ModelName,
    Overwrite,
    Quiet,
    Seed,
    SizeOption,
    Steer,
    TrustRemoteCode,
)
from steerlab.cli._results import print_json, print_line
from steerlab.cli.written import placed, read_written
from steerlab.errors import SteeringError


# Long: one parameter an option.
@app.command()
def card(
    model: ModelName,
    task: Annotated[
        str,
        typer.Option(
            help="What to ask: a packaged task (formal, happy, spanish, concise, refusing), or a .toml file.",
            autocompletion=_completion.steering_tasks,
        ),
    ],
    output: Annotated[Path, typer.Option("--out", help="The folder for card.html, card.json and card.md.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help="A factor of the strength at which all is measured as well. Repeatable.",
            show_default="0.25 0.5 1 2 4",
        ),
    ] = None,
    predictor: Annotated[
        bool, typer.Option(help="Measure how well training pairs predict effects in this model.")
    ] = True,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option("--lm-eval", help="A task of lm-evaluation-harness for the steered model. Repeatable."),
    ] = None,
    inspect: Annotated[
        list[str] | None,
        typer.Option("--inspect", help="A task of inspect-ai for the baked model. Repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each of these tasks.")] = None,
    size: SizeOption = "quick",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say what one must know before using a vector: effect, control, harm, robustness, and asking for it instead."""
    from steerlab.datasets import steering_task
    from steerlab.opening import require_findable

    require_findable(model)
    asked, written = steering_task(task), read_written(steer, ablate, keep)
    if not written:
        raise SteeringError("A card is of steering; give at least one intervention, --steer or --ablate.")
    require_room(output, "card.json", overwrite=overwrite)
    loaded = load_model(model, device, dtype, trust_remote_code)
    from steerlab.card import steering_card

    made = steering_card(
        loaded,
        placed(loaded, written),
        asked,
        doses=dose,
        size=size,
        predicted=predictor,
        lm_eval=lm_eval or (),
        inspect=inspect or (),
        limit=limit,
        seed=seed,
        announce=say,
    )
    place = made.save(output)
    if as_json:
        print_json({"written": place, "verdict": made.verdict, "gates": made.gates, "summary": made.summary})
        return
    for line in made.summary:
        print_line(line)
    print_line(f"Card: {place / 'card.html'}")
