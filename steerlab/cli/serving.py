"""The command `serve`: a steered model behind transformers' own OpenAI-compatible server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlab.cli._app import app, out
from steerlab.cli._inputs import load_model, require_files
from steerlab.cli._options import AblateOption, Device, Dtype, Keep, ModelName, Quiet, Steer, TrustRemoteCode
from steerlab.cli.written import parse_keep, placed, read_direction, read_written
from steerlab.errors import DirectionError

_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<rest>.+)")


@app.command()
def serve(
    model: ModelName,
    steer: Steer = None,
    ablate: AblateOption = None,
    keep: Keep = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(help="As --steer, but it acts only on requests that name it. Repeatable."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="FILE[@LAYER], a direction that requests may watch. Repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model.")] = None,
    cache_tokens: Annotated[
        int, typer.Option(min=64, help="Room for the texts of all requests that run at once, in tokens.")
    ] = 16384,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve a steered model to OpenAI's clients; requests choose vectors and strengths by name.

    --steer and --ablate act on every request that names no vectors. A name is its file's, or NAME=FILE gives another.
    """
    from steerlab.opening import require_findable

    require_findable(model)
    added, removed, offered, probes = (_named(given) for given in (steer, ablate, offer, probe))
    always = _names([*_files(added), *_files(removed)])
    _require_different([*always, *_names(_files(offered))])
    _require_different(_names(_files(probes)))
    read = [parse_keep(text) for text in _texts(probes)]
    require_files(*(file for file, _, _ in read))
    written = read_written([*_texts(added), *_texts(offered)], _texts(removed), keep)
    loaded = load_model(model, device, dtype, trust_remote_code)
    from steerlab.serving import Server

    readings = [read_direction(file, layers, loaded) for file, _, layers in read]
    # read_written puts what is added first: --steer, --offer, then --ablate.
    order = [*_names(_files(added)), *_names(_files(offered)), *_names(_files(removed))]
    server = Server(
        loaded,
        dict(zip(order, placed(loaded, written), strict=True)),
        always=always,
        probes=dict(zip(_names(_files(probes)), readings, strict=True)),
        host=host,
        port=port,
        name=name,
        cache_tokens=cache_tokens,
    )
    server.run(announce=lambda: _said(server))


def _said(server: Any) -> None:
    out.print(f"Serving {server.name} at {server.url}/v1 (Ctrl-C ends it)", markup=False, highlight=False)
    for what, names in (
        ("always", server.desk.always),
        ("vectors", server.desk.vectors),
        ("watch", server.desk.probes),
    ):
        if names:
            out.print(f"  {what}: {', '.join(names)}", markup=False, highlight=False)
    if server.host not in ("127.0.0.1", "::1", "localhost"):
        out.print(
            "  Whoever reaches this address may use it: there are no keys.", markup=False, highlight=False
        )


def _named(given: Sequence[str] | None) -> list[tuple[str | None, str]]:
    """Names that stand before a file, where there are some, and the rest."""
    found: list[tuple[str | None, str]] = []
    for text in given or ():
        match = None if Path(text).exists() else _NAMED.fullmatch(text)
        found.append((None, text) if match is None else (match["name"], match["rest"]))
    return found


def _texts(named: Sequence[tuple[str | None, str]]) -> list[str]:
    return [text for _, text in named]


def _files(named: Sequence[tuple[str | None, str]]) -> list[tuple[str | None, Path]]:
    return [(name, Path(text.partition(".safetensors")[0])) for name, text in named]


def _names(files: Sequence[tuple[str | None, Path]]) -> list[str]:
    """What each is called: its name, else its file's."""
    return [file.name if name is None else name for name, file in files]


def _require_different(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DirectionError(
            f"Two vectors are called {twice[0]!r}; name them, for example other={twice[0]}.safetensors:1@12."
        )
