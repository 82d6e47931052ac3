"""Is refusal one direction in small real models, which rule finds it, and what does it cost to take it out?

    python analyses/real_refusal.py analyses/real_refusal.toml [--dry-run] [--only MODEL ...] [--figures figures]

Each model alone, by the parts of the refusal study, on the requests of the refusal paper (Arditi et al., 2024). Both
rules choose a direction on validation requests: "corrected" with the way of ablation it prefers (`selection`),
"published" with that of the paper, which also adds at three points of the layer. `choices.csv`: what each chose.
`rates.csv`: refused and gibberish shares of unseen requests, unsteered, with the direction ablated (harmful) and added
(harmless), beside random directions treated the same way, each on an eighth of the requests in turn. `prices.csv`: what
that costs on plain text. `judges.csv`: how far phrases in the answer and the log-odds of its first token agree on what
is a refusal, unsteered and with the direction ablated (harmful) or added (harmless). Where the published rule chooses
nothing, its row says why. A part is a model and a rule; a part whose rows are in the files is not run again. Answers
are scored in memory and written nowhere. STEERLAB_REAL_MODELS and STEERLAB_DATA name the folders of local copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from _local_copies import data_files, model_folder
from _part_files import Row
from _script import arguments_of, ends, named, part_files, settings_of

import steerlab as sl
from steerlab.datasets import ContrastSet, plain_text, read_requests, statements
from steerlab.errors import SteerlabError
from steerlab.judging import agreement_of
from steerlab.models import LanguageModel
from steerlab.readouts.refusals import Verdicts, tells_apart
from steerlab.studies._refusal.outcomes import joined, outcome
from steerlab.studies._refusal.parts import (
    METHODS,
    Amount,
    Found,
    Subject,
    added,
    effects,
    find,
    prices_of,
    removed,
)
from steerlab.studies._refusal.result import Outcome
from steerlab.studies._refusal.study import splits_of, subject_of

PART = ("model", "weights_sha256", "rule", "settings")
RULES = ("corrected", "published")
AMOUNTS = ("seed", "randoms", "texts", "task", "strengths")  # of the file


COLUMNS = {
    "choices": (
        *PART,
        *("chosen_by", "site", "layer", "n_layers", "position", "token", "toward", "window"),
        *("bypass", "induce", "kl", "separation", "left_of_validation", "strength", "note"),
    ),
    "rates": (
        *PART,
        *("prompts", "intervention", "direction", "n"),
        *ends("refused", "starts_refusing", "log_odds", "gibberish", "effect"),
        *("draws", "strongest_draw"),
    ),
    "prices": (*PART, "intervention", "direction", *ends("kl", "loss_change", "prompt_kl", "task")),
    "judges": (*PART, "answers", "n", *ends("by_phrases", "by_log_odds", "same"), "kappa"),
}


def amount_of(mine: Mapping[str, Any], plan: Mapping[str, Any]) -> Amount:
    """The amounts of the study, as the file says."""
    return Amount(
        **mine["requests"],
        strengths=tuple(plan["strengths"]),
        randoms=plan["randoms"],
        random_share=1 / 8,
        texts=plan["texts"],
        task=plan["task"],
        priced_randoms=2,
        scores="needed",
    )


def run_part(
    model: LanguageModel, requests: ContrastSet, mine: Mapping[str, Any], rule: str, plan: Mapping[str, Any]
) -> dict[str, list[Row]]:
    """The rows of a part, by file."""
    seed, amount, missing = plan["seed"], amount_of(mine, plan), dict[str, str]()
    splits = splits_of(requests, amount, seed)
    subject = subject_of("model", model, splits, METHODS["corrected"], seed, missing, None)
    plain = {
        kind: subject.judge.verdicts(prompts)
        for kind, prompts in zip(("harmful", "harmless"), subject.test.kinds, strict=True)
    }
    outcomes = [
        outcome("model", kind, "none", "none", plain[kind], seed=seed) for kind in ("harmful", "harmless")
    ]
    judges = [agreement("unsteered", list(plain.values()))]
    if not tells_apart(plain["harmful"], plain["harmless"]):
        note = "The model does not refuse harmful requests more often than harmless ones; nothing was chosen."
        return {
            "choices": [{"note": note}],
            "rates": list(map(rate, outcomes)),
            "prices": [],
            "judges": judges,
        }
    subject = by_rule(subject, rule)
    try:
        found = find(subject, "needed", None)
    except SteerlabError as error:
        return {"choices": [{"note": str(error)}], "rates": [], "prices": [], "judges": []}
    strength = best_strength(subject, found, amount)
    edits = {
        "harmful": removed(found, found.unit),
        "harmless": added(subject, found.unit * found.gap(found.choice.layer), found.choice.layer, strength),
    }
    steered = [
        subject.judge.verdicts(prompts, [edits[kind]])
        for kind, prompts in zip(edits, subject.test.kinds, strict=True)
    ]
    judges.append(agreement("ablated or added", steered))
    outcomes += effects(subject, {"model": found}, ["model"], plain, strength, amount, seed)
    prices = prices_of(subject, found, strength, amount, list(plain_text()), statements(), seed, missing)
    return {
        "choices": [
            choice(found, strength, " ".join(missing.values()).replace("The model model", "The model"))
        ],
        "rates": list(map(rate, outcomes)),
        "prices": [
            {"intervention": price.intervention, "direction": price.direction}
            | {
                name: value
                for column in ("kl", "loss_change", "prompt_kl", "task")
                for name, value in named(column, getattr(price, column)).items()
            }
            for price in prices
        ],
        "judges": judges,
    }


def by_rule(subject: Subject, rule: str) -> Subject:
    """The model as a rule sees it: the published one reads and adds at three points, answers are judged alike."""
    method = METHODS[rule]
    return replace(subject, method=replace(method, phrases="any", new_tokens=subject.method.new_tokens))


def best_strength(subject: Subject, found: Found, amount: Amount) -> float:
    """The least strength with the most coherent refusals of harmless validation requests."""
    shares = []
    for strength in amount.strengths:
        layer = found.choice.layer
        edit = added(subject, found.unit * found.gap(layer), layer, strength)
        shares.append(float(subject.judge.verdicts(subject.val.harmless, [edit]).coherent_refusal.mean()))
    return amount.strengths[int(np.argmax(shares))]


def choice(found: Found, strength: float, note: str) -> Row:
    """What was chosen, in a row."""
    place, selection = found.choice, found.selection
    return {
        "chosen_by": selection.rule,
        "site": selection.site,
        "layer": place.layer,
        "n_layers": selection.n_layers,
        "position": place.position,
        "token": repr(selection.token),
        "toward": place.toward,
        "window": place.window,
        **{name: getattr(place, name) for name in ("bypass", "induce", "kl", "separation")},
        "left_of_validation": place.unanswered,
        "strength": strength,
        "note": note,
    }


def rate(one: Outcome) -> Row:
    """An outcome in a row; of random directions the strongest one as well."""
    row: Row = {"prompts": one.prompts, "intervention": one.intervention, "direction": one.direction}
    row["n"] = one.refused.n
    columns = {"refused": one.refused, "starts_refusing": one.start, "log_odds": one.log_odds}
    for name, value in (columns | {"gibberish": one.gibberish, "effect": one.effect}).items():
        row |= named(name, value)
    if one.draws:
        row |= {"draws": len(one.draws), "strongest_draw": max(one.draws, key=abs)}
    return row


def agreement(answers: str, verdicts: Sequence[Verdicts]) -> Row:
    """Phrases and log-odds above zero on the same answers."""
    both = joined(verdicts)
    if np.isnan(both.odds).any():  # no word begins a refusal in this vocabulary
        return {"answers": answers, "n": len(both.odds)}
    found = agreement_of(both.odds > 0, both.phrases)
    columns = {"by_phrases": found.phrases, "by_log_odds": found.judged, "same": found.same}
    row: Row = {"answers": answers, "n": found.n, "kappa": found.kappa}
    return row | {name: value for key, share in columns.items() for name, value in named(key, share).items()}


def forecast(left: Sequence[Row], requests: ContrastSet, plan: Mapping[str, Any]) -> Iterator[str]:
    """About how many tokens a part reads and writes beside what selection asks for."""
    from transformers import AutoTokenizer

    for part in left:
        mine = plan["models"][part["model"]]
        amount = amount_of(mine, plan)
        tokenizer = AutoTokenizer.from_pretrained(model_folder(part["model"], mine["sha256"]))
        texts = [*requests.split("train").positive[:64], *requests.split("train").negative[:64]]
        length = sum(map(len, tokenizer(texts)["input_ids"])) / len(texts) + 30  # the template's own
        answers = 2 * amount.test * 3 + 2 * amount.randoms * max(2, amount.test // 8)
        answers += amount.val * (len(amount.strengths) + 4)
        yield (
            f"{part['model']}, {part['rule']}: about {int(length * (2 * amount.train + answers))} tokens to read and "
            f"{answers * METHODS['corrected'].new_tokens} to write, and what selection asks of "
            f"{2 * amount.val} requests at every layer"
        )


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models")
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left: list[Row] = [
        {
            **{"model": name, "weights_sha256": mine["sha256"], "rule": rule},
            "settings": settings_of(mine, {name: plan[name] for name in AMOUNTS}),
        }
        for name, mine in plan["models"].items()
        if arguments.only is None or name in arguments.only
        for rule in RULES
    ]
    left = [part for part in left if not files["choices"].holds(part)]
    print(f"{plan['name']}: {len(left)} parts are left", flush=True)
    if not left:
        return
    requests = read_requests(next(iter(data_files(plan["data"]).values())).parent)
    if arguments.dry_run:
        print("\n".join(forecast(left, requests, plan)))
        return
    models: dict[str, LanguageModel] = {}
    for part in left:
        name, mine = part["model"], plan["models"][part["model"]]
        if name not in models:
            dtype = mine.get("dtype", "float32")
            models = {name: sl.load(model_folder(name, mine["sha256"]), dtype=dtype)}
        try:
            made = run_part(models[name], requests, mine, part["rule"], plan)
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}: {error}") from error
        for file, rows in sorted(made.items(), key=lambda item: item[0] == "choices"):
            files[file].write(part, rows)  # choices last: they say that the part is done


if __name__ == "__main__":
    main()
