"""`steerlab doctor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from steerlab.cli import _completion
from steerlab.cli._app import app, out
from steerlab.cli._inputs import load_model
from steerlab.cli._options import AsJson, Base, Device, Dtype, Quiet, TrustRemoteCode
from steerlab.cli._results import print_json
from steerlab.errors import ModelError, SteerlabError
from steerlab.registry import REGISTRIES, registry_of

if TYPE_CHECKING:
    from steerlab.models import CheckRow, LanguageModel


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint to check, too.", autocompletion=_completion.models)
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    trust_remote_code: TrustRemoteCode = False,
    base: Base = None,
) -> None:
    """What is installed and can be named, what device there is, and whether a checkpoint passes the self-check."""
    from steerlab.opening import require_findable

    require_findable(model, base)
    found: dict[str, Any] = {}
    show = found.update if as_json else _print_tables
    show({"environment": _environment()})
    show({"names": {things: sorted(registry_of(things)) for things in REGISTRIES}})
    if model is not None:
        _check(model, device, dtype, trust_remote_code, base, show)
    if as_json:
        print_json(found)


def _environment() -> dict[str, str | int]:
    from steerlab.environment import hardware, library_versions, optional_versions

    return {**library_versions(), **optional_versions(), **hardware()}


def _check(
    model: str,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    base: str | None,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Show a checkpoint part by part, and the self-check also where the model failed it."""
    from steerlab.models import SelfCheck

    try:
        loaded = load_model(model, device, dtype, trust_remote_code, base)
        show({"checkpoint": {"name": loaded.name, **checkpoint_facts(loaded)}})
        show({"self-check": loaded.self_check().rows})
        show({"one mean": _shared_mean(loaded)})
    except ModelError as error:
        if isinstance(error.self_check, SelfCheck):
            show({"self-check": error.self_check.rows})
        raise


def _print_tables(found: dict[str, Any]) -> None:
    tables: dict[str, Callable[[Any], Any]] = {
        "environment": _environment_table,
        "names": _registered_table,
        "checkpoint": _checkpoint_table,
        "self-check": _self_check_table,
        "one mean": str,
    }
    for name, value in found.items():
        out.print(tables[name](value))


def _environment_table(facts: dict[str, Any]) -> Table:
    table = Table("what", "found", title="Environment", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, str(value))
    return table


def _checkpoint_table(facts: dict[str, str]) -> Table:
    table = Table("what", "found", title=facts["name"], title_justify="left")
    for name, value in facts.items():
        if name != "name":
            table.add_row(name, value)
    return table


def checkpoint_facts(model: LanguageModel) -> dict[str, str]:
    """What a loaded checkpoint or live model is, what works on it, and what to do where something does not."""
    from steerlab.models.quantised import method_of
    from steerlab.steering import why_not_baked

    mixers = len(model.sites("mixer_out")) if "mixer_out" in model.site_names() else 0
    neurons = "mlp_post" in model.site_names()
    dequantised = ", as the numbers that the quantised weights act as" if method_of(model.model) else ""
    return {
        "family": model.family,
        "stored as": model.stored_as or "plain weights",
        "runs in": f"{model.backend}, {model.dtype}, {model.device}".replace("torch.", ""),
        "layers": f"{model.n_layers}, width {model.d_model}"
        + (f", {mixers} with a mixer besides attention" if mixers else ""),
        "sites": ", ".join(model.site_names()),
        "chat template": "yes"
        if model.has_chat_template
        else "no: instructions are asked in a plain template",
        **({"images, sound": "no: it runs on text alone"} if model.part_of else {}),
        "reading, steering, ablation": "yes",
        "neurons": f"yes{dequantised}"
        if neurons
        else "no: every layer's MLP is a mixture of experts, or there is none; use mlp_out",
        "baking": _baking(why_not_baked(model)),
    }


def _baking(reason: str) -> str:
    return f"no: {reason}" if reason else "yes"


def _shared_mean(model: LanguageModel) -> str:
    """How much of every token is one mean, and what follows; why not, where the model's tokenizer cannot say."""
    from steerlab.readouts.dominance import dominance_sentence, mean_shares

    try:
        return dominance_sentence(mean_shares(model))
    except SteerlabError as error:
        return f"How much of every token is one mean was not measured: {error}"


def _registered_table(names: dict[str, list[str]]) -> Table:
    table = Table("what", "names", title="What can be named", title_justify="left")
    for things, known in names.items():
        table.add_row(things, ", ".join(known))
    return table


def _self_check_table(rows: Sequence[CheckRow]) -> Table:
    table = Table("part", "largest relative error", "verdict", title="Self-check", title_justify="left")
    for row in rows:
        table.add_row(row.part, f"{row.error:.1e}", "ok" if row.ok else "FAILS")
    return table
