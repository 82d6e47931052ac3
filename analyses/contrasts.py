"""Does a direction from a few pairs of sentences steer a model where it says it works best?

    python analyses/contrasts.py MODEL [--only happy formal] [--figures figures]

Five contrasts of `contrasts.toml`: formal, happy, Spanish, concise, refusal. Each direction is extracted with the
defaults and added where it says it works best, one class gap strong. The effect is what that does to ln P(towards) -
ln P(away) of the probes' continuations, which share no sentence with the pairs, beside random directions of the same
length. Loops: share of answers to packaged open prompts, greedy and sampled, in which most windows of four tokens stood
before. Numbers go to `figures/contrasts_<model>/contrasts.csv`, the picture beside them.
"""

from __future__ import annotations

import argparse
import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import steerlab as sl
from steerlab.errors import SteerlabError
from steerlab.plots import Series, bars, save
from steerlab.readouts.repetition import loops
from steerlab.readouts.scoring import continuation_log_odds
from steerlab.statistics import Estimate, bootstrap_mean

NAMES = ("formal", "happy", "spanish", "concise", "refusal")
COLUMNS = (
    *("contrast", "site", "accuracy", "accuracy_low", "accuracy_high", "effect", "effect_low", "effect_high"),
    *("random_least", "random_greatest"),
    *("greedy_loops", "greedy_loops_steered", "greedy_change", "greedy_change_low", "greedy_change_high"),
    *(
        "sampled_loops",
        "sampled_loops_steered",
        "sampled_change",
        "sampled_change_low",
        "sampled_change_high",
    ),
)


@dataclass(frozen=True)
class Contrast:
    """A direction, and the probes: prompts with a continuation towards and one away."""

    direction: sl.Direction
    prompts: list[sl.Prompt]
    towards: list[str]
    away: list[str]


def contrast(model: sl.LanguageModel, name: str, data: dict[str, Any]) -> Contrast:
    """One contrast of the file; requests are asked in the model's template."""
    if "probes" in data:
        prompts, towards, away = map(list, zip(*data["probes"], strict=True))
        return Contrast(
            sl.extract(model, data["pairs"]), [sl.Prompt(prompt) for prompt in prompts], towards, away
        )
    requests, openings = sl.datasets.requests(), data["openings"]
    asked = [model.instruction_prompt(text) for text in requests.split("test").negative[:24]]
    chosen = [openings[row % len(openings)] for row in range(len(asked))]
    return Contrast(
        sl.extract(model, data["pairs"]),
        asked,
        [towards for towards, _ in chosen],
        [away for _, away in chosen],
    )


def log_odds(model: sl.LanguageModel, probes: Contrast) -> np.ndarray:
    """ln P(towards) - ln P(away) of a contrast's probes."""
    return continuation_log_odds(model, probes.prompts, probes.towards, probes.away)


def looping(
    model: sl.LanguageModel, prompts: Sequence[sl.Prompt], new_tokens: int, *, sampled: bool
) -> np.ndarray:
    """By prompt, whether most windows of its continuation stood in it before."""
    return loops(model.generate(prompts, max_new_tokens=new_tokens, do_sample=sampled, seed=0))


def measured(
    model: sl.LanguageModel, name: str, data: dict[str, Any], n_random: int, new_tokens: int
) -> list[Any]:
    """A row of the table."""
    probes = contrast(model, name, data)
    direction, site = probes.direction, probes.direction.best
    assert site is not None
    plain = log_odds(model, probes)

    def effect(vector: torch.Tensor) -> np.ndarray:
        with model.steering(sl.Add(vector, unit="raw", sites=site)):
            return log_odds(model, probes) - plain

    added = direction[site] / direction[site].norm() * direction.class_gap[site]
    found = bootstrap_mean(effect(added), seed=0)
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(added.shape, generator=rng) for _ in range(n_random)]
    random = [float(effect(vector / vector.norm() * added.norm()).mean()) for vector in drawn]
    counts: list[float] = []
    asked = [model.instruction_prompt(text) for text in sl.datasets.open_prompts()[::3]]
    for sampled in (False, True):
        before = looping(model, asked, new_tokens, sampled=sampled)
        with model.steering(sl.Add(direction)):
            after = looping(model, asked, new_tokens, sampled=sampled)
        change = bootstrap_mean(after.astype(float) - before, seed=0)
        counts += [float(before.mean()), float(after.mean()), change.value, change.low, change.high]
    accuracy = direction.accuracy[site]
    held_out = [accuracy.value, accuracy.low, accuracy.high]
    print(
        f"{name}, {site}: {found} nats; random {min(random):+.2f} to {max(random):+.2f}; loops {counts}",
        flush=True,
    )
    return [name, site, *held_out, found.value, found.low, found.high, min(random), max(random), *counts]


def figure(rows: list[list[Any]], model: str) -> Any:
    """The effects with their intervals, beside what random directions do."""
    named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    effects = [Estimate(value=row["effect"], low=row["effect_low"], high=row["effect_high"]) for row in named]
    random = [
        Estimate(
            value=(row["random_least"] + row["random_greatest"]) / 2,
            low=row["random_least"],
            high=row["random_greatest"],
        )
        for row in named
    ]
    return bars(
        [row["contrast"] for row in named],
        [
            Series.of("the direction", effects, role="post"),
            Series.of("random, least to greatest", random, role="control"),
        ],
        title=f"One class gap at the best layer of {model}",
        y_title="change of log-odds (nats)",
    )


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="hub name, folder, or zoo:NAME")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="some of the contrasts")
    parser.add_argument("--random", type=int, default=20, help="random directions beside each")
    parser.add_argument(
        "--new-tokens", type=int, default=40, help="length of the continuations searched for loops"
    )
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="where figure and table go")
    arguments = parser.parse_args()
    data = tomllib.loads((Path(__file__).parent / "contrasts.toml").read_text(encoding="utf-8"))
    try:
        model = sl.load(arguments.model)
        rows = [
            measured(model, name, data[name], arguments.random, arguments.new_tokens)
            for name in arguments.only
        ]
    except SteerlabError as error:
        raise SystemExit(str(error)) from error
    name = Path(model.name).name.replace(":", "_")
    folder = arguments.figures / f"contrasts_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "contrasts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *rows])
    save(figure(rows, name), folder / "contrasts.svg")


if __name__ == "__main__":
    main()
