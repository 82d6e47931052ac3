"""Does a choice among ways of ablation do worse than the published way alone?

    python analyses/real_selection.py analyses/real_selection.toml [--figures figures]

The corrected rule on validation requests of the refusal paper. `tried.csv` holds every candidate whose answers were
looked at, the way in which it was ablated, and what came of it: bypass, KL, and the share of harmful validation
requests that is still refused or answered with gibberish. `as` says which row is the choice, which one it would have
been were zero, everywhere the only way (none where no candidate keeps within the KL of that way), and what the chosen
direction does in that way. A part is a model; one whose rows are in the file is not run again. STEERLAB_REAL_MODELS
and STEERLAB_DATA name the folders of local copies.
"""

from __future__ import annotations

import math

from _local_copies import data_files, model_folder
from _part_files import Row
from _script import arguments_of, part_files, settings_of

import steerlab as sl
from steerlab.datasets import ContrastSet, read_requests
from steerlab.errors import SteerlabError
from steerlab.readouts.refusals import Judge
from steerlab.selection import Candidate, Selection
from steerlab.steering import side_effects

PART = ("model", "weights_sha256", "settings")
SCORES = ("bypass", "induce", "kl", "unanswered")
COLUMNS = (*PART, "layer", "position", "toward", "window", *SCORES, "as", "rule")


def rows_of(selection: Selection, published: Candidate) -> list[Row]:
    """Every candidate that answers were looked at for; `published`: the chosen direction in the published way."""
    looked = [
        place for place in (*selection.candidates, *selection.tried) if not math.isnan(place.unanswered)
    ]
    instead = min((place for place in looked if place.as_published), key=order, default=None)
    roles = [
        (selection.chosen, "the choice"),
        (instead, "the choice of the published way"),
        (published, "the chosen direction in the published way"),
    ]
    return [
        {
            **{name: getattr(place, name) for name in ("layer", "position", "toward", "window", *SCORES)},
            "as": "; ".join(role for one, role in roles if one == place),
            "rule": selection.rule,
        }
        for place in dict.fromkeys([*looked, selection.chosen, published])
    ]


def in_published_way(model: sl.LanguageModel, selection: Selection, val: ContrastSet, seed: int) -> Candidate:
    """The chosen direction removed at every write and token, with the answers to the harmful validation requests."""
    place = next(
        one
        for one in selection.candidates
        if (one.layer, one.position) == (selection.chosen.layer, selection.chosen.position)
    )
    harmful, harmless = (
        [model.instruction_prompt(text, think=False) for text in texts]
        for texts in (val.positive, val.negative)
    )
    judge = Judge.of(model, [*harmful, *harmless], selection.token_ids, seed)
    verdicts = judge.verdicts(harmful, [sl.Ablate(selection.direction)])
    prices = side_effects(
        model, harmless, {"": [sl.Ablate(selection.direction)]}, positions="last", seed=seed
    )
    return place.model_copy(
        update={
            "unanswered": float(verdicts.not_answered.mean()),
            "kl": prices[""].kl.value,
            "bypass": float(verdicts.odds.mean()),
        }
    )


def order(place: Candidate) -> tuple[float, float]:
    """Fewest left unanswered, then least KL: the rule's own order."""
    return place.unanswered, place.kl


def some(requests: ContrastSet, split: str, n: int) -> ContrastSet:
    """The first requests of each kind of a split."""
    part = requests.split(split)
    return ContrastSet(part.positive[:n], part.negative[:n])


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__)
    plan, file = arguments.plan, part_files(arguments.folder, {"tried": COLUMNS}, PART)["tried"]
    requests = read_requests(next(iter(data_files(plan["data"]).values())).parent)
    for name, sha256 in plan["models"].items():
        part = {"model": name, "weights_sha256": sha256}
        part |= {"settings": settings_of(plan["requests"], plan["seed"])}
        if file.holds(part):
            continue
        try:
            model = sl.load(model_folder(name, sha256), dtype="float32")
            train, val = (some(requests, split, plan["requests"][split]) for split in ("train", "val"))
            selection = sl.select_direction(model, train, val, seed=plan["seed"])
            published = in_published_way(model, selection, val, plan["seed"])
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}: {error}") from error
        file.write(part, rows_of(selection, published))
        print(f"{name}: {selection.rule}; {selection.ablated()}", flush=True)


if __name__ == "__main__":
    main()
