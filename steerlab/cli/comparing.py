"""`steerlab compare` and `steerlab report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerlab.cli._app import app, err, out
from steerlab.cli._options import (
    Answers,
    Device,
    Dtype,
    ModelName,
    Overwrite,
    Resume,
    RunOut,
    Seed,
    SizeOption,
    TrustRemoteCode,
    renamed,
)
from steerlab.registry import Preset, ordered_studies

if TYPE_CHECKING:
    from steerlab.comparison import Run


def _able() -> list[str]:
    """The registered studies that take a pair; none of them is imported for that."""
    return [study.name for study in ordered_studies(in_compare=True)]


# Long: two thirds of it are its options.
@app.command()
def compare(
    base: ModelName,
    post: Annotated[
        str, typer.Argument(help="Likewise, or an adapter, which is put on the base that is named first.")
    ],
    output: RunOut,
    requests: Annotated[
        Path | None, typer.Option(help="File or folder of requests in place of the packaged ones.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(hidden=True)] = None,
    statements: Annotated[
        Path | None, typer.Option(help="File or folder of true and false statements, likewise.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="File of multiple choice, in place of questions made from statements.")
    ] = None,
    studies: Annotated[
        str | None, typer.Option(help=f"Comma-separated, all of them by default: {', '.join(_able())}.")
    ] = None,
    size: SizeOption = "quick",
    preset: Annotated[
        Preset, typer.Option(help="corrected, or published for the papers' choices where a study has them.")
    ] = "corrected",
    answers: Answers = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    merge: Annotated[
        bool,
        typer.Option(help="Fold an adapter into the weights, or keep it apart in the memory of one model."),
    ] = True,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare a base model with the model post-trained from it; write a report."""
    from steerlab.comparison import compare as run_comparison

    names = None if studies is None else [name.strip() for name in studies.split(",") if name.strip()]
    with err.status("Loading the libraries"):
        import steerlab.models  # noqa: F401  (seconds, once)
    try:
        run = run_comparison(
            base,
            post,
            out=output,
            studies=names,
            size=size,
            preset=preset,
            statements=statements,
            requests=renamed(prompts, "--prompts", requests, "--requests"),
            questions=questions,
            answers=answers,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            announce=lambda line: err.print(line, style="bold", markup=False, highlight=False),
            device=device,
            dtype=dtype,
            merge=merge,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt:
        err.print("Finished studies are kept; the same command with --resume goes on.")
        raise
    print_run(run)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report of a stored run again, and show its table."""
    from steerlab.comparison import rewrite_report

    print_run(rewrite_report(run))


def print_run(run: Run) -> None:
    """The summary table of a run and where its report lies."""
    from steerlab.report import terminal_table

    out.print(terminal_table(list(run.results.values())))
    out.print(f"Report: {run.report}", markup=False, soft_wrap=True)
