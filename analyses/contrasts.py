"""Does a direction from a few pairs of sentences steer a model where it says it works best?

    python analyses/contrasts.py MODEL [--only happy formal] [--figures figures]

Five contrasts of `contrasts.toml`: formal, happy, Spanish, concise, refusal. Each direction is extracted with the
defaults and added at its best layer, one class gap strong. The effect is what that does to ln P(towards) - ln P(away)
of the probes' continuations, which share no sentence with the pairs, beside random directions of the same length.
Loops: share of greedy continuations of the probes' prompts in which most windows of four tokens stood before. Numbers
go to `figures/contrasts_<model>/contrasts.csv`, the picture beside them.
"""

from __future__ import annotations

import argparse
import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import steerlab as sl
from steerlab.errors import SteerlabError
from steerlab.plots import Series, bars, save
from steerlab.readouts.scoring import continuation_log_probability
from steerlab.statistics import Estimate, bootstrap_mean

NAMES = ("formal", "happy", "spanish", "concise", "refusal")
WINDOW = 4  # tokens
COLUMNS = (
    *("contrast", "site", "accuracy", "accuracy_low", "accuracy_high", "effect", "effect_low", "effect_high"),
    *("random_least", "random_greatest", "loops", "loops_steered", "change", "change_low", "change_high"),
)


@dataclass(frozen=True)
class Contrast:
    """What a direction is made of, and the probes: prompts with a continuation towards and one away."""

    made_of: Any
    prompts: list[sl.Prompt]
    towards: list[str]
    away: list[str]


def contrast(model: sl.LanguageModel, name: str, data: dict[str, Any]) -> Contrast:
    """One contrast of the file; requests are asked in the model's template."""
    if name != "refusal":
        prompts, towards, away = map(list, zip(*data["probes"], strict=True))
        return Contrast(data["pairs"], [sl.Prompt(prompt) for prompt in prompts], towards, away)
    requests, openings = sl.datasets.requests(), data["openings"]
    asked = [model.instruction_prompt(text) for text in requests.split("val").negative[:24]]
    chosen = [openings[row % len(openings)] for row in range(len(asked))]
    return Contrast(requests.split("train"), asked, [to for to, _ in chosen], [from_ for _, from_ in chosen])


def log_odds(model: sl.LanguageModel, probes: Contrast) -> np.ndarray:
    """ln P(towards) - ln P(away) of each probe's continuations, from where they differ; nats."""
    tokens = [
        model.tokenize(
            [
                replace(prompt, text=prompt.text + text)
                for prompt, text in zip(probes.prompts, texts, strict=True)
            ],
            padding_side="right",
        )
        for texts in (probes.towards, probes.away)
    ]
    width = min(side.width for side in tokens)
    same = tokens[0].input_ids[:, :width] == tokens[1].input_ids[:, :width]
    starts = same.int().cumprod(dim=1).sum(dim=1).tolist()
    towards, away = (continuation_log_probability(model, side, starts).numpy() for side in tokens)
    difference: np.ndarray = towards - away
    return difference


def loops(model: sl.LanguageModel, prompts: Sequence[sl.Prompt], new_tokens: int) -> np.ndarray:
    """By prompt, whether most windows of the greedy continuation stood in it before."""
    written = [answer.token_ids for answer in model.generate(prompts, max_new_tokens=new_tokens)]
    windows = [[ids[at : at + WINDOW] for at in range(len(ids) - WINDOW + 1)] for ids in written]
    return np.array([2 * len(set(seen)) < len(seen) for seen in windows])


def measured(
    model: sl.LanguageModel, name: str, data: dict[str, Any], n_random: int, new_tokens: int
) -> list[Any]:
    """A row of the table."""
    probes = contrast(model, name, data)
    direction = sl.extract(model, probes.made_of)
    site = direction.best
    assert site is not None
    plain, plain_loops = log_odds(model, probes), loops(model, probes.prompts, new_tokens)

    def effect(vector: torch.Tensor) -> np.ndarray:
        with model.steering(sl.Add(vector, unit="raw", sites=site)):
            return log_odds(model, probes) - plain

    added = direction[site] / direction[site].norm() * direction.class_gap[site]
    found = bootstrap_mean(effect(added), seed=0)
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(added.shape, generator=rng) for _ in range(n_random)]
    random = [float(effect(vector / vector.norm() * added.norm()).mean()) for vector in drawn]
    with model.steering(sl.Add(direction)):
        steered_loops = loops(model, probes.prompts, new_tokens)
    change = bootstrap_mean(steered_loops.astype(float) - plain_loops, seed=0)
    accuracy = direction.accuracy[site]
    print(
        f"{name}, {site}: {found} nats; random {min(random):+.2f} to {max(random):+.2f}; loops {change}",
        flush=True,
    )
    return [
        *(name, site, accuracy.value, accuracy.low, accuracy.high, found.value, found.low, found.high),
        *(
            min(random),
            max(random),
            plain_loops.mean(),
            steered_loops.mean(),
            change.value,
            change.low,
            change.high,
        ),
    ]


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
