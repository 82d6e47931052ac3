"""A learned low-rank map beside what else makes a model answer in one sentence: a direction, a vector, asking.

The answers are those of `post_training/answers.jsonl`, with the token that ends a turn. Every way is judged on requests
whose answers nothing was learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _script import named
from post_training.examples import read_answers

import steerlab as sl
from steerlab.models import Edit, Generation, LanguageModel, Prompt, Site, Tokens
from steerlab.monitoring.chats import answers_of, score_chats
from steerlab.readouts.repetition import loops
from steerlab.readouts.scoring import token_log_probabilities
from steerlab.statistics import bootstrap_mean, mean_and_extremes, paired_difference, proportion
from steerlab.steering import LowRank, side_effects

Row = dict[str, Any]
ANSWERS = Path(__file__).parent / "post_training" / "answers.jsonl"
LEARNED, DIFFERENCE, VECTOR, ASKED = "learned map", "difference in means", "optimised vector", "asked"
WISH = "Answer in one short sentence."
_CONTROL = "mean and extremes of {n} random maps of equal norm"


@dataclass(frozen=True)
class Examples:
    """Requests with answers of one sentence: to learn from, to choose a strength on, to judge on."""

    train: list[tuple[str, str]]
    dev: list[tuple[str, str]]
    test: list[tuple[str, str]]


def examples_of(plan: Mapping[str, Any]) -> Examples:
    """So many of each, drawn by the seed."""
    rows, amounts = list(read_answers(ANSWERS).items()), plan["low_rank"]
    order = np.random.default_rng(plan["seed"]).permutation(len(rows)).tolist()
    ends = np.cumsum([amounts[name] for name in ("train", "dev", "test")])
    parts = [[rows[at] for at in some] for some in np.split(np.array(order[: ends[-1]]), ends[:-1])]
    return Examples(*parts)


class Answering:
    """What a model makes of the examples, with the token that ends its turn behind each answer."""

    def __init__(self, model: LanguageModel, plan: Mapping[str, Any]) -> None:
        self.model, self.plan, self.amounts = model, plan, plan["low_rank"]
        self.examples = examples_of(plan)
        self.site = Site("resid_post", round(self.amounts["depth"] * (model.n_layers - 1)))

    def prompts(self, rows: Sequence[tuple[str, str]], wish: str = "") -> list[Prompt]:
        """The requests, with a wish behind each where there is one."""
        return [self.model.instruction_prompt(f"{text} {wish}".strip()) for text, _ in rows]

    def ids(self, rows: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Tokens of the answers."""
        end = self.model.tokenizer.eos_token_id
        return [
            [*self.model.tokenizer(answer, add_special_tokens=False)["input_ids"], end] for _, answer in rows
        ]

    def loss(self, rows: Sequence[tuple[str, str]], wish: str = "") -> np.ndarray:
        """-ln P of each answer, nats a token, under whatever steers the model."""
        before = self.model.token_ids(self.prompts(rows, wish))
        losses = []
        for start in range(0, len(rows), 16):
            some = slice(start, start + 16)
            pairs = list(zip(before[some], self.ids(rows[some]), strict=True))
            tokens = Tokens.of_ids([[*prompt, *answer] for prompt, answer in pairs])
            found = token_log_probabilities(self.model, tokens, [len(prompt) for prompt, _ in pairs])
            losses += [-float(each.mean()) for each in found]
        return np.array(losses)

    def written(self, wish: str = "") -> list[Generation]:
        """Greedy answers to the test requests."""
        return self.model.generate(
            self.prompts(self.examples.test, wish), max_new_tokens=self.amounts["new_tokens"]
        )

    def learned(self) -> LowRank:
        """The map, learned from the examples."""
        rows = self.examples.train
        pairs = list(zip(self.prompts(rows), self.ids(rows), strict=True))
        return sl.learn_low_rank(
            self.model, self.site, pairs, rank=self.amounts["rank"], steps=self.amounts["steps"],
            held_out=0.1, token_budget=self.amounts["token_budget"], seed=self.plan["seed"],
        )  # fmt: skip

    def difference(self) -> sl.Direction:
        """Mean states of the examples' answers less those of the model's own answers to the same requests."""
        rows = self.examples.train[: self.amounts["own"]]
        own = self.model.generate(self.prompts(rows), max_new_tokens=self.amounts["new_tokens"])
        chats = [
            *rows,
            *((text, each.text) for (text, _), each in zip(rows, own, strict=True) if each.text.strip()),
        ]
        means = score_chats(
            self.model, answers_of(self.model, chats), self.site, torch.zeros(self.model.d_model, 1)
        ).means.double()
        vector = means[: len(rows)].mean(dim=0) - means[len(rows) :].mean(dim=0)
        return sl.Direction(
            {self.site: vector}, self.model.name, self.model.fingerprint, estimator=DIFFERENCE
        )

    def best_strength(self, direction: sl.Direction) -> tuple[float, float]:
        """Of the strengths in its own length the one that makes development answers likeliest, and its norm."""
        losses = {}
        for strength in self.amounts["strengths"]:
            with self.model.steering(sl.Add(direction, strength, unit="raw")):
                losses[strength] = float(self.loss(self.examples.dev).mean())
        best = min(losses, key=lambda strength: losses[strength])
        return best, best * float(direction[self.site].norm())

    def optimised(self, norm: float) -> sl.Direction:
        """The vector of at most that norm under which the training answers are likeliest."""
        rows = self.examples.train[: self.amounts["optimised_on"]]
        return sl.optimise_direction(
            self.model, self.site, self.prompts(rows), self.ids(rows), max_norm=norm,
            steps=self.amounts["optimised_steps"], held_out=0, seed=self.plan["seed"],
        )  # fmt: skip


