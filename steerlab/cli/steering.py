"""Commands on one steered model: `generate`, `chat`, `bake`, `export`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from steerlab.cli._app import app, err, out
from steerlab.cli._options import (
    AblateOption,
    Device,
    Dtype,
    ModelName,
    Steer,
    Template,
    TrustRemoteCode,
    edits,
    load_model,
)


@app.command()
def generate(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The user's text.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    template: Annotated[Template, typer.Option(help="auto, chat, plain or none.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate from a model, steered or not; with edits the unsteered text is shown beside."""
    loaded = load_model(model, device, dtype, trust_remote_code)
    rendered = loaded.instruction_prompt(prompt, template=template)
    interventions = edits(loaded, steer or [], ablate or [])

    def _complete() -> str:
        return loaded.generate(
            rendered,
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            seed=seed if temperature > 0 else None,
        ).text

    plain = _complete()
    if not interventions:
        out.print(plain, markup=False, highlight=False)
        return
    with loaded.steering(*interventions):
        steered = _complete()
    for title, text in (("steered", steered), ("unsteered", plain)):
        out.rule(title)
        out.print(text, markup=False, highlight=False)


@app.command()
def chat(
    model: ModelName,
    steer: Steer = None,
    ablate: AblateOption = None,
    template: Annotated[Template, typer.Option(help="auto, chat or plain.")] = "auto",
    beside: Annotated[bool, typer.Option(help="Show the unsteered answer beside the steered one.")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model, steered and unsteered side by side; strengths change while you talk (/help)."""
    loaded = load_model(model, device, dtype, trust_remote_code)
    from steerlab.chat import Chat

    talk = Chat(
        loaded,
        edits(loaded, steer or [], ablate or []),
        out,
        template=template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        beside=beside,
    )
    out.print(talk.state(), style="dim", markup=False, highlight=False)
    talk.run(_typed_lines())


@app.command()
def bake(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Put interventions into the weights; write a transformers folder that any engine loads."""
    export("transformers", model, output, steer, ablate, device, dtype, trust_remote_code)


@app.command()
def export(
    form: Annotated[str, typer.Argument(help="transformers, gguf, ...; `steerlab doctor` lists the forms.")],
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="The folder (transformers, easysteer) or file.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write steering in the form another engine reads; `transformers` is what `bake` writes."""
    with err.status("Loading the libraries"):
        from steerlab.steering import EXPORTS
        from steerlab.steering import export as write

    EXPORTS[form]  # an unknown form is refused before the model is loaded
    loaded = load_model(model, device, dtype, trust_remote_code)
    written = write(loaded, edits(loaded, steer or [], ablate or []), output, form, in_place=True)
    out.print(f"Written: {written}", markup=False, highlight=False, soft_wrap=True)


def _typed_lines() -> Iterator[str]:
    """Lines as they are typed or piped in, until they end; an interrupt at the prompt ends them, too."""
    shown = "> " if sys.stdin.isatty() else ""
    try:
        while True:
            yield input(shown)
    except (EOFError, KeyboardInterrupt):
        return
