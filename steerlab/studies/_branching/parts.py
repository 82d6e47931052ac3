"""Beside the branching factor itself: prompt sets and levels, AEP panels, published aggregations, nudging,
resampling, votes.

Everything here runs on both models of a pair with the same prompts, renderings and law as the study.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from steerlab.datasets import prompt_sets
from steerlab.datasets.tasks import is_number
from steerlab.errors import DatasetError, PromptError
from steerlab.models import LanguageModel
from steerlab.models.prompts import Template
from steerlab.readouts.laws import SamplingLaw, step_law
from steerlab.readouts.nudging import Nudged, not_nudged, nudge, nudge_words, same_tokens
from steerlab.readouts.resampling import resample
from steerlab.readouts.samples import rendered, sample, steps_left
from steerlab.readouts.sampling import Trajectories
from steerlab.record import Role
from steerlab.statistics import Estimate, bootstrap_mean, paired_difference
from steerlab.studies._branching import estimators, legacy
from steerlab.studies._branching.aep import panels
from steerlab.studies._branching.amounts import PARTS, PartsAmount
from steerlab.studies._branching.attribution import Attribution, attribute
from steerlab.studies._branching.parts_result import (
    GAMMA,
    CommitmentRow,
    LegacyRow,
    NudgeRow,
    Parts,
    SetRow,
    VotesRow,
)
from steerlab.studies._branching.votes import votes

_SETS = ("instructions", "story openings", "random strings", "arithmetic")
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Drawn:
    """Samples of some prompts (token ids) by the law and seed of a study."""

    ids: list[list[int]]
    runs: Trajectories

    def holds(self, ids: list[list[int]], samples: int, steps: int) -> bool:
        """Whether so many samples of these prompts are among its own: those of its first prompts."""
        enough = samples <= self.runs.sample.max() + 1 and steps <= self.runs.tokens.shape[1]
        return enough and self.ids[: len(ids)] == ids


def parts(
    models: Mapping[Role, LanguageModel],
    records: Mapping[Role, Drawn],
    *,
    law: SamplingLaw,
    amounts: str,
    seed: int,
    templates: Mapping[Role, Template],
) -> Parts:
    """Run every part; what a pair cannot take is said in `missing`.

    records: what each model has written to open prompts. amounts: a key of `PARTS`.
    """
    amount, missing = PARTS[amounts], list[str]()
    written = {role: drawn.runs for role, drawn in records.items()}
    result = Parts(
        panels=tuple(
            panels(role, runs.entropy, runs.surprisal, runs.prompt) for role, runs in written.items()
        ),
        legacy=tuple(_legacy(role, runs) for role, runs in written.items()),
    )
    run = _Runner(models, templates, records, law, amount, seed)
    try:
        sets, attribution = _sets(run)
        result = result.model_copy(update={"sets": sets, "attribution": attribution})
    except (PromptError, DatasetError) as error:
        missing.append(f"Prompt sets were not run: {error}")
    try:
        result = result.model_copy(update={"nudging": _nudging(run)})
    except PromptError as error:
        missing.append(f"Nudging was not run: {error}")
    try:
        resampling, voted = _sums(run)
        result = result.model_copy(update={"resampling": resampling, "votes": voted})
    except PromptError as error:
        missing.append(f"Resampling was not run: {error}")
    return result.model_copy(update={"missing": tuple(missing)})


# -- private, in the order they are called --


class _Runner:
    """The pair with its renderings: prompts as token ids, and samples of them, none of which is drawn twice."""

    def __init__(
        self,
        models: Mapping[Role, LanguageModel],
        templates: Mapping[Role, Template],
        known: Mapping[Role, Drawn],
        law: SamplingLaw,
        amount: PartsAmount,
        seed: int,
    ) -> None:
        self.models, self.templates, self.law, self.amount, self.seed = models, templates, law, amount, seed
        self._drawn: dict[Role, list[Drawn]] = {role: [drawn] for role, drawn in known.items()}

    def ids(self, role: Role, texts: Sequence[str]) -> list[list[int]]:
        return rendered(self.models[role], texts, self.templates[role])

    def sample(self, role: Role, ids: list[list[int]], samples: int, steps: int) -> Trajectories:
        return self.sample_all(role, [ids], samples, steps)[0]

    def sample_all(
        self, role: Role, sets: Sequence[list[list[int]]], samples: int, steps: int
    ) -> list[Trajectories]:
        """Samples of each set, which are what they are alone; together, since full batches take little more time."""
        model = self.models[role]
        wanted = [(ids, steps_left(model, ids, steps)) for ids in sets]
        missing = [(ids, room) for ids, room in wanted if self._known(role, ids, samples, room) is None]
        for length in sorted({room for _, room in missing}):
            self._draw(role, [ids for ids, room in missing if room == length], samples, length)
        return [cast(Trajectories, self._known(role, ids, samples, room)) for ids, room in wanted]

    def _known(self, role: Role, ids: list[list[int]], samples: int, steps: int) -> Trajectories | None:
        for drawn in self._drawn[role]:
            if drawn.holds(ids, samples, steps):
                return drawn.runs.some(range(len(ids)), samples, steps)
        return None

    def _draw(self, role: Role, sets: Sequence[list[list[int]]], samples: int, steps: int) -> None:
        runs = sample(
            self.models[role],
            [prompt for ids in sets for prompt in ids],
            samples=samples,
            max_new_tokens=steps,
            law=self.law,
            seed=self.seed,
            numbers=[number for ids in sets for number in range(len(ids))],
            description=f"prompt sets, {role}",
        )
        start = 0
        for ids in sets:
            self._drawn[role].append(Drawn(ids, runs.some(range(start, start + len(ids)), samples, steps)))
            start += len(ids)


def _legacy(role: Role, runs: Trajectories) -> LegacyRow:
    entropies = [runs.entropy[runs.prompt == number] for number in np.unique(runs.prompt)]
    surprisals = [runs.surprisal[runs.prompt == number] for number in np.unique(runs.prompt)]
    printed = [math.exp(estimators.sequence_weighted(entropy)) for entropy in entropies]
    published = {kind: legacy.over_prompts(entropies, surprisals, kind) for kind in ("L0", "L1", "L2")}
    return LegacyRow(
        model=role,
        printed=float(np.mean(printed)),
        l0=published["L0"],
        l1=published["L1"],
        l2=published["L2"],
    )


def _sets(run: _Runner) -> tuple[tuple[SetRow, ...], tuple[Attribution, ...]]:
    """Four sets at two levels each; and what model and level do to log BF."""
    cells = [(number, name, level) for number, name in enumerate(_SETS) for level in run.amount.levels]
    texts = [_texts(run, name, level) for _, name, level in cells]
    measured = {role: _log_factors(run, role, texts) for role in run.models}
    rows: list[SetRow] = []
    logs: list[float] = []
    factors: dict[str, list[str]] = {"model": [], "level": []}
    prompt: list[int] = []
    for at, (set_number, name, level) in enumerate(cells):
        for role in run.models:
            logs += measured[role][at].tolist()
            # Prompts of different sets are different prompts: only model and level can be held against each other.
            prompt += [10_000 * set_number + number for number in range(len(texts[at]))]
            factors["model"] += [role] * len(texts[at])
            factors["level"] += [str(level)] * len(texts[at])
        base, post = measured["base"][at], measured["post"][at]
        rows.append(
            SetRow(
                name=name,
                level=level,
                prompts=len(texts[at]),
                base=bootstrap_mean(base, seed=run.seed).transform(math.exp),
                post=bootstrap_mean(post, seed=run.seed).transform(math.exp),
                ratio=paired_difference(base, post, seed=run.seed).transform(math.exp),
            )
        )
    return tuple(rows), tuple(attribute(np.array(logs), factors, prompt, seed=run.seed))


def _texts(run: _Runner, name: str, level: int) -> tuple[str, ...]:
    n, tokenizers = run.amount.prompts, [model.tokenizer for model in run.models.values()]
    return {
        "instructions": lambda: prompt_sets.instructions(n, level),
        "story openings": lambda: prompt_sets.story_openings(n, level, run.seed),
        "random strings": lambda: prompt_sets.random_strings(tokenizers, n, level, run.seed),
        "arithmetic": lambda: prompt_sets.arithmetic(n, level, run.seed),
    }[name]()


def _log_factors(run: _Runner, role: Role, texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """[prompt] log BF of each list of texts."""
    sets = [run.ids(role, some) for some in texts]
    return [
        estimators.by_prompt(estimators.sequence_means(runs.entropy), runs.prompt)
        for runs in run.sample_all(role, sets, run.amount.samples, run.amount.steps)
    ]


def _nudging(run: _Runner) -> tuple[NudgeRow, ...]:
    """By the post-trained model, with random tokens, by the base model itself, after forced prefixes, and not at
    all."""
    base, post = run.models["base"], run.models["post"]
    if not same_tokens(post.tokenizer, base.tokenizer):
        return (_by_words(run, base, post),)
    ids = run.ids("base", prompt_sets.instructions(run.amount.prompts, 0))
    steps = steps_left(base, ids, run.amount.steps)

    def row(name: str, nudged: Nudged) -> NudgeRow:
        return NudgeRow(
            name=name,
            nudged=float(nudged.nudged[~np.isnan(nudged.process)].mean()),
            process=_factor(nudged.process, nudged.prompt, run.seed),
            base=_factor(nudged.base, nudged.prompt, run.seed),
            away=_factor(nudged.away(3), nudged.prompt, run.seed),
            share=tuple(nudged.share),
        )

    def nudged(nudger: LanguageModel | None, prefix: int | None = None) -> Nudged:
        return nudge(
            base,
            nudger,
            ids,
            gamma=GAMMA,
            samples=run.amount.samples,
            max_new_tokens=steps,
            law=run.law,
            prefix=prefix,
            seed=run.seed,
        )

    rows = [
        row("the post-trained model", nudged(post)),
        row("random tokens", nudged(None)),
        row("the base model itself, greedily", nudged(base)),
    ]
    rows += [row(f"a prefix of {k} tokens", nudged(post, prefix=k)) for k in run.amount.prefixes if k < steps]
    # never nudged, the base model draws what it drew for the prompt sets
    return (*rows, row("nobody", not_nudged(run.sample("base", ids, run.amount.samples, steps))))


def _by_words(run: _Runner, base: LanguageModel, post: LanguageModel) -> NudgeRow:
    """Where tokenizers differ whole words are handed over; the base law is then read along the text that came out."""
    texts = prompt_sets.instructions(max(2, run.amount.prompts // 2), 0)
    prompts = [base.instruction_prompt(text, template="plain").text for text in texts]
    written = nudge_words(base, post, prompts, gamma=GAMMA, max_new_tokens=run.amount.steps)
    rows = []
    for prompt, (text, _) in zip(prompts, written, strict=True):
        tokens = base.tokenize([prompt + text])
        places = torch.arange(base.lengths([prompt])[0] - 1, tokens.lengths[0] - 1)
        hidden = base.last_hidden(tokens, torch.zeros_like(places), places)
        laws = [
            step_law(logits, run.law).entropy.double().cpu() for _, logits in base.logits_in_slices(hidden)
        ]
        rows.append(torch.cat([torch.empty(0), *laws]).numpy())
    values = np.full((len(rows), max(1, *map(len, rows))), np.nan)
    for number, row in enumerate(rows):
        values[number, : len(row)] = row
    unknown = Estimate(value=math.nan)
    return NudgeRow(
        name="the post-trained model, by words",
        nudged=float(np.mean([share for _, share in written])),
        process=unknown,
        base=_factor(values, np.arange(len(rows)), run.seed),
        away=unknown,
        share=(),
    )


def _factor(values: np.ndarray, prompt: np.ndarray, seed: int) -> Estimate:
    """BF by the mean of each sequence's known steps, over prompts; sequences without one are left out."""
    known = ~np.isnan(values).all(axis=1)
    if not known.any():
        return Estimate(value=math.nan)
    logs = estimators.by_prompt(np.nanmean(values[known], axis=1), prompt[known])
    return bootstrap_mean(logs, seed=seed).transform(math.exp)