def low_rank_rows(model: LanguageModel, plan: Mapping[str, Any]) -> list[Row]:
    """A row a way of getting answers of one sentence."""
    task, seed = Answering(model, plan), plan["seed"]
    learned, direction = task.learned(), task.difference()
    strength, norm = task.best_strength(direction)
    ways: dict[str, tuple[Edit | None, str]] = {
        "nothing": (None, ""),
        LEARNED: (learned, ""),
        DIFFERENCE: (sl.Add(direction, strength, unit="raw"), ""),
        VECTOR: (sl.Add(task.optimised(norm), unit="raw"), ""),
        ASKED: (None, WISH),
    }
    texts = list(sl.datasets.plain_text()[: plan["texts"]])
    randoms = [learned.random_like(seed + draw) for draw in range(plan["low_rank"]["randoms"])]
    edits = {name: [edit] for name, (edit, _) in ways.items() if edit is not None}
    edits |= {str(at): [edit] for at, edit in enumerate(randoms)}
    prices = side_effects(model, texts, edits, seed=seed)
    shared = {"site": str(task.site), "rank": learned.rank, "n": len(task.examples.test)}
    shared |= {"learned_from": len(task.examples.train)}
    rows, losses = list[Row](), dict[str, np.ndarray]()
    for name, (edit, wish) in ways.items():
        with model.steering(edit) if edit is not None else nullcontext():
            losses[name], written = task.loss(task.examples.test, wish), task.written(wish)
        row = shared | {"way": name} | named("loss", bootstrap_mean(losses[name], seed=seed))
        if name != "nothing":
            row |= named("less_none", paired_difference(losses[name], losses["nothing"], seed=seed))
        if name not in ("nothing", LEARNED):
            row |= named("less_learned", paired_difference(losses[name], losses[LEARNED], seed=seed))
        row |= {DIFFERENCE: {"strength": strength, "norm": norm}, VECTOR: {"norm": norm}}.get(name, {})
        rows.append(
            row | answer_columns(written, seed) | (named("kl", prices[name].kl) if name in prices else {})
        )
    means = []
    for edit in randoms:
        with model.steering(edit):
            means.append(float(task.loss(task.examples.test).mean()))
    row = shared | {"way": "random maps of equal norm", "draws": len(randoms)}
    row |= named("loss", mean_and_extremes(means, _CONTROL))
    row |= named("kl", mean_and_extremes([prices[str(at)].kl.value for at in range(len(randoms))], _CONTROL))
    return [*rows, row]


def answer_columns(written: Sequence[Generation], seed: int) -> Row:
    """How many answers end within the tokens allowed, and loop; and how long they are."""
    ended = np.array([answer.finished for answer in written])
    row = named("ended", proportion(ended)) | named("loops", proportion(loops(written)))
    return row | named(
        "length", bootstrap_mean([float(len(answer.token_ids)) for answer in written], seed=seed)
    )
