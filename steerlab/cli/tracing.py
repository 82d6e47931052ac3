"""`steerlab trace`."""

from __future__ import annotations

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
    from steerlab.datasets import StatementPair, StatementSet

Preset = Literal["corrected", "published"]
Differ = Literal["subject", "object"]
Columns = Literal["roles", "tokens"]


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
    import shutil
    import time

    from steerlab.comparison import store_study, text_hash
    from steerlab.run_folder import RunFolder

    asked = _statements(
        statements, pairs, template, bundled=base.startswith("zoo:") and post.startswith("zoo:")
    )
    RunFolder(output).require_free(resume=False, overwrite=overwrite)
    models = {
        "base": load_model(base, device, dtype, trust_remote_code),
        "post": load_model(post, device, dtype, trust_remote_code),
    }
    from steerlab.alignment import Ridge
    from steerlab.studies import knowledge

    kept_in = output.with_name(output.name + ".partial")
    started = time.perf_counter()
    result = knowledge(
        models["base"],
        models["post"],
        asked,
        size=size,
        seed=seed,
        answers=answers,
        preset=preset,
        differ=differ,
        shots=shots,
        columns=columns,
        kinds=sites or (),
        aligner=Ridge() if align else None,
        noise=noise,
        kept_in=kept_in,
    )
    texts = [
        text
        for one in asked
        for text in ([one.text] if hasattr(one, "text") else [one.true.text, one.false.text])
    ]
    run = store_study(
        result,
        output,
        models=models,
        data={
            "statements": {
                "n": len(asked),
                "hash": text_hash(texts),
                "source": str(pairs or statements or "packaged"),
                "example": texts[0],
            }
        },
        configuration={
            "size": size,
            "seed": seed,
            "preset": preset,
            "differ": differ,
            "answers": list(answers),
            "sites": sites or [],
            "columns": columns or "",
            "shots": "" if shots is None else shots,
            "align": int(align),
            "noise": int(noise),
        },
        seconds=time.perf_counter() - started,
        overwrite=overwrite,
    )
    shutil.rmtree(kept_in, ignore_errors=True)
    print_study(run, result)


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
    found = read_data(statements, bundled=bundled).statements
    return found if template is None else datasets.with_template(found, template)
