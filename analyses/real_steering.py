"""What does the steering that a person would ask for do, and is it more than asking for it in the prompt?

    python analyses/real_steering.py analyses/real_steering.toml [--dry-run] [--only MODEL ...] [--figures figures]

Five packaged contrasts on real models. Each direction is extracted with the defaults and added where it works best.
Its strength is calibrated: of those that move the development probes as far as asking does (at least one nat), the one
with the least KL on plain text; one class gap where none does. `effects.csv`: what it does to ln P(towards) -
ln P(away) of the other probes (`contrasts.toml`; they share no sentence with the pairs), beside random directions of
the same length and beside the wish written into the prompt; the price on plain text (the passages that the strength
was chosen on); and of answers to packaged open prompts the share that loops, and the share that a bag of words fitted
on the contrast calls of the wished kind, unsteered, steered and asked: a crude reader, of use only where it calls few
unsteered answers so. `samples.csv`: some of these answers, harmless all of them. A part is a model and a contrast; a
part whose rows are in the files is not run again. STEERLAB_REAL_MODELS names the folder of local copies.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _local_copies import model_folder
from _part_files import Row
from _script import arguments_of, draw, ends, estimate_of, named, part_files, settings_of, slug
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import steerlab as sl
from steerlab.datasets import ContrastSet
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Prompt
from steerlab.plots import Series, bars
from steerlab.readouts.repetition import loops
from steerlab.readouts.scoring import continuation_log_odds
from steerlab.statistics import Estimate, bootstrap_mean, paired_difference, proportion
from steerlab.steering import side_effects

HERE = Path(__file__).parent
PART = ("model", "weights_sha256", "contrast", "settings")
CARRY_ON = "Carry on with this text."
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # class gaps
AMOUNTS = ("seed", "randoms", "dev", "answers", "new_tokens", "texts", "samples")  # of the file
PRICED = 4  # random directions whose price is measured


WAYS = ("unsteered", "steered", "asked")
COLUMNS = {
    "effects": (
        *PART,
        *("pairs", "site", *ends("accuracy"), "target", "strength", "calibrated", "probes", "continuations"),
        *ends("effect", "asked_effect", "steered_less_asked"),
        *("randoms", "random_least", "random_greatest", "beyond_random"),
        *(*ends("kl"), "random_kl", "random_kl_draws", *ends("loss_change")),
        *("answers", *(column for way in WAYS for column in ends(f"reads_{way}", f"loops_{way}"))),
        *ends("sampled_loops_unsteered", "sampled_loops_steered"),
    ),
    "samples": (*PART, "prompt", "way", "answer"),
}


@dataclass(frozen=True)
class Probes:
    """Prompts without and with the wish, each with a continuation towards and one away."""

    plain: list[Prompt]
    asked: list[Prompt]
    towards: list[str]
    away: list[str]

    @property
    def clusters(self) -> list[int]:
        """A number a probe, the same where the continuations are."""
        pairs = list(zip(self.towards, self.away, strict=True))
        known = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        return [known[pair] for pair in pairs]

    def split(self, dev: int) -> tuple[Probes, Probes]:
        """About so many probes to choose on, and the others: no continuation stands in both."""
        first = max(1, round(dev * len(set(self.clusters)) / len(self.towards)))
        chosen = [number < first for number in self.clusters]
        return self._where(chosen), self._where([not row for row in chosen])

    def _where(self, rows: Sequence[bool]) -> Probes:
        return Probes(
            *(list(compress(part, rows)) for part in (self.plain, self.asked, self.towards, self.away))
        )


def probes_of(model: LanguageModel, data: Mapping[str, Any], wish: str) -> Probes:
    """The probes of a contrast: the beginnings of texts, or requests with the openings of answers."""
    if "probes" in data:
        texts, towards, away = map(list, zip(*data["probes"], strict=True))

        def opened(instruction: str) -> list[Prompt]:
            made = [model.instruction_prompt(f"{instruction} {text}") for text in texts]
            return [
                replace(prompt, text=prompt.text + text) for prompt, text in zip(made, texts, strict=True)
            ]

        return Probes(opened(CARRY_ON), opened(f"{wish} {CARRY_ON}"), towards, away)
    requests = sl.datasets.requests().split("test").negative[:24]
    chosen = [data["openings"][row % len(data["openings"])] for row in range(len(requests))]
    return Probes(
        [model.instruction_prompt(text) for text in requests],
        [model.instruction_prompt(f"{text} {wish}") for text in requests],
        [towards for towards, _ in chosen],
        [away for _, away in chosen],
    )


@dataclass(frozen=True)
class Answers:
    """Answers to open prompts in one way: texts, and whether each loops."""

    texts: list[str]
    loops: np.ndarray


def answered(
    model: LanguageModel, prompts: Sequence[Prompt], new_tokens: int, *, sampled: bool = False
) -> Answers:
    """Answers under whatever steers the model."""
    written = model.generate(prompts, max_new_tokens=new_tokens, do_sample=sampled, seed=0)
    return Answers([answer.text for answer in written], loops(written))


def reader_of(contrast: ContrastSet) -> Callable[[Sequence[str]], np.ndarray]:
    """Says of texts whether a bag of words fitted on the contrast calls them of the first kind."""
    classifier = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=1000))
    classifier.fit(
        [*contrast.positive, *contrast.negative], [1] * len(contrast.positive) + [0] * len(contrast.negative)
    )
    return lambda texts: np.asarray(classifier.predict(list(texts)), dtype=bool)


def chosen_strength(
    model: LanguageModel, direction: sl.Direction, dev: Probes, texts: Sequence[str], seed: int
) -> tuple[float, float, bool]:
    """The strength with the least KL that moves the development probes by the target, the target (as far as asking
    moves them, at least a nat), and whether a strength reaches it."""
    plain = continuation_log_odds(model, dev.plain, dev.towards, dev.away)
    asked = continuation_log_odds(model, dev.asked, dev.towards, dev.away)

    def effect(steered: LanguageModel, prompts: Sequence[Any]) -> np.ndarray:
        return continuation_log_odds(steered, dev.plain, dev.towards, dev.away)

    target = max(1.0, float((asked - plain).mean()))
    found = sl.calibrate_strength(
        model, sl.Add(direction), dev.plain, list(texts), effect=effect, target=float(plain.mean()) + target,
        strengths=STRENGTHS, refinements=2, groups=dev.clusters, seed=seed,
    )  # fmt: skip
    return (1.0, target, False) if found.chosen is None else (found.chosen.strength, target, True)


def run_part(
    model: LanguageModel, name: str, plan: Mapping[str, Any], unsteered: Mapping[bool, Answers]
) -> tuple[Row, list[Row]]:
    """The row of a contrast, and samples of what was written."""
    mine, seed = plan["contrasts"][name], plan["seed"]
    contrast = sl.datasets.contrasts()[mine["packaged"]]
    direction = sl.extract(model, contrast, seed=seed)
    texts = list(sl.datasets.plain_text())[: plan["texts"]]
    data = tomllib.loads((HERE / "contrasts.toml").read_text(encoding="utf-8"))[name]
    probes = probes_of(model, data, mine["wish"])
    dev, test = probes.split(plan["dev"])
    strength, target, reached = chosen_strength(model, direction, dev, texts, seed)
    ways, sampled = ways_of(model, direction, strength, mine["wish"], plan, unsteered)
    reads = reader_of(contrast)
    row: Row = {
        "pairs": len(contrast.positive),
        "site": str(direction.best),
        "strength": strength,
        "target": target,
        "calibrated": "yes" if reached else "no, one class gap",
        "answers": len(unsteered[False].texts),
    }
    row |= named("accuracy", direction.accuracy[direction.best])
    row |= effect_columns(model, direction, strength, test, texts, plan)
    for way, answers in ways.items():
        row |= named(f"reads_{way}", proportion(reads(answers.texts)))
        row |= named(f"loops_{way}", proportion(answers.loops))
    row |= named("sampled_loops_unsteered", proportion(unsteered[True].loops))
    row |= named("sampled_loops_steered", proportion(sampled.loops))
    samples = [
        {"prompt": prompt, "way": way, "answer": answers.texts[number]}
        for number, prompt in enumerate(open_texts(plan)[: plan["samples"]])
        for way, answers in ways.items()
    ]
    return row, samples


def effect_columns(
    model: LanguageModel,
    direction: sl.Direction,
    strength: float,
    probes: Probes,
    texts: Sequence[str],
    plan: Mapping[str, Any],
) -> Row:
    """Effects on the test probes and the price on plain text, each beside random directions and beside asking."""
    seed, site = plan["seed"], direction.best
    assert site is not None
    plain = continuation_log_odds(model, probes.plain, probes.towards, probes.away)
    asked = continuation_log_odds(model, probes.asked, probes.towards, probes.away) - plain
    added = direction[site] / direction[site].norm() * direction.class_gap[site] * strength
    drawn = random_vectors(added, plan["randoms"])

    def steered(vector: torch.Tensor) -> sl.Add:
        return sl.Add(vector, unit="raw", sites=site)

    def effect(vector: torch.Tensor) -> np.ndarray:
        with model.steering(steered(vector)):
            return continuation_log_odds(model, probes.plain, probes.towards, probes.away) - plain

    own, random = effect(added), [float(effect(vector).mean()) for vector in drawn]
    edits = {"own": added, **{str(number): vector for number, vector in enumerate(drawn[:PRICED])}}
    prices = side_effects(
        model, list(texts), {name: [steered(vector)] for name, vector in edits.items()}, seed=seed
    )
    clusters = probes.clusters
    return {
        "probes": len(plain),
        "continuations": len(set(clusters)),
        **named("effect", bootstrap_mean(own, clusters, seed=seed)),
        **named("asked_effect", bootstrap_mean(asked, clusters, seed=seed)),
        **named("steered_less_asked", paired_difference(own, asked, clusters, seed=seed)),
        "randoms": len(random),
        "random_least": min(random),
        "random_greatest": max(random),
        "beyond_random": float(own.mean()) > max(random),
        **named("kl", prices["own"].kl),
        **named("loss_change", prices["own"].loss_change),
        "random_kl": float(np.mean([price.kl.value for name, price in prices.items() if name != "own"])),
        "random_kl_draws": len(prices) - 1,
    }


def ways_of(
    model: LanguageModel,
    direction: sl.Direction,
    strength: float,
    wish: str,
    plan: Mapping[str, Any],
    unsteered: Mapping[bool, Answers],
) -> tuple[dict[str, Answers], Answers]:
    """Greedy answers to open prompts unsteered, steered and asked; and sampled ones, steered."""
    prompts, tokens = unsteered_prompts(model, plan), plan["new_tokens"]
    wishes = [model.instruction_prompt(f"{text} {wish}") for text in open_texts(plan)]
    with model.steering(sl.Add(direction, strength=strength)):
        greedy, sampled = (answered(model, prompts, tokens, sampled=drawn) for drawn in (False, True))
    return {
        "unsteered": unsteered[False],
        "steered": greedy,
        "asked": answered(model, wishes, tokens),
    }, sampled


def open_texts(plan: Mapping[str, Any]) -> list[str]:
    """Packaged open prompts of every kind."""
    return list(sl.datasets.open_prompts()[::3][: plan["answers"]])


def unsteered_prompts(model: LanguageModel, plan: Mapping[str, Any]) -> list[Prompt]:
    """The open prompts, as the model is asked them."""
    return [model.instruction_prompt(text) for text in open_texts(plan)]


def random_vectors(like: torch.Tensor, n: int) -> list[torch.Tensor]:
    """So many random vectors of the same length."""
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(like.shape, generator=rng) for _ in range(n)]
    return [vector / vector.norm() * like.norm() for vector in drawn]


def figure(rows: Sequence[Row], model: str) -> Any:
    """The effects with their intervals, beside asking and what random directions do."""
    mine = [row for row in rows if row["model"] == model]

    def column(name: str) -> list[Estimate]:
        return [estimate_of(row, name) for row in mine]

    random = [
        Estimate(
            value=(float(row["random_least"]) + float(row["random_greatest"])) / 2,
            low=float(row["random_least"]),
            high=float(row["random_greatest"]),
        )
        for row in mine
    ]
    return bars(
        [row["contrast"] for row in mine],
        [
            Series.of("steered", column("effect"), role="post"),
            Series.of("asked in the prompt", column("asked_effect"), role="base"),
            Series.of("random, least to greatest", random, role="control"),
        ],
        title=f"Steered and asked: {model.rpartition('/')[2]}",
        y_title="change of log-odds (nats)",
    )


def forecast(left: Sequence[Row], plan: Mapping[str, Any]) -> Iterator[str]:
    """About how many tokens each part reads and writes, in tokens of English words."""
    words = [len(text.split()) for text in sl.datasets.plain_text()[: plan["texts"]]]
    contrasts = sl.datasets.contrasts()
    for part in left:
        mine = contrasts[plan["contrasts"][part["contrast"]]["packaged"]]
        pairs = sum(len(text.split()) for text in (*mine.positive, *mine.negative))
        probes = 30 * 2 * (24 - plan["dev"]) * (plan["randoms"] + 3) + 30 * 2 * plan["dev"] * 9
        read = int(1.3 * (pairs + sum(words) * 12)) + probes
        written = plan["answers"] * plan["new_tokens"] * 3
        yield f"{part['model']}, {part['contrast']}: about {read} tokens to read, at most {written} to write"


def main() -> None:
    """Read the arguments and the file, run what is not yet done."""
    arguments = arguments_of(__doc__, only="models")
    plan, files = arguments.plan, part_files(arguments.folder, COLUMNS, PART)
    left: list[Row] = [
        {
            **{"model": name, "weights_sha256": sha256, "contrast": contrast},
            "settings": settings_of(plan["contrasts"][contrast], {name: plan[name] for name in AMOUNTS}),
        }
        for name, sha256 in plan["models"].items()
        if arguments.only is None or name in arguments.only
        for contrast in plan["contrasts"]
    ]
    left = [part for part in left if not files["effects"].holds(part)]
    print(f"{plan['name']}: {len(left)} parts are left", flush=True)
    if arguments.dry_run:
        print("\n".join(forecast(left, plan)))
        return
    for name in dict.fromkeys(part["model"] for part in left):
        model = sl.load(model_folder(name, plan["models"][name]), dtype="float32")
        prompts = unsteered_prompts(model, plan)
        unsteered = {
            sampled: answered(model, prompts, plan["new_tokens"], sampled=sampled)
            for sampled in (False, True)
        }
        for part in left:
            if part["model"] != name:
                continue
            try:
                row, samples = run_part(model, part["contrast"], plan, unsteered)
            except SteerlabError as error:
                raise SystemExit(f"{arguments.configuration}, {part['contrast']}: {error}") from error
            files["samples"].write(part, samples)
            files["effects"].write(part, [row])  # last: it says that the part is done
        draw(figure(files["effects"].rows(), name), arguments.folder / f"{slug(name)}.svg")


if __name__ == "__main__":
    main()
