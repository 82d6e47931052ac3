"""`steerlab compare` and `steerlab report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from steerlab.cli import _completion
from steerlab.cli._app import app, err, loading_libraries, out, say, waiting
from steerlab.cli._inputs import require_files
from steerlab.cli._options import (
    Answers,
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    ModelName,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    SizeOption,
    TrustRemoteCode,
    renamed,
)
from steerlab.cli._results import print_json, print_line, run_facts
from steerlab.registry import STUDIES, Preset, ordered_studies

if TYPE_CHECKING:
    from steerlab.comparison import Run
    from steerlab.forecast import Forecast


Figures = Annotated[
    bool, typer.Option("--figures", help="Write every figure as PNG, SVG and PDF into the run folder.")
]
Column = Literal["single", "double"]
ColumnOption = Annotated[
    Column,
    typer.Option("--column", help="Width of these files: one column of a paper (3.3 in) or two (7 in)."),
]


def _able() -> list[str]:
    """The registered studies that take a pair; none of them is imported for that."""
    return [study.name for study in ordered_studies(in_compare=True)]


# Long: two thirds of it are its options.
@app.command()
def compare(
    base: ModelName,
    post: Annotated[
        list[str] | None,
        typer.Argument(
            help="Likewise, or an adapter, which is put on the model that is named before it. Several are the stages "
            "of one training, in their order.",
            autocompletion=_completion.models,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="The run folder.")] = None,
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
    contrasts: Annotated[
        list[str] | None,
        typer.Option(
            "--contrast",
            help="Your own contrast: a file (text,label or positive,negative) or a packaged one's name; repeatable.",
            autocompletion=_completion.contrasts,
        ),
    ] = None,
    studies: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated, all of them by default: {', '.join(_able())}; contrast runs with --contrast.",
            autocompletion=_completion.studies,
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="With three or more checkpoints, comma-separated names for them.")
    ] = None,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            help="With three or more checkpoints, a contrast that training did not aim at; by default packaged ones.",
            autocompletion=_completion.contrasts,
        ),
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print tokens and time alone; load the models, run and write nothing."
        ),
    ] = False,
    merge: Annotated[
        bool,
        typer.Option(help="Fold an adapter into the weights, or keep it apart in the memory of one model."),
    ] = True,
    figures: Figures = False,
    column: ColumnOption = "double",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare a base model with the model post-trained from it, or the stages of a training; write a report."""
    from steerlab.opening import name_and_revision, require_findable
    from steerlab.stages import expanded

    if output is None and not dry_run:
        raise typer.BadParameter("name the run folder", param_hint="'--out'")
    names = None if studies is None else [name.strip() for name in studies.split(",") if name.strip()]
    for name in names or ():
        STUDIES[name]  # an unknown name is refused before the libraries are imported
    requests = renamed(prompts, "--prompts", requests, "--requests")
    require_files(requests, statements, questions)
    checkpoints = expanded([base, *(post or ())])
    if len(checkpoints) == 1:
        raise typer.BadParameter("name a second checkpoint, or a pattern of several", param_hint="'POST'")
    require_findable(*(name_and_revision(one)[0] for one in checkpoints))
    if len(checkpoints) > 2 and dry_run:
        raise typer.BadParameter("a forecast is made for two checkpoints; name two", param_hint="'--dry-run'")
    with loading_libraries():
        import steerlab.models  # noqa: F401  (seconds, once)
        from steerlab.comparison import compare as run_comparison
        from steerlab.comparison import foresee
    loading: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "merge": merge,
        "trust_remote_code": trust_remote_code,
    }
    if dry_run:
        foreseen = foresee(
            checkpoints[0],
            checkpoints[1],
            studies=names,
            size=size,
            contrasts=contrasts,
            announce=say,
            **loading,
        )
        print_forecast(foreseen, as_json=as_json)
        return
    assert output is not None
    try:
        run = run_comparison(
            checkpoints,
            out=output,
            labels=None if labels is None else [label.strip() for label in labels.split(",")],
            controls=controls,
            studies=names,
            size=size,
            preset=preset,
            statements=statements,
            requests=requests,
            questions=questions,
            contrasts=contrasts,
            answers=answers,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            announce=say,
            **loading,
        )
    except KeyboardInterrupt:
        err.print("Finished studies are kept; the same command with --resume goes on.")
        raise
    print_run(run, column if figures else None, as_json=as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    other: Annotated[Path | None, typer.Argument(help="With --diff, another one.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Set two runs side by side on one page.")] = False,
    output: Annotated[Path, typer.Option("--out", help="With --diff, the page.")] = Path("diff.html"),
    figures: Figures = False,
    column: ColumnOption = "double",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the report of a stored run again, and show its table; or set two runs side by side."""
    from steerlab.comparison import diff_runs, rewrite_report

    if diff != (other is not None):
        raise typer.BadParameter("two run folders and --diff go together", param_hint="'--diff'")
    if other is not None:
        page = diff_runs(run, other, output)
        if as_json:
            print_json({"runs": [run, other], "report": page})
        else:
            print_line(f"Side by side: {page}")
        return
    print_run(rewrite_report(run), column if figures else None, as_json=as_json)


def print_forecast(foreseen: Forecast, *, as_json: bool) -> None:
    """The table of a forecast, and its sentence."""
    from rich.table import Table

    from steerlab.forecast import COLUMNS

    if as_json:
        print_json(
            {"seconds": foreseen.seconds, "seconds of size full": foreseen.full, "studies": foreseen.studies}
        )
        return
    table = Table(*COLUMNS)
    for row in foreseen.rows:
        table.add_row(*row)
    out.print(table)
    print_line(foreseen.sentence)


def print_run(run: Run, column: Column | None, *, as_json: bool) -> None:
    """The summary table of a run and where its report lies, with figures of this width where one is named."""
    from steerlab.report import terminal_table

    place, reason = (None, None) if column is None else _drawn(run, column)
    if as_json:
        print_json({**run_facts(run), "figures": place, "why no figures": reason})
        return
    out.print(terminal_table(list(run.results.values())))
    print_line(f"Report: {run.report}")
    if column is not None:
        print_line(reason or f"Figures: {place}")


def _drawn(run: Run, column: Column) -> tuple[Path | None, str | None]:
    """The folder of the figure files of a run, or the reason why there are none."""
    from steerlab.report import write_figures

    place = run.folder.path / "figures"
    with waiting("Drawing the figures"):
        reason = write_figures(run.results, place, column)
    return (None, reason) if reason else (place, None)
