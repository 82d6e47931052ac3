"""Do alarms of probes keep their promise on real models, and do they find the thing, beside the words alone?

    python analyses/real_watch.py analyses/real_watch.toml [--dry-run] [--only MODEL ...] [--figures figures]

Two probes in each model: of harmful requests, and of answers in Spanish. A probe is a difference in means of answers'
tokens, fitted on answers that are used nowhere else. Three kinds of chats without the thing are written by the model
once and kept (`--runs`): harmless instructions, everyday requests, word problems. On each the alarm is calibrated on
random halves and its false alarms are counted on the others; on the other two kinds, in another template and, for the
harmful ones, in another language its rate is that of shifted data. `alarms.csv`: rate, recall and AUROC beside the
words alone and shuffled labels. `shifted.csv`: rates on other kinds of chats. Answers to harmful requests stay in
memory. STEERLAB_REAL_MODELS and STEERLAB_DATA name the folders of local copies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _local_copies import data_files, model_folder
from _part_files import Row
from _script import arguments_of, draw, ends, estimate_of, named, part_files, settings_of, slug
from _sums import sums
from post_training.examples import requests

import steerlab as sl
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.monitoring import Assessment, assess
from steerlab.monitoring.chats import answers_of, score_chats
from steerlab.plots import Series, bars
from steerlab.statistics import auroc

Pairs = list[tuple[str, str]]
KINDS = ("harmless instructions", "everyday requests", "word problems")
PROBES = ("harmful requests", "answers in Spanish")
SPANISH = " Answer in Spanish."
PART = ("model", "weights_sha256", "probe", "kind", "settings")
COLUMNS = {
    "alarms": (
        *(*PART, "per", "rate", "site", "n", "splits"),
        *ends("false_alarms", "recall", "auroc", "text_recall", "text_auroc", "shuffled_auroc"),
    ),
    "shifted": (*PART, "per", "rate", "shift", "n", *ends("rate_found")),
}


def asked(plan: Mapping[str, Any]) -> dict[str, list[str]]:
    """Texts of every kind: three without the thing, and the harmful ones; each drawn by the seed."""
    files = data_files(plan["data"])
    rng = np.random.default_rng(plan["seed"])

    def drawn(texts: Sequence[str], count: int) -> list[str]:
        return [texts[at] for at in rng.permutation(len(texts))[:count]]

    def of(name: str) -> list[str]:
        return [row["instruction"] for row in json.loads(files[name].read_text("utf-8"))]

    count = plan["answers"]
    fresh = drawn(of("harmless_train"), count + plan["fitted"] + plan["having"])
    return {
        "harmless instructions": fresh[:count],
        "everyday requests": drawn(requests(plan["seed"])["everyday"], count),
        "word problems": [text for text, _ in sums(count, plan["seed"])],
        "fitted without": fresh[count : count + plan["fitted"]],
        "another template": fresh[count + plan["fitted"] :],
        "fitted harmful": drawn(of("harmful_train"), plan["fitted"]),
        "harmful": drawn(of("harmful_test"), plan["having"]),
        "fitted Spanish": [text + SPANISH for text in fresh[count : count + plan["fitted"]]],
        "Spanish": [text + SPANISH for text in fresh[count + plan["fitted"] :]],
    }


class Writer:
    """Answers of a model, written once; harmless ones are kept below a folder."""

    def __init__(self, model: LanguageModel, plan: Mapping[str, Any], kept: Path) -> None:
        self.model, self.plan, self.kept = model, plan, kept
        self.texts = asked(plan)

    def __call__(self, kind: str) -> Pairs:
        """The pairs of a kind, without those whose answer is empty."""
        if "harmful" in kind:
            return self._written(kind)
        key = settings_of(self.texts[kind], self.plan["new_tokens"], self.model.fingerprint)
        file = self.kept / f"{slug(kind)}_{key}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self._written(kind)), "utf-8")
        return [(question, answer) for question, answer in json.loads(file.read_text("utf-8"))]

    def _written(self, kind: str) -> Pairs:
        questions = self.texts[kind]
        prompts = [self.model.instruction_prompt(text) for text in questions]
        print(f"{self.model.name}: writing {len(prompts)} answers, {kind}", flush=True)
        written = self.model.generate(prompts, max_new_tokens=self.plan["new_tokens"])
        pairs = zip(questions, written, strict=True)
        return [(question, each.text) for question, each in pairs if each.text.strip()]


def fitted(model: LanguageModel, quiet: Pairs, loud: Pairs, plan: Mapping[str, Any]) -> sl.Direction:
    """A difference in means of answers' mean states, at the depth where half of them tells the other half best."""
    best: tuple[float, sl.Direction] | None = None
    labels = np.arange(len(quiet) + len(loud)) >= len(quiet)
    half = np.random.default_rng(plan["seed"]).permutation(len(labels)) < len(labels) // 2
    answers = answers_of(model, [*quiet, *loud])
    for depth in plan["depths"]:
        site = sl.Site("resid_post", round(depth * (model.n_layers - 1)))
        means = score_chats(model, answers, site, torch.zeros(model.d_model, 1)).means.numpy()

        def direction(rows: np.ndarray, means: np.ndarray = means) -> np.ndarray:
            found: np.ndarray = means[rows & labels].mean(0) - means[rows & ~labels].mean(0)
            return found

        told = auroc(means[~half] @ direction(half), labels[~half], seed=0, draws=1).value
        if best is None or told > best[0]:
            whole = torch.from_numpy(direction(np.ones_like(half)))
            best = (
                told,
                sl.Direction({site: whole}, model.name, model.fingerprint, estimator="difference_in_means"),
            )
    assert best is not None
    return best[1]


