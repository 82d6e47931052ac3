"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from steerlab.cli._app import err, out
from steerlab.errors import DirectionError

if TYPE_CHECKING:
    from steerlab.comparison import Run
    from steerlab.directions import Direction
    from steerlab.models import Edit, LanguageModel

Size = Literal["quick", "full"]
Template = Literal["auto", "chat", "plain", "none"]

ModelName = Annotated[str, typer.Argument(help="Hub name, local folder, or zoo:NAME for a bundled model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code from the hub. Off unless you say so.")
]

Base = Annotated[
    str | None, typer.Option(help="The weights under an adapter, in place of those that it names.")
]

Steer = Annotated[
    list[str] | None,
    typer.Option(
        help=r"FILE\[:STRENGTH\[@LAYERS]] adds a direction, by default one class gap at its best layer. Repeatable."
    ),
]
AblateOption = Annotated[
    list[str] | None,
    typer.Option(
        help=r"FILE\[@LAYER] removes the direction found at a layer (its best) everywhere. FILE\:TOWARD\[@LAYERS] "
        "moves its component to that of the mean, of a class of the direction, or to a number, at these "
        "layers. Repeatable."
    ),
]
SizeOption = Annotated[Size, typer.Option(help="quick: minutes on a CPU; full: for a GPU or patience.")]
RunOut = Annotated[Path, typer.Option("--out", help="The run folder.")]
Answers = Annotated[
    tuple[str, str] | None,
    typer.Option(
        help="The words for true and false that statements are asked with, each one token: ' Yes' ' No'.",
        show_default="the first of TRUE FALSE, true false, True False, Yes No that are single tokens in both",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]


def load_model(
    model: str, device: str, dtype: str, trust_remote_code: bool, base: str | None = None
) -> LanguageModel:
    from steerlab.opening import load

    with err.status("Loading the libraries"):
        import steerlab.models  # noqa: F401  (seconds, once)
    return load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)


def edits(model: LanguageModel, steer: list[str], ablate: list[str]) -> list[Edit]:
    from steerlab.extraction import parse_steer
    from steerlab.steering import Add

    interventions: list[Edit] = []
    for text in steer:
        file, strength, layers = parse_steer(text)
        direction = _placed(file, layers, model, f"{file}:{text.partition('.safetensors:')[2] or 1}")
        interventions.append(
            Add(
                direction,
                strength=1.0 if strength is None else strength,
                unit="class_gap",
                layers=None if layers is None else "all",
            )
        )
    interventions += [_ablation(model, text) for text in ablate]
    return interventions


def _ablation(model: LanguageModel, text: str) -> Edit:
    """FILE[@LAYER], or FILE:TOWARD[@LAYERS]: the direction where it works best, removed toward that at some layers."""
    from steerlab.extraction import chosen_layers, parse_ablate
    from steerlab.steering import Ablate

    file, toward, layers = parse_ablate(text)
    if toward is None:
        return cast("Edit", Ablate(_placed(file, layers, model, text)))
    direction = _placed(file, None, model, text)
    if len(direction.sites) > 1 and direction.best is not None:
        direction = direction.at(direction.best)
    chosen = None if layers is None else chosen_layers(layers, model.n_layers)
    return cast("Edit", Ablate(direction, toward=toward, layers=chosen))


def _placed(file: Path, layers: str | None, model: LanguageModel, written: str) -> Direction:
    """The direction in a file, at the named layers; without any it must know where it works best."""
    from steerlab.extraction import read_direction

    direction = read_direction(file, layers, model)
    if layers is None and direction.best is None and len(direction.sites) > 1:
        numbers = [site.layer for site in direction.sites if site.layer is not None]
        raise DirectionError(
            f"{file} has vectors at {len(direction.sites)} sites and does not know where it works best; "
            + (
                f"name layers, for example {written}@{numbers[len(numbers) // 2]}."
                if numbers
                else "keep one of them."
            )
        )
    return direction


def print_study(run: Run) -> None:
    """The sentences of a run's only study and where its report lies."""
    (result,) = run.results.values()
    for line in result.summary:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(f"Report: {run.report}", markup=False, soft_wrap=True)


def renamed(old: Path | None, old_name: str, new: Path | None, new_name: str) -> Path | None:
    """The value of an option that has another name now; the old name says so and works for one more release."""
    if old is None:
        return new
    err.print(f"{old_name} is now {new_name}; the old name goes with the next release.")
    return old if new is None else new
