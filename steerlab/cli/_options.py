"""Options that several commands share: one spelling, one type and one help each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from steerlab.batching import batch_tokens
from steerlab.cli import _completion
from steerlab.cli._app import err, notes
from steerlab.progress import silent

Size = Literal["quick", "full"]
Template = Literal["auto", "chat", "plain", "none"]


def _silenced(context: typer.Context, wanted: bool) -> bool:
    """Keep notes and progress back until the command ends."""
    if wanted:
        context.with_resource(silent())
        notes.quiet = True
        context.call_on_close(lambda: setattr(notes, "quiet", False))
    return wanted


def _batched(context: typer.Context, tokens: int | None) -> int | None:
    """Set the size of batches until the command ends."""
    context.with_resource(batch_tokens(tokens))
    return tokens


ModelName = Annotated[
    str,
    typer.Argument(
        help="Hub name, local folder, or zoo:NAME for a bundled model.", autocompletion=_completion.models
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...", autocompletion=_completion.devices)
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="Number format of the weights; auto is float32 on a CPU."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code from the hub. Off unless you say so.")
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        min=1,
        callback=_batched,
        show_default="each step's own",
        help="Tokens of one forward pass. Fewer need less memory; more are faster on a large GPU.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", callback=_silenced, help="Show results and errors only, no progress.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]
SizeOption = Annotated[
    Size, typer.Option("--size", help="quick: minutes on a CPU; full: for a GPU or patience.")
]
RunOut = Annotated[Path, typer.Option("--out", help="The run folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")]

Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="The weights under an adapter, in place of those that it names.",
        autocompletion=_completion.models,
    ),
]
Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        help=r"FILE\[:STRENGTH\[@LAYERS]] adds a direction, by default one class gap at its best layer. Repeatable.",
    ),
]
AblateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ablate",
        help=r"FILE\[@LAYER] removes the direction found at a layer (its best) everywhere. FILE\:TOWARD\[@LAYERS] "
        "moves its component to that of the mean, of a class of the direction, or to a number, at these "
        r"layers; FILE\:norm\[@LAYERS] removes it from weights that keep their length. Repeatable.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help=r"FILE\[@LAYER] is a direction along which every --ablate leaves the states as they are. Repeatable.",
    ),
]
Per = Literal["token", "answer", "conversation"]
Rate = Annotated[
    float | None,
    typer.Option(
        "--alarm", help="False alarms that are allowed, 0.05 for 5 %; the probe then needs a calibration."
    ),
]
PerOption = Annotated[Per, typer.Option("--per", help="What the rate counts: token, answer or conversation.")]
Answers = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--answers",
        help="The words for true and false that statements are asked with, each one token: ' Yes' ' No'.",
        show_default="the first of TRUE FALSE, true false, True False, Yes No that are single tokens in both",
    ),
]


def renamed(old: Path | None, old_name: str, new: Path | None, new_name: str) -> Path | None:
    """The value of an option that has another name now; the old name says so and works for one more release."""
    if old is None:
        return new
    err.print(f"{old_name} is now {new_name}; the old name goes with the next release.")
    return old if new is None else new
