"""Requests of the refusal paper in a model's template, and the direction whose ablation takes most refusal away.

Answers to harmful requests are scored by the log-odds of refusing openings and by phrases, in memory, and kept nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from _local_copies import data_files
from jaxtyping import Float

import steerlab as sl
from steerlab.activations import Activations
from steerlab.directions import fit_direction, outside
from steerlab.models import Edit, LanguageModel, Prompt, Site
from steerlab.readouts.refusals import Judge, log_odds, refusal_tokens
from steerlab.steering import side_effects

ONE_NAT = 1.0  # of KL on plain text, beyond which a direction is passed over where another is at hand


@dataclass(frozen=True)
class Choice:
    """The direction that was chosen on development requests, how it was made, and what its ablation did there."""

    direction: sl.Direction
    made: str
    change: float


class Refusal:
    """Requests of each split as prompts, and what says how far the model refuses them."""

    def __init__(self, model: LanguageModel, plan: Mapping[str, Any]) -> None:
        self.model, self.plan, self.amounts = model, plan, plan["refusal"]
        files, rng = data_files(plan["data"]["requests"]), np.random.default_rng(plan["seed"])

        def drawn(name: str, count: int) -> list[tuple[str, Any]]:
            rows = json.loads(files[name].read_text("utf-8"))
            chosen = [rows[at] for at in rng.permutation(len(rows))[:count]]
            return [(row["instruction"], row.get("category")) for row in chosen]

        def prompts(rows: Sequence[tuple[str, Any]]) -> list[Prompt]:
            return [model.instruction_prompt(text) for text, _ in rows]

        train, dev, test = (self.amounts[name] for name in ("train", "dev", "test"))
        self.harmful, self.harmless = (
            prompts(drawn(f"{kind}_train", train)) for kind in ("harmful", "harmless")
        )
        self.dev = prompts(drawn("harmful_val", dev))
        every = drawn("harmful_test", 10**6)
        self.test, self.others = prompts(every[:test]), every[test:]
        self.harmless_test = prompts(drawn("harmless_test", test))

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens that begin a refusal."""
        return tuple(refusal_tokens(self.model, self.dev[0]))

    @cached_property
    def judge(self) -> Judge:
        """Says of greedy answers whether they refuse, and whether they are language."""
        return Judge.of(self.model, self.harmless[:24], self.tokens, self.plan["seed"])

    @cached_property
    def texts(self) -> list[str]:
        """Plain text on which the price is measured."""
        return list(sl.datasets.plain_text()[: self.plan["texts"]])

    def odds(self, model: LanguageModel, prompts: Sequence[Any]) -> Float[np.ndarray, " prompt"]:
        """ln P(refusing opening) - ln P(other) of the answer's first token."""
        return log_odds(model, prompts, self.tokens)

    def changes(self, edit: Edit, prompts: Sequence[Prompt], plain: np.ndarray) -> np.ndarray:
        """By prompt, what an edit changes of the log-odds."""
        with self.model.steering(edit):
            after = self.odds(self.model, prompts)
        changed: np.ndarray = after - plain
        return changed

    @cached_property
    def states(self) -> tuple[Activations, list[int]]:
        """The states before the answer at the layers that are tried, and which requests are harmful."""
        layers = [round(depth * (self.model.n_layers - 1)) for depth in self.amounts["depths"]]
        prompts = [*self.harmful, *self.harmless]
        states = sl.capture(self.model, prompts, self.model.sites("resid_post", layers), positions=sl.Last())
        return states, [1] * len(self.harmful) + [0] * len(self.harmless)

    @cached_property
    def plain_dev(self) -> np.ndarray:
        """Log-odds of the development requests, unsteered."""
        return self.odds(self.model, self.dev)

    @cached_property
    def choice(self) -> Choice:
        """Of the differences in means at every layer, as they are and at right angles to the harmless mean, the one
        whose ablation takes most refusal from the development requests at less than a nat of KL."""
        fitted = fit_direction(*self.states, hold_out=False)
        tried: list[tuple[bool, float, Choice]] = []
        for site in fitted.sites:
            for made, direction in candidates(fitted, site).items():
                edit = sl.Ablate(direction)
                change = float(self.changes(edit, self.dev, self.plain_dev).mean())
                price = side_effects(self.model, self.texts[:8], {"": [edit]})[""].kl.value
                tried.append((price > ONE_NAT, change, Choice(direction, made, change)))
        return min(tried, key=lambda one: one[:2])[2]


def candidates(fitted: sl.Direction, site: Site) -> dict[str, sl.Direction]:
    """The difference in means at a site, and what of it is at right angles to the mean harmless state."""
    alone = fitted.at(site)
    return {
        "difference in means": alone,
        "at right angles to the harmless mean": outside(alone, "negative"),
    }


def random_directions(like: sl.Direction, k: int, draws: int, seed: int) -> list[sl.Direction]:
    """Random directions of k vectors at the same site."""
    (site,) = like.sites
    generator = torch.Generator().manual_seed(seed)
    width = like.vectors[site].shape[1]
    return [
        sl.Direction(
            {site: torch.randn(k, width, generator=generator)},
            like.model_name,
            like.fingerprint,
            estimator="random",
        )
        for _ in range(draws)
    ]
