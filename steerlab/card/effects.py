"""What steering does to every probe: by dose, beside random directions of equal norm, and beside asking for it.

    effect(prompt, dose) = [ln P(towards) - ln P(away)] steered - the same unsteered      nats

A mean hides prompts that go the other way (Tan et al. 2024, "Analyzing the generalization and reliability of steering
vectors"), so the share of them stands beside it, and whether a prompt's effect rises with every dose up to the one that
was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from steerlab.card.asking import Asked
from steerlab.card.doses import at_dose
from steerlab.models import LanguageModel
from steerlab.progress import track
from steerlab.record import Record
from steerlab.statistics import (
    Estimate,
    bootstrap_mean,
    but_for_rounding,
    mean_and_extremes,
    paired_difference,
    proportion,
)
from steerlab.steering import Intervention
from steerlab.steering.price import SideEffects, side_effects

RANDOM = "mean, least and greatest of {n} random directions of the same length"
Effect = Float[np.ndarray, " prompt"]


class DoseEffect(Record):
    """What a dose does.

    effect: nats, mean over the probes. wrong_way: share of probes that it moves away. random: effects of random
    directions of equal norm. random_wrong_way: the share that they move away, in the mean. kl, loss_change: on plain
    text, nats a token. random_kl: of random directions; None at the doses at which it was not measured.
    """

    dose: float
    effect: Estimate
    wrong_way: Estimate
    random: Estimate
    random_wrong_way: float
    kl: Estimate
    loss_change: Estimate | None
    random_kl: Estimate | None

    @property
    def identified(self) -> bool:
        """Whether the interval lies above zero and the value above every random direction's."""
        return self.effect.low > 0 and self.effect.value > self.random.high


class Baseline(Record):
    """What a prompt does without steering: its effect, the share moved away, and the steered effect less it."""

    name: str
    effect: Estimate
    wrong_way: Estimate
    steered_less: Estimate


class ProbeEffect(Record):
    """One probe: its text and continuations, unsteered log-odds, effects by dose, and of the wish in the prompt."""

    text: str
    towards: str
    away: str
    unsteered: float
    by_dose: list[float]
    asked: float


class Effects(Record):
    """Everything that is measured on the probes.

    monotone: share of probes whose effect rises with every dose up to the one given; None where there is only one.
    p: of the control at the dose given: (1 + random directions that do as much) / (1 + random directions).
    """

    doses: list[DoseEffect]
    baselines: list[Baseline]
    probes: list[ProbeEffect]
    monotone: Estimate | None
    p: float

    def at(self, dose: float = 1.0) -> DoseEffect:
        """What a dose does."""
        return next(one for one in self.doses if one.dose == dose)

    @property
    def falls_behind(self) -> float | None:
        """The dose that does most, where a stronger one does less by more than their intervals; else None."""
        best = max(self.doses, key=lambda one: one.effect.value)
        falls = any(one.dose > best.dose and one.effect.high < best.effect.low for one in self.doses)
        return best.dose if falls and best.identified else None


def effect_of(
    model: LanguageModel, asked: Asked, interventions: Sequence[Intervention], plain: Effect
) -> Effect:
    """The effect of interventions on each prompt, given its unsteered log-odds; nats."""
    with model.steering(*interventions):
        steered = asked.log_odds(model)
    change: Effect = but_for_rounding(steered, plain) - plain
    return change


