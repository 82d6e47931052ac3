"""Does a choice among ways of ablation do worse than the published way alone?

    python analyses/real_selection.py analyses/real_selection.toml [--figures figures]

The corrected rule on validation requests of the refusal paper. `tried.csv` holds every candidate that was looked at,
the way in which it was ablated, and what came of it: bypass, KL, and the share of harmful validation requests that is
still refused or answered with gibberish. `chosen` marks the choice, `best of the published way` the one that would have
been made were zero, everywhere the only way. A part is a model; one whose rows are in the file is not run again.
STEERLAB_REAL_MODELS and STEERLAB_DATA name the folders of local copies.
"""

from __future__ import annotations

import math

from _local_copies import data_files, model_folder
from _part_files import Row
from _script import arguments_of, part_files

import steerlab as sl
from steerlab.datasets import ContrastSet, read_requests
from steerlab.errors import SteerlabError
from steerlab.selection import Candidate, Selection

PART = ("model", "weights_sha256")
SCORES = ("bypass", "induce", "kl", "unanswered")
COLUMNS = (
    *PART,
    "layer",
    "position",
    "toward",
    "window",
    *SCORES,
    "chosen",
    "best of the published way",
    "rule",
)


def rows_of(selection: Selection) -> list[Row]:
    """Every candidate that answers were looked at for, or that was tried in another way."""
    looked = [
        place for place in (*selection.candidates, *selection.tried) if not math.isnan(place.unanswered)
    ]
    published = min((place for place in looked if place.as_published), key=order, default=None)
    return [
        {
            **{name: getattr(place, name) for name in ("layer", "position", "toward", "window", *SCORES)},
            "chosen": place == selection.chosen,
            "best of the published way": place == published,
            "rule": selection.rule,
        }
        for place in dict.fromkeys([*looked, selection.chosen])
    ]


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
        if file.holds(part):
            continue
        try:
            selection = sl.select_direction(
                sl.load(model_folder(name, sha256), dtype="float32"),
                some(requests, "train", plan["requests"]["train"]),
                some(requests, "val", plan["requests"]["val"]),
                seed=plan["seed"],
            )
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}: {error}") from error
        file.write(part, rows_of(selection))
        print(f"{name}: {selection.rule}; {selection.ablated()}", flush=True)


if __name__ == "__main__":
    main()
