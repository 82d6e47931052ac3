"""Where do small real models hold facts, and do a base's states work in its post-trained model?

    python analyses/real_facts.py analyses/real_facts.toml [--dry-run] [--only MODEL ...] [--figures figures]

Causal tracing of ROME's known facts (Meng et al., 2022): the subject's embeddings get noise, one clean state is put
back, and what the probability of the right word gains is its effect. `facts_map.csv`: mean effect by kind of state,
layer and role of the token. `facts_sites.csv`: does the early site (MLPs at the subject's last token) stand out, and
the late one (attention at the last token)? The layer of a site is chosen on one half of the facts and its effect read
on the other, both ways; a control is the same kind at the other tokens, or the other kind at the same token, each at
the layer that is best for it. `[crossed]`: on facts that both know, a model's clean states
in the noised run of the model post-trained from it, and the other way, beside each run's own states. A part is a model
and whose states it is given; a part whose rows are in the files is not run again, and an interrupted one goes on
(`--runs`). STEERLAB_REAL_MODELS and STEERLAB_DATA name the folders of local copies.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _facts_rows import map_rows, site_rows
from _local_copies import data_files, digest, model_folder
from _part_files import Row
from _script import arguments_of, draw, part_files, settings_of, slug

import steerlab as sl
from steerlab.datasets import StatementSet, read_facts
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.plots import heatmap
from steerlab.studies import facts_of, noise_effects
from steerlab.studies._knowledge.noise_effects import known_facts

ADAPTERS = Path(__file__).parent / "post_training"
PART = ("model", "weights_sha256", "states_of", "settings")
ITSELF = "itself"
COLUMNS = {
    "facts_map": (*PART, "kind", "window", "layer", "role", "n", "effect", "low", "high"),
    "facts_sites": (
        *PART,
        *("question", "layers", "n", "value", "low", "high", "control", "control_value", "control_low", "control_high"),
        *("difference", "difference_low", "difference_high", "facts", "unknown", "copies"),
        *("token_layers", "naive_token_layers"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One part: what tells it apart, the models of the noised run and of the states, how much of it; and `common`, the
    models that must all know a fact."""

    part: Row
    target: str
    source: str
    facts: int
    copies: int
    common: tuple[str, ...] = ()


def parts_of(plan: Mapping[str, Any]) -> Iterator[Work]:
    """Every model with its own states, then each crossed pair both ways and each with its own."""
    general = [plan[name] for name in ("seed", "every", "asked", "most_tokens")]
    for name, mine in plan["models"].items():
        part = {"model": name, "weights_sha256": mine["sha256"], "states_of": ITSELF}
        part |= {"settings": settings_of(mine, *general)}
        yield Work(part, name, name, mine["facts"], mine["copies"])
    for name, mine in plan.get("crossed", {}).items():
        tuned = f"{name} + {mine['adapter']}"
        weights = digest(ADAPTERS / mine["adapter"] / "adapter_model.safetensors")
        sums = {name: mine["sha256"], tuned: f"{mine['sha256']}+{weights}"}
        both = (name, tuned)
        for target, source in itertools.product(both, both):
            said = f"{source}, facts that both know"
            part = {"model": target, "weights_sha256": sums[target], "states_of": said}
            part |= {"settings": settings_of(mine, *general)}
            yield Work(part, target, source, mine["facts"], mine["copies"], both)


def load(name: str, plan: Mapping[str, Any]) -> LanguageModel:
    """A hub model from its local copy, or one with an adapter of `post_training/` behind a plus sign."""
    hub, _, adapter = name.partition(" + ")
    known = plan["crossed" if adapter else "models"]
    model = sl.load(model_folder(hub, known[hub]["sha256"]), dtype=known[hub].get("dtype", "float32"))
    if adapter:
        model = sl.load(ADAPTERS / adapter, base=model)
    model.name = name
    return model


def asked(facts: StatementSet, plan: Mapping[str, Any]) -> StatementSet:
    """So many facts, drawn by the seed."""
    order = np.random.default_rng(plan["seed"]).permutation(len(facts))[: plan["asked"]]
    return StatementSet(facts[int(row)] for row in order)