def _sums(run: _Runner) -> tuple[tuple[CommitmentRow, ...], tuple[VotesRow, ...]]:
    """Sums of three numbers: what is settled when, and majorities of the answers."""
    amount = run.amount
    texts = prompt_sets.arithmetic(amount.questions, 1, run.seed)
    truth = [str(sum(map(int, _NUMBER.findall(text)))) for text in texts]
    rows: list[CommitmentRow] = []
    voted: list[VotesRow] = []
    for role, model in run.models.items():
        ids = run.ids(role, texts)
        steps = steps_left(model, ids, amount.sum_steps)
        runs = run.sample(role, ids, 2 * amount.rollouts, steps)
        resampled = resample(
            model,
            ids,
            lambda question, text: is_number(text, truth[question]),
            positions=[t for t in amount.positions if t < steps],
            rollouts=amount.rollouts,
            continuations=amount.continuations,
            max_new_tokens=steps,
            law=run.law,
            seed=run.seed,
            first=runs.some(range(len(ids)), amount.rollouts, steps),
        )
        rows += [CommitmentRow(model=role, at=position) for position in resampled]
        replies = [
            (
                _NUMBER.findall(model.tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=True))
                or [""]
            )[-1]
            for row in runs.tokens
        ]
        answers = [
            [replies[at] for at in np.flatnonzero(runs.prompt == number)] for number in range(len(texts))
        ]
        factor = _factor(runs.entropy, runs.prompt, run.seed)
        voted += [
            VotesRow(model=role, votes=votes(answers, truth, k, seed=run.seed), factor=factor)
            for k in (1, 3, 8)
        ]
    return tuple(rows), tuple(voted)
