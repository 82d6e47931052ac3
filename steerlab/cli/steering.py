"""Commands on one steered model: `generate`, `chat`, `bake`, `export`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from steerlab.cli import _completion
from steerlab.cli._app import app, loading_libraries, out
from steerlab.cli._inputs import load_model, require_files, require_free
from steerlab.cli._options import (
    AblateOption,
    AsJson,
    Device,
    Dtype,
    Keep,
    ModelName,
    Overwrite,
    PerOption,
    Quiet,
    Rate,
    Seed,
    Steer,
    Template,
    TrustRemoteCode,
)
from steerlab.cli._results import print_json, print_line
from steerlab.cli.written import Written, placed, read_written
from steerlab.errors import SteeringError
from steerlab.registry import names_in_source


@app.command()
def generate(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The user's text.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    template: Annotated[Template, typer.Option(help="auto, chat, plain or none.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate from a model, steered or not; with edits the unsteered text is shown beside."""
    written = _checked(model, steer, ablate, keep)
    loaded = load_model(model, device, dtype, trust_remote_code)
    rendered = loaded.instruction_prompt(prompt, template=template)
    interventions = placed(loaded, written)

    def _complete() -> str:
        return loaded.generate(
            rendered,
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            seed=seed if temperature > 0 else None,
        ).text

    plain, steered = _complete(), None
    if interventions:
        with loaded.steering(*interventions):
            steered = _complete()
    if as_json:
        print_json({"model": loaded.name, "prompt": prompt, "steered": steered, "unsteered": plain})
        return
    if steered is None:
        out.print(plain, markup=False, highlight=False)
        return
    for title, text in (("steered", steered), ("unsteered", plain)):
        out.rule(title)
        out.print(text, markup=False, highlight=False)


@app.command()
def chat(
    model: ModelName,
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    template: Annotated[Template, typer.Option(help="auto, chat or plain.")] = "auto",
    beside: Annotated[bool, typer.Option(help="Show the unsteered answer beside the steered one.")] = True,
    probe: Annotated[
        Path | None,
        typer.Option(
            help="A direction's file; its score of every token is a line of colour under the answer."
        ),
    ] = None,
    alarm: Rate = None,
    per: PerOption = "answer",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model, steered and unsteered side by side; strengths change while you talk (/help)."""
    written = _checked(model, steer, ablate, keep)
    require_files(probe)
    if alarm is not None and probe is None:
        raise SteeringError("An alarm needs a probe; name its file with --probe.")
    loaded = load_model(model, device, dtype, trust_remote_code)
    from steerlab.chat import Chat
    from steerlab.directions import Direction
    from steerlab.monitoring import Alarm

    talk = Chat(
        loaded,
        [*placed(loaded, written)],
        out,
        template=template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        beside=beside,
        probe=None if probe is None else Direction.load(probe),
        alarm=None if alarm is None else Alarm(alarm, per),
    )
    out.print(talk.state(), style="dim", markup=False, highlight=False)
    talk.run(_typed_lines())


@app.command()
def bake(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Put interventions into the weights; write a transformers folder that any engine loads."""
    _export(
        "transformers", model, output, steer, ablate, keep, False, device, dtype, as_json, trust_remote_code
    )


@app.command()
def export(
    form: Annotated[
        str,
        typer.Argument(
            help=f"The form: {', '.join(names_in_source('exports'))}, or another package's.",
            autocompletion=_completion.exports,
        ),
    ],
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="The folder (transformers, easysteer) or file.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write steering in the form another engine reads; `transformers` is what `bake` writes."""
    _export(form, model, output, steer, ablate, keep, overwrite, device, dtype, as_json, trust_remote_code)


def _export(
    form: str,
    model: str,
    output: Path,
    steer: list[str] | None,
    ablate: list[str] | None,
    keep: list[str] | None,
    overwrite: bool,
    device: str,
    dtype: str,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    written = _checked(model, steer, ablate, keep)
    if not written:
        raise SteeringError("There is nothing to write; give at least one intervention, --steer or --ablate.")
    require_free(output, overwrite=overwrite)
    with loading_libraries():
        from steerlab.steering import EXPORTS
        from steerlab.steering import export as write

    EXPORTS[form]  # an unknown form is refused before the model is loaded
    loaded = load_model(model, device, dtype, trust_remote_code)
    place = write(loaded, placed(loaded, written), output, form, in_place=True, dtype=dtype)
    if as_json:
        print_json({"written": place, "form": form, "model": loaded.name})
    else:
        print_line(f"Written: {place}")


def _checked(
    model: str, steer: list[str] | None, ablate: list[str] | None, keep: list[str] | None
) -> list[Written]:
    """Interventions with their files read, once it is clear that there is such a model."""
    from steerlab.opening import require_findable

    require_findable(model)
    return read_written(steer, ablate, keep)


def _typed_lines() -> Iterator[str]:
    """Lines as they are typed or piped in, until they end; an interrupt at the prompt ends them, too."""
    shown = "> " if sys.stdin.isatty() else ""
    try:
        while True:
            yield input(shown)
    except (EOFError, KeyboardInterrupt):
        return