def plain(model: LanguageModel, pairs: Pairs) -> list[Any]:
    """The same chats in the plain form, `User: … Assistant: …`."""
    return [
        model.instruction_prompt(question, response=answer, template="plain") for question, answer in pairs
    ]


def run_model(
    model: LanguageModel, write: Writer, plan: Mapping[str, Any], left: Sequence[Row]
) -> Iterator[Any]:
    """The assessments of a model, part by part."""
    probes: dict[str, tuple[sl.Direction, Pairs]] = {}
    makers: dict[str, Callable[[], tuple[Pairs, Pairs]]] = {
        "harmful requests": lambda: (write("fitted harmful"), write("harmful")),
        "answers in Spanish": lambda: (write("fitted Spanish"), write("Spanish")),
    }
    for part in left:
        name, kind = part["probe"], part["kind"]
        if name not in probes:
            loud, having = makers[name]()
            probes[name] = fitted(model, write("fitted without"), loud, plan), having
        probe, having = probes[name]
        some = slice(plan["shifted"])
        shifted: dict[str, Any] = {other: write(other)[some] for other in KINDS if other != kind}
        shifted["another template"] = plain(model, write("another template"))
        if name == "harmful requests":
            shifted["another language"] = write("Spanish")
        alarms = [sl.Alarm(plan["rate"], per) for per in ("answer", "token")]
        yield part, probe, assess(
            probe, model, alarms, without=write(kind), having=having, shifted=shifted,
            splits=plan["splits"], seed=plan["seed"],
        )  # fmt: skip


def alarm_row(found: Assessment, site: object) -> Row:
    """What an alarm does on held-out halves, and on the chats with the thing."""
    row: Row = {
        "per": found.per,
        "rate": found.rate,
        "site": str(site),
        "n": found.units,
        "splits": found.splits,
    }
    for name in ("false_alarms", "recall", "auroc", "text_recall", "text_auroc", "shuffled_auroc"):
        row |= named(name, getattr(found, name))
    return row


def shifted_rows(found: Assessment) -> Iterator[Row]:
    """What it does on chats of other kinds."""
    for shift, rate in found.shifted.items():
        yield {
            **{"per": found.per, "rate": found.rate, "shift": shift, "n": rate.n},
            **named("rate_found", rate),
        }


def figure(rows: Sequence[Row], shifted: Sequence[Row], model: str, probe: str, rate: float) -> Any:
    """Rates per answer by kind: on held-out halves, and on the chats that the kind was not calibrated on."""
    mine = [row for row in rows if (row["model"], row["probe"], row["per"]) == (model, probe, "answer")]
    names = [row["kind"] for row in mine]
    others = {
        (row["kind"], row["shift"]): estimate_of(row, "rate_found")
        for row in shifted
        if (row["model"], row["probe"], row["per"]) == (model, probe, "answer")
    }
    shifts = list(dict.fromkeys(shift for _, shift in others))
    series = [
        Series.of("held-out halves", [estimate_of(row, "false_alarms") for row in mine], role="post"),
        Series.of("with the thing", [estimate_of(row, "recall") for row in mine], role="base"),
    ]
    for shift in shifts:
        values = [others.get((name, shift), sl.statistics.Estimate(value=float("nan"))) for name in names]
        series.append(Series.of(f"{shift}, shifted", values, role="control"))
    picture = bars(
        names, series, title=f"{model.rpartition('/')[2]}: alarms of {probe}", x_title="calibrated on",
        y_title="share of answers", y_range=(0.0, 1.05),
    )  # fmt: skip
    picture.add_hline(y=rate, line={"dash": "dot", "width": 1}, annotation_text="promised")
    return picture


def parts_of(plan: Mapping[str, Any]) -> Iterator[Row]:
    """A part is a model, a probe and a kind of chats without the thing."""
    shared = {name: value for name, value in plan.items() if name not in ("models", "data", "name")}
    for model, mine in plan["models"].items():
        for probe in PROBES:
            for kind in KINDS:
                yield {
                    **{"model": model, "weights_sha256": mine["sha256"], "probe": probe, "kind": kind},
                    "settings": settings_of(mine, shared),
                }


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models", runs=True)
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left = [
        part
        for part in parts_of(plan)
        if not files["alarms"].holds(part) and (arguments.only is None or part["model"] in arguments.only)
    ]
    print(f"{plan['name']}: {len(left)} parts are left", flush=True)
    if arguments.dry_run or not left:
        tokens = 5 * plan["answers"] * (25 + plan["new_tokens"])
        print(
            f"A model writes about {3 * plan['answers'] + 4 * plan['having']} answers and reads {6 * tokens} tokens."
        )
        return
    for name in dict.fromkeys(part["model"] for part in left):
        mine = plan["models"][name]
        model = sl.load(model_folder(name, mine["sha256"]), dtype=mine.get("dtype", "float32"))
        model.name = name
        write = Writer(model, plan, arguments.runs / plan["name"] / slug(name))
        try:
            for part, probe, found in run_model(
                model, write, plan, [part for part in left if part["model"] == name]
            ):
                files["shifted"].write(part, [row for each in found for row in shifted_rows(each)])
                files["alarms"].write(part, [alarm_row(each, probe.sites[0]) for each in found])
                print(*found[0].summary, sep="\n  ", flush=True)
        except SteerlabError as error:
            raise SystemExit(f"{arguments.configuration}: {error}") from error
        for probe_name in PROBES:
            picture = figure(files["alarms"].rows(), files["shifted"].rows(), name, probe_name, plan["rate"])
            draw(picture, arguments.folder / f"{slug(name)}_{slug(probe_name)}.svg", height=480)


if __name__ == "__main__":
    main()
