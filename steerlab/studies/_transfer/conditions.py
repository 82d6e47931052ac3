"""The target under every condition of a transfer: locked, at its ceilings, unlocked, and under every control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.base import clone

from steerlab.alignment import ShuffledPairs, SvdRegression
from steerlab.datasets import Task, requests
from steerlab.directions import Direction
from steerlab.errors import AlignmentError, DirectionError
from steerlab.models import Edit, LanguageModel, Site
from steerlab.progress import track
from steerlab.statistics import Estimate, mcnemar, paired_difference, proportion
from steerlab.steering import side_effects
from steerlab.studies._transfer.capability import capability_direction, deltas
from steerlab.studies._transfer.proxy import arithmetic, same_vocabulary
from steerlab.studies._transfer.result import UNLOCK, Condition, ConditionRole
from steerlab.studies._transfer.strength import GRID, choose_strength
from steerlab.studies._transfer.unlock import Unlocked, read_prompts, refitted, turn
from steerlab.studies._transfer.writing import Written, asked, judged, write


class Trials:
    """The target with its questions, and what it has written under each condition."""

    def __init__(self, target: LanguageModel, dev: Task, test: Task, template: str, least: float) -> None:
        self.target, self.dev, self.test, self.template, self.least = target, dev, test, template, least
        self.choosing = asked(target, dev.locked, template)
        self.testing = asked(target, test.locked, template)
        self.kept: dict[str, Written] = {}

    def score(self, edits: Sequence[Edit], by: str) -> tuple[float, float]:
        """Outcome and repetition on dev questions."""
        answers = write(self.target, self.choosing, self.dev, edits, least=self.least)
        return float((answers.right if by == "labels" else answers.behaves).mean()), float(
            answers.repeats.mean()
        )

    def steered(self, edits: Sequence[Edit]) -> Written:
        """Answers to the test questions."""
        return write(self.target, self.testing, self.test, edits, least=self.least)


def least_length(unlocked: LanguageModel, dev: Task, template: str, by_weights: bool) -> float:
    """Half of the median length of the unlocked source's own answers, where the task does not say how they begin."""
    if dev.behaviour is not None:
        return 0.0
    texts = dev.locked if by_weights else dev.unlocked
    return float(np.median(write(unlocked, asked(unlocked, texts, template), dev).length)) / 2


def conditions_of(
    trials: Trials,
    source: tuple[LanguageModel, LanguageModel],
    result: Unlocked,
    *,
    randoms: int,
    by: str,
    missing: dict[str, str],
    seed: int,
) -> list[Condition]:
    """What the target writes locked, at its ceilings, under UNLOCK and under every control.

    by: what chooses the native direction's own strength. missing: what was not run and why, filled here.
    """
    target, alpha = trials.target, result.strength
    made: list[Condition] = []

    def add(
        name: str, role: ConditionRole, answers: Written, edits: Sequence[Edit] = (), strength: float = np.nan
    ) -> None:
        trials.kept[name] = answers
        made.append(_condition(trials, name, role, answers, strength, _first_kl(trials, edits, seed), seed))

    add("locked", "locked", trials.steered(()))
    if source[0] is source[1]:
        prompts = asked(target, trials.test.unlocked, trials.template)
        add("unlocked prompt", "ceiling", write(target, prompts, trials.test, least=trials.least))
    for name, role, direction, sign in _directions(result, source, trials, missing, seed):
        edits = turn(direction, sign * alpha)
        add(name, role, trials.steered(edits), edits, sign * alpha)
    if result.native is not None:
        native = result.native
        own = choose_strength(lambda tried: trials.score(turn(native, tried), by), GRID)
        edits = turn(native, own.strength)
        add("native, all layers, own strength", "ceiling", trials.steered(edits), edits, own.strength)
    made.append(_random(trials, result, randoms, seed))
    for count in (1, 4):
        add(f"first {count} forced", "forced", _forced(trials, count))
    if source[0] is not source[1] and all(same_vocabulary(target, model) for model in source):
        written = arithmetic(target, *source, trials.testing, trials.test.max_new_tokens)
        add("logit arithmetic", "ceiling", judged(written, trials.test, least=trials.least))
    else:
        missing["logit arithmetic"] = (
            "Logit arithmetic was not run: it needs a locked and an unlocked source model with the target's vocabulary."
        )
    return made


def _directions(
    result: Unlocked,
    source: tuple[LanguageModel, LanguageModel],
    trials: Trials,
    missing: dict[str, str],
    seed: int,
) -> list[tuple[str, ConditionRole, Direction, int]]:
    """UNLOCK, the native direction at the same layers, and directions that must not work."""
    made: list[tuple[str, ConditionRole, Direction, int]] = [(UNLOCK, "transfer", result.direction, 1)]
    sites = result.direction.sites
    if result.native is not None and all(site in result.native.vectors for site in sites):
        made.append(("native, same layers", "ceiling", result.native.at(*sites), 1))
    own = next(iter(result.alignment.aligners.values()))
    for name, aligner in (("rank one", SvdRegression(1)), ("shuffled pairs", ShuffledPairs(clone(own)))):
        made.append((name, "control", refitted(result, aligner)[0], 1))
    made.append(("negated", "control", result.direction, -1))
    made.append(
        ("random source direction", "control", _carried(result, _random_vectors(result.source, seed)), 1)
    )
    if len(result.source.sites) > 1:
        made.append(("another layer", "specificity", _carried(result, _other_layers(result.source)), 1))
    try:
        made.append(("another task", "control", _another(result, source[0], trials.template), 1))
    except (DirectionError, AlignmentError) as error:
        missing["another task"] = f"A direction of another task was not carried: {error}"
    return made


