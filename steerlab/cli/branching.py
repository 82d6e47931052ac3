"""`steerlab branching`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from steerlab.cli._app import app, loading_libraries, say
from steerlab.cli._inputs import load_model, require_files
from steerlab.cli._options import (
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    ModelName,
    Overwrite,
    Quiet,
    RunOut,
    Seed,
    SizeOption,
    TrustRemoteCode,
)
from steerlab.cli._results import print_study
from steerlab.errors import PromptError

if TYPE_CHECKING:
    from steerlab.models import LanguageModel
    from steerlab.readouts import SamplingLaw
    from steerlab.results import StudyResult
    from steerlab.run_data import Facts

Rule = Literal["none", "top_p", "top_k", "min_p", "floor"]


# Long: one parameter an option.
@app.command()
def branching(
    base: ModelName,
    post: ModelName,
    output: RunOut,
    prompts: Annotated[
        Path | None, typer.Option(help="Text or JSONL of prompts in place of the packaged instructions.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of the law that is sampled; 0 is greedy.")
    ] = 1.0,
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
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """How many continuations a base and a post-trained model see ahead; write a report."""
    from steerlab.opening import require_findable

    require_findable(base, post)
    require_files(prompts)
    from steerlab import datasets
    from steerlab.comparison import run_alone
    from steerlab.run_data import text_facts

    texts = datasets.read_prompts(prompts) if prompts else datasets.open_prompts()
    law = _law(temperature, rule, value)

    def study(models: dict[str, LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        from steerlab import studies

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
            announce=say,
            load=partial(load_model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
        ),
        as_json=as_json,
    )


def _law(temperature: float, rule: Rule, value: float) -> SamplingLaw:
    """The law that samples follow. Raises PromptError for a value that the rule cannot take."""
    with loading_libraries():
        from steerlab.readouts import SamplingLaw

    try:
        return SamplingLaw(temperature, rule, value)
    except ValueError as error:
        raise PromptError(f"{error}.") from error
