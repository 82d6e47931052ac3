"""`steerlab branching`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from steerlab.models import LanguageModel
    from steerlab.results import StudyResult
    from steerlab.run_data import Facts

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
    from steerlab.comparison import run_alone
    from steerlab.errors import PromptError
    from steerlab.run_data import text_facts

    texts = datasets.read_prompts(prompts) if prompts else datasets.open_prompts()

    def study(models: dict[str, LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        from steerlab import studies
        from steerlab.readouts import SamplingLaw

        try:
            law = SamplingLaw(temperature, rule, value)
        except ValueError as error:
            raise PromptError(f"{error}.") from error
        pair = models["base"], models["post"]
        result = studies.branching(pair, texts, size=size, seed=seed, law=law, with_parts=parts)
        return result, {"prompts": text_facts(texts, str(prompts or "packaged"))}

    print_study(
        run_alone(
            study,
            {"base": base, "post": post},
            out=output,
            configuration={
                "size": size,
                "seed": seed,
                "law": f"{temperature:g} {rule} {value:g}",
                "parts": str(parts),
            },
            overwrite=overwrite,
            load=partial(load_model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
        )
    )
