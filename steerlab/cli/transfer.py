"""`steerlab transfer`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from steerlab.cli._app import app, say
from steerlab.cli._inputs import load_model
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
from steerlab.errors import DatasetError
from steerlab.registry import Preset

if TYPE_CHECKING:
    from steerlab.datasets import Task
    from steerlab.models import LanguageModel
    from steerlab.results import StudyResult
    from steerlab.run_data import Facts

Aggregator = Literal["mean", "pca"]
By = Literal["manner", "labels"]
Steered = Literal["identified", "all"]


# Long: one parameter an option.
@app.command()
def transfer(
    locked: Annotated[str, typer.Argument(help="The source model without the capability.")],
    unlocked: Annotated[
        str, typer.Argument(help="The source model with it; the same name contrasts prompts.")
    ],
    target: ModelName,
    output: RunOut,
    task: Annotated[
        str,
        typer.Option(
            help="JSONL of questions and answers, or `sums` (`sums:5` of five numbers) for bundled models."
        ),
    ] = "sums",
    target_unlocked: Annotated[
        str | None, typer.Option(help="The target's post-trained version, for its native direction.")
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="corrected, or published for the paper's code.")
    ] = "corrected",
    aggregator: Annotated[Aggregator, typer.Option(help="mean or pca of the changes.")] = "mean",
    steered: Annotated[Steered, typer.Option(help="Layers whose map is identified, or all.")] = "identified",
    strength: Annotated[
        float | None, typer.Option(help="α of the turn; chosen on dev questions else.")
    ] = None,
    by: Annotated[
        By, typer.Option(help="What chooses it: manner (no labels) or labels (right answers).")
    ] = "manner",
    behaviour: Annotated[
        str | None, typer.Option(help="Regular expression with which an unlocked answer begins.")
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
    """Carry a capability from one model to another, beside everything that could look like it; write a report."""
    from steerlab.opening import require_findable

    require_findable(locked, unlocked, target, target_unlocked)
    from steerlab.comparison import run_alone
    from steerlab.run_data import task_facts

    questions = _task(task, behaviour, size)

    def study(models: dict[str, LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        from steerlab import studies

        result = studies.transfer(
            (models["locked source"], models["unlocked source"]),
            models["target"],
            questions,
            size=size,
            preset=preset,
            aggregator=aggregator,
            steered=steered,
            strength=strength,
            by=by,
            target_unlocked=models.get("unlocked target"),
            seed=seed,
        )
        return result, {"task": task_facts(questions, task)}

    roles = {"locked source": locked, "unlocked source": unlocked, "target": target}
    print_study(
        run_alone(
            study,
            {**roles, "unlocked target": target_unlocked} if target_unlocked else roles,
            out=output,
            configuration={
                "size": size,
                "seed": seed,
                "preset": preset,
                "aggregator": aggregator,
                "by": by,
            },
            overwrite=overwrite,
            announce=say,
            load=partial(load_model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
        ),
        as_json=as_json,
    )


def _task(name: str, behaviour: str | None, size: str) -> Task:
    """The task of a file, or the bundled sums."""
    if name == "sums" or name.startswith("sums:"):
        from steerlab import zoo

        _, _, count = name.partition(":")
        if count and not (count.isdigit() and 2 <= int(count) <= 6):
            raise DatasetError(f"{name!r}: write sums, or sums:N with N from 2 to 6.")
        return zoo.sums_task(400 if size == "quick" else 1000, count=int(count or 4))
    from steerlab.datasets import read_task

    try:
        re.compile(behaviour or "")
    except re.error as error:
        raise DatasetError(
            f"--behaviour {behaviour!r} is no regular expression: {error}; correct it."
        ) from error
    if not Path(name).exists():
        raise DatasetError(f"{name} cannot be read: there is no such file; name a JSONL file, or write sums.")
    return read_task(Path(name), behaviour=behaviour)
