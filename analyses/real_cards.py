"""What must a person know before steering these models: five cards of packaged contrasts in each.

    python analyses/real_cards.py analyses/real_cards.toml [--dry-run] [--only MODEL ...] [--figures figures]

Each direction is extracted with the defaults and added one class gap strong where it works best; `sl.steering_card`
says what that does. A card is kept as JSON and Markdown in a folder of its model (its page is written by
`SteeringCard.load(FOLDER).save(OTHER)`), and `cards.csv` has a row of each: the verdict's numbers with their intervals.
The predictor of a model is measured with its first card and taken from there for the others. STEERLAB_REAL_MODELS names
the folder of local copies.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _local_copies import model_folder
from _part_files import Row
from _script import arguments_of, draw, ends, estimate_of, named, part_files, settings_of, slug

import steerlab as sl
from steerlab.card import Predictor, SteeringCard
from steerlab.errors import SteerlabError
from steerlab.plots import Series, bars
from steerlab.statistics import Estimate

PART = ("model", "weights_sha256", "task", "settings")
AMOUNTS = ("seed", "size", "predictor")
COLUMNS = {
    "cards": (
        *(*PART, "site", "identified", *ends("effect"), "random_least", "random_greatest", "randoms", "p"),
        *ends("wrong_way", "monotone", "asked", "steered_less_asked", "examples", "kl"),
        *("harms", "harms_asked", "measures", "safe_from", "safe_to", "forms", "forms_held", "failing"),
        *("agreement", "separability", "verdict"),
    ),
    "predictors": (*PART, "contrasts", "reading", *ends("correlation"), "established"),
}


def row_of(card: SteeringCard) -> Row:
    """The numbers of a card's verdict."""
    one, safe = card.effects.at(), card.safe_doses
    baselines = {baseline.name: baseline for baseline in card.effects.baselines}
    asked = card.asked
    assert asked is not None
    examples = next((baselines[name].effect for name in baselines if name != asked.name), None)
    return {
        "site": ", ".join(card.sites),
        "identified": one.identified,
        **named("effect", one.effect),
        "random_least": one.random.low,
        "random_greatest": one.random.high,
        "randoms": one.random.n,
        "p": card.effects.p,
        **named("wrong_way", one.wrong_way),
        **named("monotone", card.effects.monotone),
        **named("asked", asked.effect),
        **named("steered_less_asked", asked.steered_less),
        **named("examples", examples),
        **named("kl", one.kl),
        "harms": len(card.utility.harms(1.0)),
        "harms_asked": sum(measure.harmful for measure in card.utility.measures if measure.way == asked.name),
        "measures": sum(bool(measure.bad) for measure in card.utility.of(1.0)),
        "safe_from": safe[0] if safe else "",
        "safe_to": safe[-1] if safe else "",
        "forms": len(card.robustness.forms),
        "forms_held": len(card.robustness.forms) - len(card.robustness.failing),
        "failing": ", ".join(card.robustness.failing),
        "agreement": card.reading.agreement if card.reading else "",
        "separability": card.reading.separability if card.reading else "",
        "verdict": card.verdict,
    }


def predictor_rows(found: Predictor | None) -> list[Row]:
    """One row a reading."""
    return [
        {
            "contrasts": one.value.n,
            "reading": one.reading,
            **named("correlation", one.value),
            "established": one.established,
        }
        for one in (found.correlations if found else ())
    ]


def known_predictor(folder: Path, model: str, wanted: bool) -> Predictor | bool:
    """That of a card of the model which lies there already."""
    for file in sorted(folder.glob("*/card.json")) if wanted else ():
        known = SteeringCard.load(file).predictor
        if known is not None and known.model == model:
            return known
    return wanted


def keep(card: SteeringCard, folder: Path) -> None:
    """JSON and Markdown; the page, which holds the library that draws, is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as whole:
        card.save(whole)
        for name in ("card.json", "card.md"):
            shutil.copy(Path(whole, name), folder / name)


def figure(rows: Sequence[Row], model: str) -> Any:
    """Steered, asked, shown examples, and random directions."""
    mine = [row for row in rows if row["model"] == model]
    random = [
        Estimate(
            value=(float(row["random_least"]) + float(row["random_greatest"])) / 2,
            low=float(row["random_least"]),
            high=float(row["random_greatest"]),
        )
        for row in mine
    ]
    return bars(
        [row["task"] for row in mine],
        [
            Series.of("steered, one class gap", [estimate_of(row, "effect") for row in mine], role="post"),
            Series.of("asked in the prompt", [estimate_of(row, "asked") for row in mine], role="base"),
            Series.of("after a few examples", [estimate_of(row, "examples") for row in mine], role="other"),
            Series.of("random, least to greatest", random, role="control"),
        ],
        title=f"Steering cards: {model.rpartition('/')[2]}",
        y_title="change of log-odds (nats)",
    )


def parts_of(plan: Mapping[str, Any]) -> list[Row]:
    """A part for each model and task."""
    return [
        {
            "model": name,
            "weights_sha256": mine["sha256"],
            "task": task,
            "settings": settings_of(
                {key: mine[key] for key in ("dtype", "doses") if key in mine},
                {key: plan[key] for key in AMOUNTS},
            ),
        }
        for name, mine in plan["models"].items()
        for task in plan["tasks"]
    ]


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models")
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left = [
        part
        for part in parts_of(plan)
        if not files["cards"].holds(part) and (arguments.only is None or part["model"] in arguments.only)
    ]
    print(f"{plan['name']}: {len(left)} parts are left", flush=True)
    if arguments.dry_run:
        print(
            "A card reads about 150000 tokens and writes at most 22000; the predictor reads about 40000 once a model."
        )
        return
    for name in dict.fromkeys(part["model"] for part in left):
        mine, folder = plan["models"][name], arguments.folder / slug(name)
        model = sl.load(model_folder(name, mine["sha256"]), dtype=mine.get("dtype", "float32"))
        model.name = name
        for part in (part for part in left if part["model"] == name):
            try:
                card = sl.steering_card(
                    model,
                    sl.Add(sl.extract(model, part["task"], seed=plan["seed"])),
                    part["task"],
                    doses=mine["doses"],
                    size=plan["size"],
                    predicted=known_predictor(folder, name, plan["predictor"]),
                    seed=plan["seed"],
                )
            except SteerlabError as error:
                raise SystemExit(f"{arguments.configuration}, {part['task']}: {error}") from error
            keep(card, folder / part["task"])
            files["predictors"].write(part, predictor_rows(card.predictor))
            files["cards"].write(part, [row_of(card)])  # last: it says that the part is done
            print(card.verdict, flush=True)
        draw(figure(files["cards"].rows(), name), arguments.folder / f"{slug(name)}.svg")


if __name__ == "__main__":
    main()
