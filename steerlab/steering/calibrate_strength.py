"""Calibration: the strength that reaches a target effect at the least divergence on unrelated text.

    effect(s) = mean over dev prompts of what the caller measures, steered with strength s
    price(s)  = mean KL(unsteered ‖ steered) a token on plain texts, see `side_effects`

Every candidate is tried at a few strengths from weak to strong, and between the last that missed the target and the
first that reached it by bisection. Of all trials that reached it the one with the least KL is chosen. Strengths
differ tenfold between models, so a fixed number means little; this one is measured (heretic and steering-lite
calibrate on KL as well). With a judge the effect is the share of answers that it calls refused; the share by the
phrases and the agreement of the two stand beside it, trial by trial.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from pydantic import PrivateAttr

from steerlab import plots
from steerlab.errors import SteeringError
from steerlab.judging import (
    JudgeAgreement,
    RefusalJudge,
    agreement_of,
    asked_once,
    by_judge,
    by_rule,
    judge_name,
    refuses,
)
from steerlab.models import Edit, LanguageModel, Prompt
from steerlab.models.laws import log_odds
from steerlab.models.prompts import as_prompt
from steerlab.models.thinking import answer_in
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean
from steerlab.steering._intervention import Intervention
from steerlab.steering.price import side_effects

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Effect: TypeAlias = Callable[[LanguageModel, Sequence[str | Prompt]], Any]
"""Measures a model on prompts: one number a prompt (an array), or one number."""
Dose: TypeAlias = Callable[[float], "Edit | Sequence[Edit]"]
"""Interventions of a strength."""
_Measure: TypeAlias = Callable[
    [LanguageModel, Sequence[str | Prompt]], tuple[Estimate, JudgeAgreement | None]
]
_ANSWER_TOKENS = 32


class Trial(Record):
    """One candidate at one strength: the effect on the dev prompts, the KL (nats a token) on unrelated text.

    judged: the judge beside the phrases on the same answers, where a judge measured the effect.
    """

    candidate: str
    strength: float
    effect: Estimate
    kl: Estimate
    judged: JudgeAgreement | None = None


class Calibration(Record):
    """What was tried and what was chosen.

    target: the effect that was asked for. unsteered: the effect without steering. trials: by candidate, from weak to
    strong. chosen: the trial that reached the target at the least KL; None when none did. judge: name of the judge
    that measured the effect, where one did.
    """

    target: float
    unsteered: Estimate
    trials: tuple[Trial, ...]
    chosen: Trial | None
    judge: str | None = None
    _interventions: tuple[Edit, ...] = PrivateAttr(default=())

    @property
    def strength(self) -> float:
        """The chosen strength. Raises SteeringError when no trial reached the target."""
        return self._chosen_trial.strength

    @property
    def interventions(self) -> tuple[Edit, ...]:
        """What to give to ``model.steering(*...)``. Raises SteeringError when no trial reached the target."""
        if self._chosen_trial and not self._interventions:
            raise SteeringError(
                "A calibration read from data holds no interventions; make them with its strength."
            )
        return self._interventions

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON data, without the interventions."""
        return self.model_dump(mode="json")

    def plot(self) -> Figure:
        """The trade-off: effect over KL, one line a candidate, with the target."""
        series = []
        for name in dict.fromkeys(trial.candidate for trial in self.trials):
            own_trials = [trial for trial in self.trials if trial.candidate == name]
            effects = [self.unsteered, *(trial.effect for trial in own_trials)]
            labels = ["unsteered", *(f"strength {trial.strength:.3g}" for trial in own_trials)]
            prices = [0.0, *(trial.kl.value for trial in own_trials)]
            series.append(plots.Series.of(name, effects, x=prices, labels=labels))
        figure = plots.curves(
            series,
            title=f"Effect and price of {len(series)} candidate{'s' if len(series) > 1 else ''}",
            x_title="KL on unrelated text (nats a token)",
            y_title="effect" if self.judge is None else f"share refused, says {self.judge}",
        )
        figure.add_hline(y=self.target, line={"dash": "dot", "width": 1}, annotation_text="target")
        return figure

    @property
    def _chosen_trial(self) -> Trial:
        if self.chosen is None:
            best = min(self.trials, key=lambda trial: abs(trial.effect.value - self.target))
            raise SteeringError(
                f"No strength reached the effect {self.target:g}: the nearest was {best.effect.value:.3g} at strength "
                f"{best.strength:g} of {best.candidate}; try stronger ones (strengths=...) or another direction."
            )
        return self.chosen


