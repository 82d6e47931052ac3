"""`steerlab calibrate` and `steerlab watch`: a probe of a direction, and its scores while a model writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerlab.cli._app import app, out, say
from steerlab.cli._inputs import load_model, require_files, require_free
from steerlab.cli._options import (
    AblateOption,
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    Keep,
    ModelName,
    Overwrite,
    PerOption,
    Quiet,
    Rate,
    Steer,
    Template,
    TrustRemoteCode,
)
from steerlab.cli._results import print_json, print_line
from steerlab.cli.written import placed, read_written

if TYPE_CHECKING:
    from steerlab.monitoring import Seen


@app.command()
def calibrate(
    model: ModelName,
    direction: Annotated[Path, typer.Argument(help="The direction's file.")],
    without: Annotated[
        Path, typer.Argument(help="Chats without the thing: rows with prompt and answer, or with messages.")
    ],
    output: Annotated[Path, typer.Option("--out", help="The probe's file.")],
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Make a probe of a direction: read chats where what it looks for is absent, so that alarms know what is usual."""
    from steerlab.opening import require_findable

    require_findable(model)
    require_files(direction, without)
    require_free(output, overwrite=overwrite)
    from steerlab.directions import Direction
    from steerlab.monitoring import calibrate as calibrated
    from steerlab.monitoring import read_chats

    given, chats = Direction.load(direction), read_chats(without)
    loaded = load_model(model, device, dtype, trust_remote_code)
    say(f"Reading {len(chats)} chats")
    probe = calibrated(given, loaded, without=chats)
    probe.save(output)
    known = probe.calibration
    assert known is not None
    counts = {"answers": known.n_answers, "conversations": known.n_conversations, "tokens": len(known.scores)}
    if as_json:
        print_json({"written": output, "model": loaded.name, "site": str(probe.sites[0]), **counts})
        return
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print_line(f"Written: {output} ({probe.sites[0]}; {told})")


# Long: one parameter an option.
@app.command()
def watch(
    model: ModelName,
    prompts: Annotated[str, typer.Argument(help="A file of prompts (text, JSONL, CSV), or one prompt.")],
    probe: Annotated[Path, typer.Option(help="The probe: a direction's file.")],
    alarm: Rate = None,
    per: PerOption = "answer",
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    template: Annotated[Template, typer.Option(help="auto, chat, plain or none.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate, and score every token by a probe while it is written; with --alarm say where an alarm sounds."""
    from steerlab.opening import require_findable

    require_findable(model)
    require_files(probe)
    written = read_written(steer, ablate, keep)
    from steerlab.datasets import read_prompts
    from steerlab.directions import Direction
    from steerlab.monitoring import Alarm

    texts = list(read_prompts(prompts)) if Path(prompts).is_file() else [prompts]
    reader, promise = Direction.load(probe), None if alarm is None else Alarm(alarm, per)
    if promise is not None:
        promise.threshold(reader)  # an alarm without calibration is refused before the model is loaded
    loaded = load_model(model, device, dtype, trust_remote_code)
    rendered = [loaded.instruction_prompt(text, template=template) for text in texts]
    edits = placed(loaded, written)
    with loaded.watch(reader, alarm=promise) as seen:
        if edits:
            with loaded.steering(*edits):
                loaded.generate(rendered, max_new_tokens=max_new_tokens)
        else:
            loaded.generate(rendered, max_new_tokens=max_new_tokens)
    if as_json:
        print_json({"model": loaded.name, "probe": probe, **_as_data(seen)})
    else:
        _show(seen)


# -- private --


def _as_data(seen: Seen) -> dict[str, object]:
    texts = [
        {
            "text": each.text,
            "tokens": list(each.tokens),
            "segments": list(each.segments),
            "scores": [float(f"{score:.6g}") for score in each],
        }
        for each in seen.scores
    ]
    if seen.alarm is None:
        return {"texts": texts}
    alarms = [{"text": at.text, "token": at.place, "score": float(f"{at.score:.6g}")} for at in seen.alarms]
    promise = {"rate": seen.alarm.rate, "per": seen.alarm.per, "threshold": seen.threshold}
    return {"texts": texts, "alarm": promise, "alarms": alarms}


def _show(seen: Seen) -> None:
    """Each answer with its tokens coloured, and a line of what was found."""
    sounded = {} if seen.alarm is None else {at.text: at for at in reversed(seen.alarms)}
    for number, scores in enumerate(seen.scores):
        line = seen.coloured(number)
        told = f"{number}: largest score {max(scores):.3g}" if len(scores) else f"{number}: nothing was read"
        if seen.alarm is not None:
            at = sounded.get(number)
            told += ", no alarm" if at is None else f", alarm at token {at.place}"
        out.print(told, style="dim", markup=False, highlight=False)
        out.print(line, soft_wrap=True)
    if seen.alarm is not None:
        print_line(
            f"Alarms in {len(sounded)} of {len(seen)} texts ({seen.alarm}, threshold {seen.threshold:.3g})."
        )
