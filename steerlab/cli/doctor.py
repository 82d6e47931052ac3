"""`steerlab doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from steerlab.cli._app import app, out
from steerlab.cli._options import Base, Device, Dtype, TrustRemoteCode, load_model
from steerlab.errors import ModelError, SteerlabError
from steerlab.registry import REGISTRIES, registry_of

if TYPE_CHECKING:
    from steerlab.models import LanguageModel, SelfCheck


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A checkpoint to check, too.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    base: Base = None,
) -> None:
    """What is installed and can be named, what device there is, and whether a checkpoint passes the self-check."""
    from steerlab.environment import hardware, library_versions, optional_versions

    table = Table("what", "found", title="Environment", title_justify="left")
    for name, value in {**library_versions(), **optional_versions(), **hardware()}.items():
        table.add_row(name, str(value))
    out.print(table)
    out.print(_registered_table())
    if model is None:
        return
    from steerlab.models import SelfCheck

    try:
        loaded = load_model(model, device, dtype, trust_remote_code, base)
        out.print(_checkpoint_table(loaded))
        out.print(_self_check_table(loaded.self_check()))
        out.print(_shared_mean(loaded))
    except ModelError as error:
        if isinstance(error.self_check, SelfCheck):
            out.print(_self_check_table(error.self_check))
        raise


def _checkpoint_table(model: LanguageModel) -> Table:
    table = Table("what", "found", title=model.name, title_justify="left")
    for name, value in checkpoint_facts(model).items():
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


def _registered_table() -> Table:
    table = Table("what", "names", title="What can be named", title_justify="left")
    for things in REGISTRIES:
        table.add_row(things, ", ".join(sorted(registry_of(things))))
    return table


def _self_check_table(check: SelfCheck) -> Table:
    table = Table("part", "largest relative error", "verdict", title="Self-check", title_justify="left")
    for row in check.rows:
        table.add_row(row.part, f"{row.error:.1e}", "ok" if row.ok else "FAILS")
    return table
