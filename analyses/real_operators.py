"""What do the finer operators of steering do on small real models, beside the plain ones?

    python analyses/real_operators.py analyses/real_operators.toml [--dry-run] [--only MODEL ...] [--figures figures]

Five questions. `ablation.csv`: ablating refusal with the lengths of weights kept, and plainly at equal bypass.
`several.csv`, `leaning.csv`, `categories.csv`: several directions of refusal, how many held-out requests choose,
whether one leans on another, and what each does to each kind of request. `low_rank.csv`: a learned map that gives
answers of one sentence, beside a difference in means, a vector found by gradient, random maps and asking.
`erasure.csv`: what probes read of held-out statements once a label is erased. `attribution.csv`: how near a preview by
gradient comes to the exact sweep.
A part is a model and a question; a part whose rows are in the files is not run again. Answers to harmful requests stay
in memory. STEERLAB_REAL_MODELS and STEERLAB_DATA name the folders of local copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from _ablation_rows import COMPARED, MAPS, NORM, STREAM, ablation_rows
from _attribution_rows import attribution_rows
from _erasure_rows import LABELS, erasure_rows
from _local_copies import data_files, model_folder
from _low_rank_rows import low_rank_rows
from _part_files import PartFile, Row
from _refusal_prompts import Refusal
from _script import arguments_of, draw, ends, estimate_of, part_files, settings_of, slug
from _several_rows import several_rows

import steerlab as sl
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.plots import Series, bars

PART = ("model", "weights_sha256", "settings")
_PROBES = ("linear", "network", "neighbours", "linear_at_the_end")
COLUMNS = {
    "ablation": (
        *(*PART, "way", "site", "made", "strength", "dev_change", "n", "draws"),
        *ends(*COMPARED[:4], "refused", "gibberish", "right", "loops"),
        *ends(*(f"{name}_less_none" for name in COMPARED), *(f"{name}_less_norm" for name in COMPARED)),
    ),
    "several": (
        *(*PART, "kind", "site", "k", "separation", "standard_error", "chosen", "n", "draws"),
        *ends("change", "kl", "random_change", "random_kl"),
    ),
    "leaning": (
        *(*PART, "ablated", "kept", "prompts", "draws", "site", "sites_beyond", "sites", "effect_beyond"),
        *ends("own_effect", "cosine", "random_cosine", "effect", "random_effect"),
    ),
    "categories": (*PART, "direction", "category", "n", "draws", *ends("change", "random"), "beyond_random"),
    "low_rank": (
        *(*PART, "way", "site", "rank", "learned_from", "n", "strength", "norm", "draws"),
        *ends("loss", "less_none", "less_learned", "kl", "ended", "loops", "length"),
    ),
    "erasure": (
        *(*PART, "label", "way", "site", "width", "fitted_on", "probe_on", "n", "moved"),
        *ends("kl", *_PROBES, *(f"{name}_less_none" for name in _PROBES)),
    ),
    "attribution": (
        *(*PART, "kind", "facts", "cells", "top", "largest_error", "largest_effect", "pearson_of_all"),
        *ends("pearson", "spearman", "top_found", "shuffled_top_found"),
        *("seconds_preview", "seconds_exact"),
    ),
}
SECTIONS = ("refusal", "ablation", "several", "low_rank", "erasure", "attribution")
#: By question the parts of the plan that its rows depend on; the file of its name is written last.
QUESTIONS = {
    "ablation": ("refusal", "ablation"),
    "several": ("refusal", "several"),
    "low_rank": ("low_rank",),
    "erasure": ("erasure",),
    "attribution": ("attribution",),
}


def answers_of(
    model: LanguageModel, plan: Mapping[str, Any]
) -> dict[str, Callable[[], dict[str, list[Row]]]]:
    """By question what gives the rows of its files."""
    refusal = Refusal(model, plan)
    return {
        "ablation": lambda: {"ablation": ablation_rows(refusal)},
        "several": lambda: several_rows(refusal),
        "low_rank": lambda: {"low_rank": low_rank_rows(model, plan)},
        "erasure": lambda: {"erasure": erasure_rows(model, plan)},
        "attribution": lambda: {"attribution": attribution_rows(exact_copy(model, plan), plan)},
    }


def exact_copy(model: LanguageModel, plan: Mapping[str, Any]) -> LanguageModel:
    """The model in float32: the error of a preview by gradient is not to be that of rounding."""
    return sl.load(model_folder(model.name, plan["models"][model.name]["sha256"]), dtype="float32")


def figures(files: Mapping[str, PartFile], model: str) -> Iterator[tuple[str, Any]]:
    """Pictures of what is there for a model, by the end of their name."""
    of = {name: [row for row in file.rows() if row["model"] == model] for name, file in files.items()}
    short = model.rpartition("/")[2]
    if rows := {row["way"]: row for row in of["ablation"]}:
        ways = (NORM, STREAM, MAPS)
        series = [
            Series.of(title, [estimate_of(rows[way], name) for way in ways], role=role)
            for title, name, role in (
                ("log-odds of refusing", "change", "post"),
                ("KL on plain text", "kl", "base"),
                ("loss on plain text", "loss_change", "control"),
            )
        ]
        yield (
            "ablation",
            bars(list(ways), series, title=f"{short}: refusal ablated at equal bypass", y_title="nats"),
        )
    if of["low_rank"]:
        ways_ = [row["way"] for row in of["low_rank"]]
        losses = Series.of(
            "held-out answers", [estimate_of(row, "loss") for row in of["low_rank"]], role="post"
        )
        title = f"{short}: answers of one sentence"
        yield "low_rank", bars(ways_, [losses], title=title, y_title="loss (nats a token)")
    for label in LABELS:
        if chosen := [row for row in of["erasure"] if row["label"] == label]:
            series = [
                Series.of(name, [estimate_of(row, name) for row in chosen], role=role)
                for name, role in zip(_PROBES[:3], ("post", "base", "control"), strict=True)
            ]
            picture = bars(
                [row["way"] for row in chosen], series, title=f"{short}: what probes read of {label}",
                y_title="accuracy", y_range=(0.0, 1.05),
            )  # fmt: skip
            picture.add_hline(y=0.5, line={"dash": "dot", "width": 1}, annotation_text="chance")
            yield f"erasure_{label}", picture


def parts_of(plan: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """Every question with its part."""
    for name, mine in plan["models"].items():
        for question, sections in QUESTIONS.items():
            own = amounts_of(name, plan)
            settings = settings_of(
                plan["seed"], plan["texts"], mine.get("dtype"), *(own[section] for section in sections)
            )
            yield question, {"model": name, "weights_sha256": mine["sha256"], "settings": settings}


def amounts_of(name: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with a model's own amounts in the place of those of all."""
    mine = plan["models"][name]
    own = {section: plan[section] | mine.get(section, {}) for section in SECTIONS}
    return {**plan, **own}


