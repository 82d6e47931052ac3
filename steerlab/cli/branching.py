"""`steerlab branching`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from steerlab.cli._app import app
from steerlab.cli._options import (
    Device,
    Dtype,
    ModelName,
    Overwrite,
    RunOut,
    Seed,
    SizeOption,
    TrustRemoteCode,
    load_model,
    print_study,
)

Rule = Literal["none", "top_p", "top_k", "min_p", "floor"]


@app.command()
def branching(
    base: ModelName,
    post: ModelName,
    output: RunOut,
    prompts: Annotated[
        Path | None, typer.Option(help="Text or JSONL of prompts in place of the packaged instructions.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    rule: Annotated[
        Rule, typer.Option(help="How the law is cut: none, top_p, top_k, min_p or floor.")
    ] = "top_p",
    value: Annotated[
        float, typer.Option(help="What the rule keeps: a mass, a number or a probability.")
    ] = 0.9,
    parts: Annotated[
        bool, typer.Option(help="Prompt sets, AEP, nudging, resampling and votes as well.")
    ] = True,
    size: SizeOption = "quick",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """How many continuations a base and a post-trained model see ahead; write a report."""
    from steerlab import datasets
    from steerlab.errors import PromptError
    from steerlab.run_folder import RunFolder

    texts = datasets.read_prompts(prompts) if prompts else datasets.open_prompts()
    RunFolder(output).require_free(resume=False, overwrite=overwrite)
    models = {
        "base": load_model(base, device, dtype, trust_remote_code),
        "post": load_model(post, device, dtype, trust_remote_code),
    }
    from steerlab.comparison import store_study, text_hash
    from steerlab.studies import SamplingLaw
    from steerlab.studies import branching as run_branching

    try:
        law = SamplingLaw(temperature, rule, value)
    except ValueError as error:
        raise PromptError(f"{error}.") from error
    started = time.perf_counter()
    result = run_branching(
        models["base"], models["post"], texts, size=size, seed=seed, law=law, with_parts=parts
    )
    source = str(prompts or "packaged")
    run = store_study(
        result,
        output,
        models=models,
        data={"prompts": {"n": len(texts), "hash": text_hash(texts), "source": source, "example": texts[0]}},
        configuration={"size": size, "seed": seed, "law": str(law), "parts": str(parts)},
        seconds=time.perf_counter() - started,
        overwrite=overwrite,
    )
    print_study(run, result)