# Long: most of it documents its options.
def calibrate_strength(
    model: LanguageModel,
    candidates: Intervention | Dose | Mapping[str, Intervention | Dose],
    prompts: Sequence[str | Prompt],
    texts: Sequence[str | Prompt],
    *,
    effect: Effect | None = None,
    target: float,
    judge: RefusalJudge | None = None,
    max_new_tokens: int = _ANSWER_TOKENS,
    strengths: Sequence[float] | None = None,
    refinements: int = 4,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Calibration:
    """Find the strength that reaches ``target`` on the dev prompts at the least KL on ``texts``.

    Args:
        candidates: an intervention that has a strength, or a function from a strength to interventions; several by
            name, for example one a layer.
        prompts: dev prompts; report effects on others.
        texts: unrelated plain text for the price.
        effect: called as ``effect(model, prompts)`` while steered, for example ``token_log_odds(" yes", " no")``.
        target: the effect to reach, from whichever side the unsteered model lies on.
        judge: in place of an effect: says of (request, answer) whether it was refused. The effect is the share of
            greedy answers that it calls so; an answer that never ends its thinking block counts as none.
        max_new_tokens: of the answers that are judged.
        strengths: tried from weak to strong; by default a quarter, half, one, two and four times the candidate's own
            strength (1 for a function).
        refinements: bisections between the last strength that missed and the first that reached the target.
        groups: one name a prompt; prompts of one group (a pair, a template) are drawn together in the intervals. By
            default every prompt stands alone.
        seed: of the bootstrap.

    Raises:
        SteeringError: a candidate without a strength, no strengths to try, another number of groups than prompts, or
            not one of an effect and a judge.
        SteerlabError: a judge that fails or gives something that is no bool.
    """
    measure = _measure(effect, judge, max_new_tokens, groups, seed)
    named = candidates if isinstance(candidates, Mapping) else {"steered": candidates}
    if not named or (strengths is not None and not any(strengths)):
        raise SteeringError("Calibrating needs a candidate and strengths other than zero to try.")
    if groups is not None and len(groups) != len(prompts):
        raise SteeringError(f"{len(prompts)} prompts came with {len(groups)} groups; give one a prompt.")
    unsteered, _ = measure(model, prompts)
    search = _Search(model, prompts, texts, measure, target, target >= unsteered.value, seed)
    trials: list[Trial] = []
    for name, candidate in named.items():
        dose, own = _dose(name, candidate)
        wanted = [own * factor for factor in (0.25, 0.5, 1, 2, 4)] if strengths is None else strengths
        trials += search.run(name, dose, sorted(wanted, key=abs), refinements)
    reached = [trial for trial in trials if search.reaches(trial.effect.value)]
    chosen = min(reached, key=lambda trial: trial.kl.value, default=None)
    result = Calibration(
        target=target,
        unsteered=unsteered,
        trials=tuple(trials),
        chosen=chosen,
        judge=None if judge is None else judge_name(judge),
    )
    if chosen is not None:
        dose, _ = _dose(chosen.candidate, named[chosen.candidate])
        result._interventions = dose(chosen.strength)
    return result


def token_log_odds(
    towards: str | int | Sequence[str | int], away: str | int | Sequence[str | int] = ()
) -> Effect:
    """An effect: log P(towards) − log P(away) of the next token, for each prompt, float64.

    Args:
        towards: words that are one token each (with their leading space), or token ids.
        away: the same; without any, all other tokens.
    """

    def effect(model: LanguageModel, prompts: Sequence[str | Prompt]) -> np.ndarray:
        odds: np.ndarray = log_odds(model.logits(prompts), _ids(model, towards), _ids(model, away)).numpy()
        return odds

    return effect


class _Search:
    """Trials of the candidates of one calibration."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[str | Prompt],
        texts: Sequence[str | Prompt],
        measure: _Measure,
        target: float,
        upwards: bool,
        seed: int,
    ) -> None:
        self.model, self.prompts, self.texts = model, prompts, texts
        self.measure, self.target, self.upwards, self.seed = measure, target, upwards, seed

    def reaches(self, value: float) -> bool:
        return value >= self.target if self.upwards else value <= self.target

    def run(
        self,
        name: str,
        dose: Callable[[float], tuple[Edit, ...]],
        strengths: Sequence[float],
        refinements: int,
    ) -> list[Trial]:
        """The candidate at the given strengths and at those between which the target lies, from weak to strong."""
        effects = {strength: self._effect(dose(strength)) for strength in strengths if strength}
        first = next((s for s, (reached, _) in effects.items() if self.reaches(reached.value)), None)
        if first is not None:
            weak = max((s for s in effects if abs(s) < abs(first) and s * first > 0), key=abs, default=0.0)
            strong = first
            for _ in range(refinements):
                middle = (weak + strong) / 2
                effects[middle] = self._effect(dose(middle))
                weak, strong = (weak, middle) if self.reaches(effects[middle][0].value) else (middle, strong)
        ordered = sorted(effects, key=abs)
        prices = side_effects(self.model, self.texts, {str(s): dose(s) for s in ordered}, seed=self.seed)
        return [
            Trial(
                candidate=name, strength=s, effect=effects[s][0], judged=effects[s][1], kl=prices[str(s)].kl
            )
            for s in ordered
        ]

    def _effect(self, edits: Sequence[Edit]) -> tuple[Estimate, JudgeAgreement | None]:
        with self.model.steering(*edits):
            return self.measure(self.model, self.prompts)


def _measure(
    effect: Effect | None,
    judge: RefusalJudge | None,
    max_new_tokens: int,
    groups: Sequence[Hashable] | None,
    seed: int,
) -> _Measure:
    """The effect with its interval; of a judge also how far the phrases agree with it."""
    if (effect is None) == (judge is None):
        raise SteeringError(
            "Calibrating measures one thing; give an effect (a function), or a judge of answers."
        )
    if effect is not None:
        if not callable(effect):
            raise SteeringError(
                f"The effect is a function of (model, prompts), for example token_log_odds(' yes', ' no'), not "
                f"{effect!r}."
            )
        own = effect
        return lambda model, prompts: (_estimate(own(model, prompts), groups, seed), None)
    assert judge is not None
    asked = asked_once(judge)

    def judged(
        model: LanguageModel, prompts: Sequence[str | Prompt]
    ) -> tuple[Estimate, JudgeAgreement | None]:
        given = [as_prompt(prompt) for prompt in model.as_prompts(prompts)]
        written = model.generate(given, max_new_tokens=max_new_tokens)
        said = [answer_in(model, *pair) for pair in zip(given, written, strict=True)]
        refused = by_judge(asked, [prompt.asked for prompt in given], said)
        agreement = agreement_of(refused, by_rule(refuses, said), _codes(groups))
        return agreement.judged, agreement

    return judged


def _estimate(values: Any, groups: Sequence[Hashable] | None, seed: int) -> Estimate:
    numbers = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if numbers.ndim > 1 or not np.isfinite(numbers).all():
        raise SteeringError(
            "The effect must be one finite number a prompt, or one number; check the function."
        )
    if numbers.ndim == 0:
        return Estimate(value=float(numbers))
    return bootstrap_mean(numbers, _codes(groups), seed=seed)


def _codes(groups: Sequence[Hashable] | None) -> list[int] | None:
    """Each prompt's group as a number."""
    number = {name: at for at, name in enumerate(dict.fromkeys(groups or ()))}
    return None if groups is None else [number[name] for name in groups]


def _dose(name: str, candidate: Intervention | Dose) -> tuple[Callable[[float], tuple[Edit, ...]], float]:
    """Interventions by strength, and the strength the candidate has by itself."""
    if isinstance(candidate, Intervention):
        own = getattr(candidate, "strength", None)
        if own is None:
            raise SteeringError(
                f"{name} is a {type(candidate).__name__}, which has no strength; give a function from a strength to it."
            )
        return lambda strength: (_with_strength(candidate, own, strength),), (
            1.0 if isinstance(own, Mapping) else float(own) or 1.0
        )
    make = candidate

    def dose(strength: float) -> tuple[Edit, ...]:
        edits = make(strength)
        return (edits,) if isinstance(edits, Edit) else tuple(edits)

    return dose, 1.0


def _with_strength(candidate: Intervention, own: Any, strength: float) -> Edit:
    """The intervention with this strength; strengths by layer are all multiplied with it."""
    if isinstance(own, Mapping):
        return candidate.times(strength)
    changes: dict[str, Any] = {"strength": strength}
    return replace(candidate, **changes)


def _ids(model: LanguageModel, words: str | int | Sequence[str | int]) -> list[int]:
    several = [words] if isinstance(words, str | int) else words
    return [word if isinstance(word, int) else model.token_id(word) for word in several]