def forecast(left: Sequence[tuple[str, Row]], plan: Mapping[str, Any]) -> Iterator[str]:
    """About how many tokens each part reads, of 35 a request, 50 an example, 10 a statement and 15 a text."""
    for question, part in left:
        mine = amounts_of(part["model"], plan)
        refusal, ablation, several, low, erasure, traced = (mine[section] for section in SECTIONS)
        found = 35 * (2 * refusal["train"] + refusal["dev"] * (2 * len(refusal["depths"]) + 1))
        spans = 2 * several["most"] * (1 + several["randoms"])
        written = ablation["answers"] * (35 + ablation["new_tokens"])
        fixed = 35 * (16 * refusal["dev"] + (4 + 2 * ablation["randoms"]) * refusal["test"])
        leaning = 35 * (2 + several["randoms"]) * (3 * several["prompts"] + 10 * several["per_category"])
        learning = 3 * (
            low["steps"] * low["token_budget"] + 50 * low["optimised_on"] * low["optimised_steps"]
        )
        tokens = {
            "ablation": found + fixed + 4 * (20 * ablation["statements"] + written),
            "several": found + spans * (35 * refusal["test"] + 15 * plan["texts"]) + leaning,
            "low_rank": learning + 50 * (2 * low["train"] + 10 * low["test"]),
            "erasure": 40 * (sum(erasure["subjects"]) + 4 * sum(erasure["subjects"][1:])),
            "attribution": 15 * traced["asked"] + 600 * traced["facts"],
        }
        yield f"{part['model']}, {question}: about {tokens[question]} tokens"


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models")
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left = [
        (question, part)
        for question, part in parts_of(plan)
        if not files[question].holds(part) and (arguments.only is None or part["model"] in arguments.only)
    ]
    print(f"{plan['name']}: {len(left)} parts are left", flush=True)
    if arguments.dry_run:
        print("\n".join(forecast(left, plan)))
        return
    for table in plan["data"].values():
        data_files(table)  # a missing file is said before any model is loaded
    for name in dict.fromkeys(part["model"] for _, part in left):
        mine = plan["models"][name]
        model = sl.load(model_folder(name, mine["sha256"]), dtype=mine.get("dtype", "float32"))
        model.name = name
        answers = answers_of(model, amounts_of(name, plan))
        for question, part in left:
            if part["model"] != name:
                continue
            try:
                made = answers[question]()
            except SteerlabError as error:
                raise SystemExit(f"{arguments.configuration}, {question}: {error}") from error
            for file, rows in sorted(made.items(), key=lambda item: item[0] == question):
                files[file].write(part, rows)  # that of the question last: it says that the part is done
            for end, picture in figures(files, name):
                draw(picture, arguments.folder / f"{slug(name)}_{end}.svg")


if __name__ == "__main__":
    main()
