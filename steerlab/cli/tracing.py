"""`steerlab trace`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from steerlab.datasets import StatementPair, StatementSet
    from steerlab.models import LanguageModel
    from steerlab.results import StudyResult

Preset = Literal["corrected", "published"]
Differ = Literal["subject", "object"]
Columns = Literal["roles", "tokens"]


# Long: one parameter an option.
@app.command()
def trace(
    base: ModelName,
    post: ModelName,
    output: RunOut,
    statements: Annotated[
        Path | None, typer.Option(help="Labelled statements in place of the packaged ones.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs made already: rows with true and false, or two lists as JSON.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help='Where the spans stand: "The city of {subject} is in {object}."')
    ] = None,
    answers: Annotated[
        tuple[str, str], typer.Option(help="The words for true and false, each one token.")
    ] = (" TRUE", " FALSE"),
    differ: Annotated[Differ, typer.Option(help="What the statements of a pair differ in.")] = "subject",
    sites: Annotated[
        list[str] | None,
        typer.Option("--site", help="Map attn_out, mlp_out, heads ... beside the stream. Repeatable."),
    ] = None,
    columns: Annotated[
        Columns | None, typer.Option(help="roles (tokens by what they stand for) or single tokens.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Labelled lines before a statement; chosen else.")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Fit a ridge map between the models and patch across through it.")
    ] = False,
    noise: Annotated[bool, typer.Option(help="Trace facts through noise as well.")] = True,
    preset: Annotated[
        Preset, typer.Option(help="corrected, or published for the paper's pairs and columns.")
    ] = "corrected",
    size: SizeOption = "quick",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Map where two models hold what they know, patch one's states into the other, and write a report.

    What is finished is kept beside the run folder; the same command goes on after an interruption.
    """
    from steerlab.comparison import run_alone

    asked = _statements(
        statements, pairs, template, bundled=base.startswith("zoo:") and post.startswith("zoo:")
    )
    kept_in = output.with_name(output.name + ".partial")
    options: dict[str, Any] = {
        "size": size,
        "seed": seed,
        "preset": preset,
        "differ": differ,
        "answers": answers,
        "sites": tuple(sites or ()),
        "columns": columns,
        "shots": shots,
        "noise": noise,
    }

    def study(models: dict[str, LanguageModel]) -> StudyResult:
        from steerlab import studies
        from steerlab.alignment import Ridge

        pair = models["base"], models["post"]
        return studies.knowledge(pair, asked, kept_in=kept_in, aligner=Ridge() if align else None, **options)

    run = run_alone(
        study,
        {"base": base, "post": post},
        out=output,
        data={"statements": _facts(asked, str(pairs or statements or "packaged"))},
        configuration={**{name: _stored(value) for name, value in options.items()}, "align": int(align)},
        overwrite=overwrite,
        load=partial(load_model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
    )
    shutil.rmtree(kept_in, ignore_errors=True)
    print_study(run)


def _stored(value: Any) -> str | int | list[str]:
    """An option as a manifest holds it."""
    if isinstance(value, tuple):
        return list(value)
    return "" if value is None else int(value) if isinstance(value, bool) else value


def _facts(asked: StatementSet | list[StatementPair], source: str) -> dict[str, str | int]:
    """What the manifest says of statements or of pairs of them."""
    from steerlab.comparison import text_facts
    from steerlab.datasets import StatementSet

    if isinstance(asked, StatementSet):
        return text_facts(asked.texts, source)
    texts = [statement.text for pair in asked for statement in (pair.true, pair.false)]
    return text_facts(texts, source, n=len(asked))


def _statements(
    statements: Path | None, pairs: Path | None, template: str | None, *, bundled: bool
) -> StatementSet | list[StatementPair]:
    """The packaged statements, or those of a file."""
    from steerlab import datasets
    from steerlab.comparison import read_data
    from steerlab.errors import DatasetError

    if pairs is not None and statements is not None:
        raise DatasetError("Give --statements or --pairs, not both: pairs hold their statements.")
    if pairs is not None:
        return datasets.read_pairs(pairs, template=template)
    found = read_data(statements, bundled=bundled).labelled_statements
    return found if template is None else datasets.with_template(found, template)
