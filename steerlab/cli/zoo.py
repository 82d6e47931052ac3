"""`steerlab zoo`: list, train and measure the bundled models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from steerlab.cli._app import out, waiting, zoo_app
from steerlab.cli._inputs import require_files, require_free
from steerlab.cli._options import AsJson, Overwrite, Quiet, Seed
from steerlab.cli._results import print_json, print_line

Scale = Literal["all", "small", "large"]
ScaleOption = Annotated[Scale, typer.Option("--scale", help="Which pair.")]


@zoo_app.command("list")
def zoo_list(as_json: AsJson = False) -> None:
    """The bundled models, what they are and where they lie."""
    from steerlab import zoo

    folders = {f"zoo:{name}": zoo.path(name) for name in zoo.names()}
    sizes = {name: sum(file.stat().st_size for file in folder.iterdir()) for name, folder in folders.items()}
    if as_json:
        print_json({name: {"folder": folders[name], "bytes": sizes[name]} for name in folders})
        return
    table = Table("name", "folder", "size")
    for name, folder in folders.items():
        table.add_row(name, str(folder), f"{sizes[name] / 1e6:.1f} MB")
    out.print(table)


@zoo_app.command("train")
def zoo_train(
    output: Annotated[Path, typer.Option("--out", help="Where the trained folders go.")],
    scale: ScaleOption = "all",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Use torch.compile; faster, needs a C++ compiler.")
    ] = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the bundled pairs again, from nothing, on the CPU (hours on two cores)."""
    from steerlab import zoo
    from steerlab.progress import track

    wanted = zoo.scales() if scale == "all" else (scale,)
    for name in zoo.names():
        if name.partition("-")[0] in wanted and not overwrite:
            require_free(output / name, overwrite=False)
    made = zoo.train(output, scale=wanted, seed=seed, progress=track, compiled=compiled)
    if as_json:
        print_json({"folders": made})
        return
    for folder in made:
        print_line(str(folder))


@zoo_app.command("measure")
def zoo_measure(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder `zoo train` wrote; the bundled pairs else.")
    ] = None,
    scale: ScaleOption = "all",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the pairs can do, on held-out items, beside what they must be able to do."""
    from steerlab import zoo

    require_files(folder)
    with waiting("Measuring the bundled pairs"):
        rows = zoo.measure(folder, scale=zoo.scales() if scale == "all" else (scale,))
    if as_json:
        print_json({"rows": [{**asdict(row), "bar": str(row.bar or ""), "met": row.met} for row in rows]})
        return
    table = Table("model", "what", "measured", "must be", "")
    for row in rows:
        table.add_row(
            row.model, row.what, str(row.estimate), str(row.bar or ""), "missed" if row.met is False else ""
        )
    out.print(table)
