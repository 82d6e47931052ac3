"""`steerlab trace`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from steerlab.cli._app import app, loading_libraries, say
from steerlab.cli._inputs import load_model, require_files
from steerlab.cli._options import (
    Answers,
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
from steerlab.errors import SiteError
from steerlab.registry import STUDIES, Preset

if TYPE_CHECKING:
    from steerlab.models import LanguageModel
    from steerlab.results import StudyResult
    from steerlab.run_data import Facts

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
    answers: Answers = None,
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
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Map where two models hold what they know, patch one's states into the other, and write a report.

    What is finished is kept beside the run folder; the same command goes on after an interruption.
    """
    from steerlab.opening import require_findable

    require_findable(base, post)
    require_files(statements, pairs)
    from steerlab.comparison import run_alone
    from steerlab.run_data import data_facts, on_topics, read_data

    _require_sites(sites or ())
    given = read_data(statements, pairs=pairs, template=template)
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

    def study(models: dict[str, LanguageModel]) -> tuple[StudyResult, dict[str, Facts]]:
        from steerlab import studies
        from steerlab.alignment import Ridge

        pair = studies.Pair(models["base"], models["post"])
        data = on_topics(given, pair.topics)
        result = studies.knowledge(pair, data, kept_in=kept_in, aligner=Ridge() if align else None, **options)
        return result, data_facts(data, STUDIES["knowledge"].reads)

    run = run_alone(
        study,
        {"base": base, "post": post},
        out=output,
        configuration={**{name: _stored(value) for name, value in options.items()}, "align": int(align)},
        overwrite=overwrite,
        announce=say,
        load=partial(load_model, device=device, dtype=dtype, trust_remote_code=trust_remote_code),
    )
    shutil.rmtree(kept_in, ignore_errors=True)
    print_study(run, as_json=as_json)


def _require_sites(sites: Sequence[str]) -> None:
    """Raise SiteError for a name that no model has at its layers."""
    if not sites:
        return
    with loading_libraries():
        from steerlab.models.sites import LAYER_SITES
    known = (*LAYER_SITES, "heads")
    for name in sites:
        if name not in known:
            raise SiteError(f"No site {name!r} can be mapped; --site takes {', '.join(known)}.")


def _stored(value: Any) -> str | int | list[str]:
    """An option as a manifest holds it."""
    if isinstance(value, tuple):
        return list(value)
    return "" if value is None else int(value) if isinstance(value, bool) else value
