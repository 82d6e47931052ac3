"""What a card says: one verdict, and a sentence for each thing that a person must know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from steerlab.statistics import Estimate, percent

if TYPE_CHECKING:
    from steerlab.card.effects import Baseline, DoseEffect
    from steerlab.card.result import SteeringCard
    from steerlab.card.utility import Measure

_MANY_TURNED = 0.1
"""A share of probes moved away whose interval lies above this is told in the verdict."""


def verdict(card: SteeringCard) -> str:
    """Works or not, at what strengths without measured harm, for whom not, and against asking; in a sentence."""
    one = card.effects.at()
    if one.effect.high < 0 and one.effect.value < one.random.low:
        return (
            f"Works the wrong way: {_to(card)} {nats(one.effect)}, below all random directions of the same length "
            f"({one.random.low:.2f} at least)."
        )
    if not one.identified:
        return (
            f"Not identified: {_to(card)} {nats(one.effect)}, and random directions of the same length reach "
            f"{one.random.high:.2f}."
        )
    return f"{'; '.join(_parts(card))}."


def sentences(card: SteeringCard) -> list[str]:
    """Everything else in the order of the page."""
    return [*_effect(card), *_asking(card), *_dose(card), *_harm(card), *_robust(card), *_predicted(card)]


def nats(value: Estimate) -> str:
    """A number of nats with its interval."""
    return f"{value:.2f} nats"


# -- private: the verdict --


def _parts(card: SteeringCard) -> Iterator[str]:
    one, safe = card.effects.at(), card.safe_doses
    works = f"Works ({nats(one.effect)} towards {card.task})"
    if safe and card.utility.harms(1.0):  # the effect told is that of a strength which does harm
        yield f"{works}, with harm at the strength given and none measured {_between(safe, 'it')} {_where(card)}"
    elif safe:
        yield f"{works}, no harm measured {_between(safe)} {_where(card)}"
    else:
        yield f"{works}, but harm is measured at every strength that works {_where(card)}"
    if one.wrong_way.low > _MANY_TURNED or one.wrong_way.value > 2 * _MANY_TURNED:
        yield f"it turns {one.wrong_way:%} of the prompts the wrong way"
    asked = card.asked
    if asked is not None and asked.steered_less.low <= 0:
        short = "no better than" if asked.steered_less.high >= 0 else "worse than"
        yield f"{short} asking for it in the prompt ({_signed(asked.steered_less)})"
    if failing := card.robustness.failing:
        yield f"the effect does not hold with {_listed(failing)}"


def _to(card: SteeringCard) -> str:
    return f"the effect towards {card.task} is"


def _between(doses: Sequence[float], what: str = "the strength given") -> str:
    if len(doses) == 1:
        return f"at {doses[0]:g} times {what}"
    return f"between {doses[0]:g} and {doses[-1]:g} times {what}"


def _where(card: SteeringCard) -> str:
    return f"at {_listed(card.sites)}" if len(card.sites) <= 3 else f"at {len(card.sites)} sites"


# -- private: the sentences --


def _effect(card: SteeringCard) -> Iterator[str]:
    one = card.effects.at()
    yield (
        f"At the strength given, steering moves the log-odds of {len(card.effects.probes)} probes by "
        f"{nats(one.effect)}; {one.random.n} random directions of the same length by {one.random.low:.2f} to "
        f"{one.random.high:.2f} (p = {card.effects.p:.2f})."
    )
    yield (
        f"It moves {one.wrong_way:%} of the probes the wrong way; random directions "
        f"{percent(one.random_wrong_way)}."
    )
    if card.effects.monotone is not None:
        yield f"In {card.effects.monotone:%} of the probes the effect rises with every dose up to that strength."


def _asking(card: SteeringCard) -> Iterator[str]:
    for baseline in card.effects.baselines:
        yield (
            f"{baseline.name[:1].upper()}{baseline.name[1:]}, the log-odds move by {nats(baseline.effect)}: "
            f"steering does {_more(baseline)}."
        )


def _more(baseline: Baseline) -> str:
    less = baseline.steered_less
    if less.low > 0:
        return f"more, by {nats(less)}"
    if less.high < 0:
        return f"less, by {_signed(less)}"
    return f"no more that could be shown ({_signed(less)})"


def _dose(card: SteeringCard) -> Iterator[str]:
    best = card.effects.falls_behind
    if best is not None:
        yield f"Beyond {best:g} times the strength the mean effect falls."
    one = card.effects.at()
    beside = "" if one.random_kl is None else f"; random directions {one.random_kl.value:.3f}"
    yield f"The price on plain text at the strength given is a KL of {one.kl:.3f} nats a token{beside}."


def _harm(card: SteeringCard) -> Iterator[str]:
    for dose in card.effects.doses:
        if harms := card.utility.harms(dose.dose):
            yield f"Harm at {dose.dose:g} times: {'; '.join(map(_told, harms))}."
    asked = [measure for measure in card.utility.measures if not measure.way[0].isdigit() and measure.harmful]
    if asked:
        yield f"Asking in the prompt does harm as well: {'; '.join(map(_told, asked))}."
    unseen = [measure for measure in card.utility.of(1.0) if measure.bad and not measure.harmful]
    if unseen:
        bounds = "; ".join(f"{measure.what} {_bound(measure)}" for measure in unseen)
        yield f"What could have been missed at the strength given: {bounds}."


def _told(measure: Measure) -> str:
    change = measure.change if measure.excess is None else measure.excess
    beyond = "" if measure.excess is None else " beyond asking"
    said = f"{change:.2f}" if measure.is_number else f"{change:%}"
    return f"{measure.what} {_plus(said)}{beyond}"


def _bound(measure: Measure) -> str:
    change = measure.change if measure.excess is None else measure.excess
    end = change.high if measure.bad == "more" else change.low
    return f"{end:+.2f}" if measure.is_number else f"{100 * end:+.0f} points"


def _robust(card: SteeringCard) -> Iterator[str]:
    holding = [form.name for form in card.robustness.forms if form.holds]
    if holding:
        yield f"The effect holds with {_listed(holding)}."
    for form in card.robustness.forms:
        if not form.holds:
            yield (
                f"With {form.name} it is {nats(form.effect)}, random directions reach {form.random.high:.2f}: it does "
                "not hold."
            )
    for name, why in card.robustness.missing.items():
        yield f"With {name} it was not asked: {why}"


def _predicted(card: SteeringCard) -> Iterator[str]:
    if card.predictor is None:
        yield "No predictor was measured."
        return
    for one in card.predictor.correlations:
        said = f"{one.value:.2f}" + ("" if one.established else ": not established")
        yield (
            f"Over {one.value.n} packaged contrasts the {one.reading} of the training pairs goes with the effect at "
            f"a rank correlation of {said}."
        )
    if card.reading is not None:
        yield (
            f"Here the agreement is {card.reading.agreement:.2f} and the separability {card.reading.separability:.1f} "
            f"at {card.reading.site}."
        )


def _signed(value: Estimate) -> str:
    return _plus(f"{value:.2f} nats") if value.value > 0 else f"{value:.2f} nats"


def _plus(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def dose_name(dose: DoseEffect) -> str:
    """A dose on an axis."""
    return f"{dose.dose:g}×"
