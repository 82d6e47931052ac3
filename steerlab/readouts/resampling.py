"""How far into an answer is its outcome settled? Answers taken up again from each of their prefixes.

From every sampled answer the first t tokens are kept, as token ids, and K continuations drawn with the same law
and the same remaining budget. Averaged over prefixes drawn from the model the share of right answers must not
change (the tower property): that is the test at K = 1. What does say something is how much of the variance lies
between prefixes,

    ρ(t) = Var over prefixes of E[right | prefix] / Var(right)        within each question,

0 at the start and 1 once everything is settled. Both variances are estimated without bias from pairs of
continuations. Source: the forking experiment of arXiv 2506.17871, whose drop of accuracy at K = 1 cannot come from
resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.samples import sample
from steerlab.readouts.sampling import Trajectories
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap, bootstrap_mean, paired_difference

Label = Callable[[int, str], bool]


class Resampled(Record):
    """Answers taken up after t tokens: share right before and after, their paired difference, ρ, and how many had
    ended."""

    t: int
    before: Estimate
    after: Estimate
    change: Estimate
    commitment: Estimate
    ended: float
    rollouts: int
    continuations: int

    @property
    def z(self) -> float:
        """The change over its standard error if all outcomes were independent, which they are not: a careful scale.

        NaN where every outcome is the same.
        """
        p = (self.before.value + self.after.value) / 2
        n = self.before.n * self.rollouts
        error = np.sqrt(p * (1 - p) * (1 / n + 1 / (n * self.continuations)))
        return float(self.change.value / error) if error > 0 else float("nan")


# Long: a third of it documents its options.
def resample(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    label: Label,
    *,
    positions: Sequence[int],
    rollouts: int = 6,
    continuations: int = 4,
    max_new_tokens: int = 48,
    law: SamplingLaw | None = None,
    seed: int = 0,
    first: Trajectories | None = None,
) -> list[Resampled]:
    """Roll every prompt (token ids) out, take it up again at each position, and see what is settled.

    Args:
        model: what writes; an intervention around this call acts on all of it.
        prompts: token ids.
        label: (number of the prompt, text of the answer) → whether the answer counts as right.
        positions: tokens kept, 0 for independent answers.
        rollouts: answers of each prompt, each a prefix; at least two.
        continuations: of each prefix, at least two.
        max_new_tokens: the whole budget of an answer.
        first: the rollouts, where `sample` has drawn them of these prompts already; None draws them.

    Raises:
        PromptError: no prompts, too few rollouts or continuations, a position outside of the budget, or a `first` of
            another shape.
    """
    if rollouts < 2 or continuations < 2:
        raise PromptError(
            "Commitment is a share of variances: it needs at least two rollouts and two continuations."
        )
    if wrong := [t for t in positions if not 0 <= t < max_new_tokens]:
        raise PromptError(
            f"An answer of at most {max_new_tokens} tokens cannot be taken up after {wrong[0]}."
        )
    rule = law or SamplingLaw()
    if first is None:
        first = _sampled(model, prompts, rollouts, max_new_tokens, rule, seed)
    _check_first(first, len(prompts) * rollouts, max_new_tokens)
    outcomes = _labelled(model, first, list(first.prompt), [[] for _ in range(len(first))], label)
    rows = []
    for number, t in enumerate(positions):
        after = _taken_up(
            model, prompts, first, outcomes, label, t, continuations, max_new_tokens, rule, seed + 1 + number
        )
        shape = (len(prompts), rollouts)
        before = outcomes.reshape(shape).mean(axis=1)
        rates = after.mean(axis=1).reshape(shape)
        rows.append(
            Resampled(
                t=t,
                before=bootstrap_mean(before, seed=seed),
                after=bootstrap_mean(rates.mean(axis=1), seed=seed),
                change=paired_difference(rates.mean(axis=1), before, seed=seed),
                commitment=commitment(rates, continuations, seed=seed),
                ended=float((first.ended & (first.lengths <= t)).mean()),
                rollouts=rollouts,
                continuations=continuations,
            )
        )
    return rows


def commitment(rates: Float[np.ndarray, "question prefix"], continuations: int, *, seed: int = 0) -> Estimate:
    """ρ from the share right of each prefix's `continuations`; NaN where outcomes do not vary inside a question.

    Within: p(1−p) of a prefix, unbiased. Whole: p(1−p) of a question from pairs of different prefixes, unbiased.
    """
    n = rates.shape[1]
    within = (rates * (1 - rates)).mean(axis=1) * continuations / (continuations - 1)
    pairs = (rates.sum(axis=1) ** 2 - (rates**2).sum(axis=1)) / (n * (n - 1))
    whole = rates.mean(axis=1) - pairs
    if whole.sum() <= 1e-12:
        return Estimate(value=float("nan"), n=len(rates), method="no outcome varies")

    def ratio(inside: np.ndarray, total: np.ndarray) -> float:
        return 1 - float(inside.sum() / total.sum()) if total.sum() > 1e-12 else float("nan")

    return bootstrap(ratio, within, whole, seed=seed)


# -- private, in the order they are called --


def _sampled(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    samples: int,
    steps: int,
    law: SamplingLaw,
    seed: int,
) -> Trajectories:
    return sample(
        model,
        prompts,
        samples=samples,
        max_new_tokens=steps,
        law=law,
        seed=seed,
        description="resampling",
    )


def _check_first(first: Trajectories, rows: int, steps: int) -> None:
    if first.tokens.shape != (rows, steps):
        raise PromptError(
            f"The first answers have the shape {first.tokens.shape}, not {(rows, steps)} (prompts × rollouts, steps); "
            "leave them out to have them drawn."
        )


def _labelled(
    model: LanguageModel,
    runs: Trajectories,
    question: Sequence[int],
    before: Sequence[Sequence[int]],
    label: Label,
) -> np.ndarray:
    texts = [
        model.tokenizer.decode([*start, *row[row >= 0].tolist()], skip_special_tokens=True)
        for start, row in zip(before, runs.tokens, strict=True)
    ]
    return np.array(
        [label(int(number), text) for number, text in zip(question, texts, strict=True)], dtype=bool
    )


def _taken_up(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    first: Trajectories,
    outcomes: np.ndarray,
    label: Label,
    t: int,
    continuations: int,
    max_new_tokens: int,
    law: SamplingLaw,
    seed: int,
) -> np.ndarray:
    """[rollout, continuation] whether right; an answer that had ended by itself within t tokens stays what it was."""
    outcomes_after = np.repeat(outcomes[:, None], continuations, axis=1)
    open_ = [row for row in range(len(first)) if not (first.ended[row] and first.lengths[row] <= t)]
    if not open_:
        return outcomes_after
    kept = [first.tokens[row][:t].tolist() for row in open_]
    starts = [[*prompts[int(first.prompt[row])], *prefix] for row, prefix in zip(open_, kept, strict=True)]
    runs = _sampled(model, starts, continuations, max_new_tokens - t, law, seed)
    question = [int(first.prompt[open_[number]]) for number in runs.prompt]
    before = [kept[number] for number in runs.prompt]
    outcomes_after[open_] = _labelled(model, runs, question, before, label).reshape(len(open_), continuations)
    return outcomes_after