@dataclass(frozen=True)
class Measuring:
    """What the effects are measured with: the probes, unsteered, and the random directions by dose."""

    model: LanguageModel
    asked: Asked
    interventions: Sequence[Intervention]
    randoms: Sequence[Sequence[Intervention]]
    few: int
    seed: int

    def effects(
        self,
        doses: Sequence[float],
        baselines: Mapping[str, Asked],
        texts: Sequence[str],
        probes: Sequence[tuple[str, str, str]],
    ) -> Effects:
        """By dose, of random directions, and of the baselines.

        Args:
            doses: with 1 among them, where all random directions are tried; a `few` of them at the others.
            baselines: other ways to ask, by name; the first is that with the wish.
            texts: on which the price is measured.
            probes: text, towards and away of each prompt, for the record.
        """
        plain = self.asked.log_odds(self.model)
        own = {
            dose: self._steered(at_dose(self.interventions, dose), plain)
            for dose in track(doses, "steering the probes", len(doses))
        }
        pairs = [(dose, draw) for dose in doses for draw in self._drawn(dose)]
        found: dict[float, list[Effect]] = {dose: [] for dose in doses}
        for dose, draw in track(pairs, "steering them by random directions", len(pairs)):
            found[dose].append(self._steered(at_dose(draw, dose), plain))
        asked = {name: way.log_odds(self.model) - plain for name, way in baselines.items()}
        prices = self._prices(doses, texts)
        means = np.array([effect.mean() for effect in found[1.0]])
        return Effects(
            doses=[self._dose(dose, own[dose], found[dose], prices) for dose in doses],
            baselines=[self._baseline(name, effect, own[1.0]) for name, effect in asked.items()],
            probes=[
                ProbeEffect(
                    text=text,
                    towards=towards,
                    away=away,
                    unsteered=float(plain[row]),
                    by_dose=[float(own[dose][row]) for dose in doses],
                    asked=float(next(iter(asked.values()))[row]),
                )
                for row, (text, towards, away) in enumerate(probes)
            ],
            monotone=self._monotone([own[dose] for dose in doses if dose <= 1]),
            p=float((1 + (means >= own[1.0].mean()).sum()) / (1 + len(means))),
        )

    # -- private --

    def _drawn(self, dose: float) -> Sequence[Sequence[Intervention]]:
        return self.randoms if dose == 1 else self.randoms[: self.few]

    def _steered(self, interventions: Sequence[Intervention], plain: Effect) -> Effect:
        return effect_of(self.model, self.asked, interventions, plain)

    def _prices(self, doses: Sequence[float], texts: Sequence[str]) -> dict[str, SideEffects]:
        edits: dict[str, Sequence[Intervention]] = {
            f"{dose:g}": at_dose(self.interventions, dose) for dose in doses
        }
        edits |= {f"random {number}": draw for number, draw in enumerate(self.randoms[: self.few])}
        return side_effects(self.model, texts, edits, seed=self.seed, progress="pricing on plain text")

    def _dose(
        self, dose: float, own: Effect, random: Sequence[Effect], prices: Mapping[str, SideEffects]
    ) -> DoseEffect:
        price = prices[f"{dose:g}"]
        of_random = [prices[name] for name in prices if name.startswith("random")]
        return DoseEffect(
            dose=dose,
            effect=self._mean(own),
            wrong_way=proportion(own < 0, clusters=self.asked.clusters),
            random=mean_and_extremes([float(effect.mean()) for effect in random], RANDOM),
            random_wrong_way=float(np.mean([(effect < 0).mean() for effect in random])),
            kl=price.kl,
            loss_change=price.loss_change,
            random_kl=mean_and_extremes([one.kl.value for one in of_random], RANDOM) if dose == 1 else None,
        )

    def _baseline(self, name: str, effect: Effect, own: Effect) -> Baseline:
        return Baseline(
            name=name,
            effect=self._mean(effect),
            wrong_way=proportion(effect < 0, clusters=self.asked.clusters),
            steered_less=paired_difference(own, effect, self.asked.clusters, seed=self.seed),
        )

    def _monotone(self, rising: Sequence[Effect]) -> Estimate | None:
        if len(rising) < 2:
            return None
        steps = np.diff(np.stack([np.zeros_like(rising[0]), *rising]), axis=0)
        rises = (steps >= 0).all(axis=0) & (rising[-1] > 0)  # what nothing moves does not rise
        return proportion(rises, clusters=self.asked.clusters)

    def _mean(self, effect: Effect) -> Estimate:
        return bootstrap_mean(effect, self.asked.clusters, seed=self.seed)