def run_part(
    work: Work, models: Mapping[str, LanguageModel], facts: StatementSet, plan: Mapping[str, Any], kept: Path
) -> dict[str, list[Row]]:
    """The rows of a part, by file."""
    model, source = models[work.target], models[work.source]
    given = [
        fact
        for fact in facts_of(model, asked(facts, plan))
        if model.lengths([fact.prompt])[0] <= plan["most_tokens"]
    ]
    for name in work.common:
        given = known_facts(models[name], given)
    found = noise_effects(
        model,
        given,
        source=None if source is model else source,
        limit=work.facts,
        copies=work.copies,
        layers=range(0, model.n_layers, plan["every"]),
        severed=False,
        seed=plan["seed"],
        kept_in=kept,
    )
    counted = {
        "facts": len(found.clean),
        "unknown": found.unknown,
        "copies": work.copies,
        "token_layers": found.cost.patched + found.cost.kept,
        "naive_token_layers": found.cost.naive,
    }
    sites = [row | counted for row in site_rows(found, plan["seed"])]
    return {"facts_map": list(map_rows(found, plan["seed"])), "facts_sites": sites}


def forecast(works: Sequence[Work], facts: StatementSet, plan: Mapping[str, Any]) -> str:
    """About how many tokens and token-layers the parts that are left take, with the lengths of the first facts."""
    from transformers import AutoConfig, AutoTokenizer

    said = []
    for work in works:
        hub = work.target.partition(" + ")[0]
        known = plan["models"].get(hub) or plan["crossed"][hub]
        folder = model_folder(hub, known["sha256"])
        tokenizer, depth = (
            AutoTokenizer.from_pretrained(folder),
            AutoConfig.from_pretrained(folder).num_hidden_layers,
        )
        chosen = asked(facts, plan)
        cuts = [item.text[: item.spans["object"][0]] for item in chosen]
        ends = [item.text[item.spans["subject"][0] : item.spans["object"][0]] for item in chosen]
        reads = [len(ids) for ids in tokenizer(cuts)["input_ids"]]
        traced = [len(ids) for ids in tokenizer(ends, add_special_tokens=False)["input_ids"]]
        cells = [
            n * (n + 1) / 2 for n, whole in zip(traced, reads, strict=True) if whole <= plan["most_tokens"]
        ]
        rows = sum(depth - layer for layer in range(0, depth, plan["every"]))
        amount = 3 * rows * work.copies * sum(cells[: work.facts])
        said.append(
            f"{work.target}, states of {work.part['states_of']}: {sum(reads)} tokens to ask, about "
            f"{amount / 1e6:.1f} million token-layers, as many as {amount / depth:.0f} tokens"
        )
    return "\n".join(said)


def figures(rows: Sequence[Row], folder: Path) -> None:
    """A map a part and kind: layer by role, mean effect."""
    named = {"resid_post": "residual stream", "mlp_out": "MLPs", "attn_out": "attention"}
    for part in dict.fromkeys((row["model"], row["states_of"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["states_of"]) == part and row["n"] != "0"]
        for kind, words in named.items():
            cells = {(row["layer"], row["role"]): float(row["effect"]) for row in mine if row["kind"] == kind}
            layers = list(dict.fromkeys(layer for layer, _ in cells))
            roles = list(dict.fromkeys(role for _, role in cells))
            values = np.array([[cells.get((layer, role), np.nan) for role in roles] for layer in layers])
            whose = "" if part[1] == ITSELF else f", states of {part[1].rpartition('/')[2]}"
            picture = heatmap(
                values,
                x=roles,
                y=layers,
                title=f"{part[0].rpartition('/')[2]}{whose}: {words} restored",
                x_title="token",
                y_title="layer",
                colour_title="gain of P(right word)",
            )
            draw(picture, folder / f"facts_{'_'.join([*map(slug, part), kind])}.svg")


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models", runs=True)
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left = [
        work
        for work in parts_of(plan)
        if not all(file.holds(work.part) for file in files.values())
        and (arguments.only is None or work.target in arguments.only)
    ]
    print(f"{plan['name']}: {len(left)} parts are left", flush=True)
    if not left:
        return
    facts = read_facts(next(iter(data_files(plan["data"]).values())))
    if arguments.dry_run:
        print(forecast(left, facts, plan))
        return
    loaded: dict[str, LanguageModel] = {}
    for work in left:
        wanted = {work.target, work.source, *work.common}
        loaded = {name: loaded.get(name) or load(name, plan) for name in wanted}
        kept = (
            arguments.runs / plan["name"] / "_".join(slug(work.part[name]) for name in ("model", "states_of"))
        )
        try:
            made = run_part(work, loaded, facts, plan, kept)
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}: {error}") from error
        for name, rows in made.items():
            files[name].write(work.part, rows)
        shutil.rmtree(kept, ignore_errors=True)
        figures(files["facts_map"].rows(), arguments.folder)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
