"""`steerlab diff`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerlab.cli._app import app, say
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

if TYPE_CHECKING:
    from steerlab.models import LanguageModel
    from steerlab.results import StudyResult
    from steerlab.run_data import Facts


# Long: one parameter an option.
@app.command("diff")
def difference(
    base: ModelName,
    post: ModelName,
    output: RunOut,
    texts: Annotated[
        Path | None, typer.Option(help="Text or JSONL of plain texts in place of the packaged passages.")
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            help="A word of a topic that you suspect; its rank in the difference is reported. Repeatable."
        ),
    ] = None,
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
    """Where two models differ on unrelated text, and whether it names a narrow topic; write a report."""
    from steerlab.opening import require_findable

    require_findable(base, post)
    require_files(texts)
    from steerlab import datasets
    from steerlab.comparison import run_alone
    from steerlab.run_data import text_facts

    read = datasets.read_prompts(texts) if texts else datasets.plain_text()

    def study(models: dict[str, LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        from steerlab import studies

        pair = models["base"], models["post"]
        result = studies.difference(pair, read, topic=topic or (), size=size, seed=seed)
        return result, {"texts": text_facts(read, str(texts or "packaged"))}

    print_study(
        run_alone(
            study,
            {"base": base, "post": post},
            out=output,
            configuration={"size": size, "seed": seed, "topic": list(topic or ())},
            overwrite=overwrite,
            announce=say,
            load=partial(load_model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
        ),
        as_json=as_json,
    )