def _carried(result: Unlocked, vectors: dict[Site, torch.Tensor]) -> Direction:
    """Other vectors of the source, carried by the same map to the same layers."""
    return result.alignment.transfer(replace(result.source, vectors=vectors)).at(*result.direction.sites)


def _random_vectors(direction: Direction, seed: int) -> dict[Site, torch.Tensor]:
    """A random vector of the same length at every site."""
    rng = torch.Generator().manual_seed(seed)
    drawn = {site: torch.randn(direction[site].shape, generator=rng) for site in direction.sites}
    return {site: vector / vector.norm() * direction[site].norm() for site, vector in drawn.items()}


def _other_layers(direction: Direction) -> dict[Site, torch.Tensor]:
    """At every site the vector of the site half of the depth away."""
    sites = direction.sites
    half = max(1, len(sites) // 2)
    return {site: direction[sites[(at + half) % len(sites)]] for at, site in enumerate(sites)}


def _another(result: Unlocked, source: LanguageModel, template: str) -> Direction:
    """Harmful against harmless requests in the source, carried by the same map."""
    part = requests().split("train")
    n = min(len(part.positive), len(part.negative), 64)
    reads = [
        read_prompts(source, texts[:n], template, result.preset == "published")
        for texts in (part.positive, part.negative)
    ]
    wrong = capability_direction(
        deltas(*reads), model_name=source.name, fingerprint=source.fingerprint, aggregator=result.aggregator
    )
    return result.alignment.transfer(wrong).at(*result.direction.sites)


def _random(trials: Trials, result: Unlocked, randoms: int, seed: int) -> Condition:
    """Random directions, each on a third of the questions in turn."""
    n = len(trials.test)
    size = max(4, n // 3)
    rng = np.random.default_rng(seed)
    rows = [(np.arange(size) + draw * size) % n for draw in range(randoms)]
    parts: list[Written] = []
    for chosen in track(rows, "random directions", len(rows)):
        vectors = {
            site: torch.from_numpy(rng.standard_normal(trials.target.d_model)).float()
            for site in result.direction.sites
        }
        direction = Direction(
            vectors=vectors,
            model_name=trials.target.name,
            fingerprint=trials.target.fingerprint,
            estimator="random",
        )
        parts.append(
            write(
                trials.target,
                [trials.testing[row] for row in chosen],
                trials.test.take(chosen.tolist()),
                turn(direction, result.strength),
                least=trials.least,
            )
        )
    clusters = np.repeat(np.arange(len(rows)), size)
    right, behaves = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("right", "behaves")
    )
    locked = trials.kept["locked"]
    order = np.concatenate(rows)
    return Condition(
        name="random directions",
        role="control",
        strength=result.strength,
        right=proportion(right, clusters=clusters),
        behaves=proportion(behaves, clusters=clusters),
        right_change=paired_difference(right, locked.right[order], clusters, seed=seed),
        behaves_change=paired_difference(behaves, locked.behaves[order], clusters, seed=seed),
        length=float(np.concatenate([part.length for part in parts]).mean()),
        repeats=float(np.concatenate([part.repeats for part in parts]).mean()),
        draws=tuple(float(part.behaves.mean()) for part in parts),
    )


def _forced(trials: Trials, count: int) -> Written:
    """The unsteered target, given the first tokens of the steered answers."""
    openings = [
        trials.target.tokenizer.decode(answer.token_ids[:count], skip_special_tokens=True)
        for answer in trials.kept[UNLOCK].generations
    ]
    prompts = [
        replace(prompt, text=prompt.text + opening)
        for prompt, opening in zip(trials.testing, openings, strict=True)
    ]
    answers = trials.target.generate(prompts, max_new_tokens=max(1, trials.test.max_new_tokens - count))
    return judged(answers, trials.test, least=max(0.0, trials.least - count), opening=openings)


def _condition(
    trials: Trials,
    name: str,
    role: ConditionRole,
    answers: Written,
    alpha: float,
    first_kl: Estimate | None,
    seed: int,
) -> Condition:
    locked = trials.kept["locked"]
    changed = name != "locked"
    return Condition(
        name=name,
        role=role,
        strength=alpha,
        right=proportion(answers.right),
        behaves=proportion(answers.behaves),
        right_change=paired_difference(answers.right, locked.right, seed=seed) if changed else None,
        behaves_change=paired_difference(answers.behaves, locked.behaves, seed=seed) if changed else None,
        p_value=mcnemar(answers.right, locked.right).p_value if changed else float("nan"),
        length=float(answers.length.mean()),
        repeats=float(answers.repeats.mean()),
        first_kl=first_kl,
    )


def _first_kl(trials: Trials, edits: Sequence[Edit], seed: int) -> Estimate | None:
    if not edits:
        return None
    priced = side_effects(trials.target, trials.testing, {"edit": edits}, positions="last", seed=seed)
    return priced["edit"].kl
