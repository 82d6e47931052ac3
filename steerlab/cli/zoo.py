"""`steerlab zoo`: list, train and measure the bundled models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from steerlab.cli._app import out, zoo_app

Scale = Literal["all", "small", "large"]


@zoo_app.command("list")
def zoo_list() -> None:
    """The bundled models, what they are and where they lie."""
    from steerlab import zoo

    table = Table("name", "folder", "size")
    for name in zoo.names():
        folder = zoo.path(name)
        size = sum(file.stat().st_size for file in folder.iterdir())
        table.add_row(f"zoo:{name}", str(folder), f"{size / 1e6:.1f} MB")
    out.print(table)


@zoo_app.command("train")
def zoo_train(
    output: Annotated[Path, typer.Option("--out", help="Where the trained folders go.")],
    scale: Annotated[Scale, typer.Option(help="Which pair.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of weights and corpus.")] = 0,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Use torch.compile; faster, needs a C++ compiler.")
    ] = False,
) -> None:
    """Train the bundled pairs again, from nothing, on the CPU (hours on two cores)."""
    from steerlab import zoo
    from steerlab.progress import track

    wanted = zoo.scales() if scale == "all" else (scale,)
    for folder in zoo.train(output, scale=wanted, seed=seed, progress=track, compiled=compiled):
        out.print(str(folder), soft_wrap=True)


@zoo_app.command("measure")
def zoo_measure(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder `zoo train` wrote; the bundled pairs else.")
    ] = None,
    scale: Annotated[Scale, typer.Option(help="Which pair.")] = "all",
) -> None:
    """Measure what the pairs can do, on held-out items, beside what they must be able to do."""
    from steerlab import zoo

    table = Table("model", "what", "measured", "must be", "")
    for row in zoo.measure(folder, scale=zoo.scales() if scale == "all" else (scale,)):
        table.add_row(
            row.model, row.what, str(row.estimate), str(row.bar or ""), "missed" if row.met is False else ""
        )
    out.print(table)
