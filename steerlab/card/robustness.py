"""Does the effect hold when the same probes are asked otherwise? Each form beside random directions on that form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steerlab.card.asking import Asked
from steerlab.card.effects import RANDOM, effect_of
from steerlab.models import LanguageModel
from steerlab.progress import track
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap_mean, mean_and_extremes
from steerlab.steering import Intervention


class Form(Record):
    """The effect in one form of asking, nats; random: of random directions of equal norm, on the same prompts."""

    name: str
    prompts: int
    effect: Estimate
    random: Estimate

    @property
    def holds(self) -> bool:
        """Whether the interval lies above zero and the value above every random direction's."""
        return self.effect.low > 0 and self.effect.value > self.random.high


class Robustness(Record):
    """Every form that could be asked, and why the others could not."""

    forms: list[Form]
    missing: dict[str, str]

    @property
    def failing(self) -> list[str]:
        """Forms in which the effect does not hold."""
        return [form.name for form in self.forms if not form.holds]


def robustness(
    model: LanguageModel,
    forms: Mapping[str, Asked],
    missing: Mapping[str, str],
    interventions: Sequence[Intervention],
    randoms: Sequence[Sequence[Intervention]],
    seed: int,
) -> Robustness:
    """The effect in each form."""
    return Robustness(
        forms=[
            _form(model, name, asked, interventions, randoms, seed)
            for name, asked in track(forms.items(), "asking otherwise", len(forms))
        ],
        missing=dict(missing),
    )


def _form(
    model: LanguageModel,
    name: str,
    asked: Asked,
    interventions: Sequence[Intervention],
    randoms: Sequence[Sequence[Intervention]],
    seed: int,
) -> Form:
    plain = asked.log_odds(model)
    own = effect_of(model, asked, interventions, plain)
    drawn = [float(effect_of(model, asked, draw, plain).mean()) for draw in randoms]
    return Form(
        name=name,
        prompts=len(plain),
        effect=bootstrap_mean(own, asked.clusters, seed=seed),
        random=mean_and_extremes(drawn, RANDOM),
    )
