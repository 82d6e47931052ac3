"""What steering truth costs on plain text that has nothing to do with it.

The edit with the direction of all topics, in the window and strength chosen most often, at every token of plain text;
once added and once subtracted, because steering does both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from steerlab.readouts.questions import Plan
from steerlab.record import Record
from steerlab.statistics import Estimate, mean_and_extremes
from steerlab.steering.price import SideEffects, side_effects
from steerlab.studies._truthfulness.answers import Examinee
from steerlab.studies._truthfulness.steering import (
    Dose,
    Rule,
    Window,
    added,
    inside,
    random_vectors,
    vectors_of,
)

_RANDOM = "mean, least and greatest of {n} random directions of the same length"


class SteeringPrice(Record):
    """What an edit does to plain text, all tokens steered, beside random directions of the same length.

    random_kl, random_loss: mean, least and greatest over the random directions, nats a token.
    """

    direction: str
    model: str
    place: str
    layers: Window
    strength: float
    adding: SideEffects
    subtracting: SideEffects
    random_kl: Estimate
    random_loss: Estimate


def prices(
    examinees: Sequence[Examinee],
    plan: Plan,
    doses: Mapping[str, Sequence[Dose]],
    texts: Sequence[str],
    rule: Rule,
    *,
    crossed: bool,
) -> list[SteeringPrice]:
    """The price of every cell of the steering at each place's most frequent dose."""
    rows: list[SteeringPrice] = []
    known: dict[tuple[str, Dose], list[SteeringPrice]] = {}
    for place, chosen in doses.items():
        dose = Counter(chosen).most_common(1)[0][0]
        for target in examinees:
            key = (target.name, dose)
            if key not in known:
                sources = [source for source in examinees if crossed or source is target]
                known[key] = _price(target, sources, plan, place, dose, texts, rule)
            rows += [price.model_copy(update={"place": place}) for price in known[key]]
    return rows


# -- private --


def _price(
    target: Examinee,
    sources: Sequence[Examinee],
    plan: Plan,
    place: str,
    dose: Dose,
    texts: Sequence[str],
    rule: Rule,
) -> list[SteeringPrice]:
    groups = tuple(dict.fromkeys(plan.groups[plan.simple].tolist()))
    edits = {}
    for source in sources:
        vectors = inside(vectors_of(source, target, groups, rule), dose.window, rule)
        edits[f"{source.name} +"] = [added(target.model, vectors, dose, 1.0)]
        edits[f"{source.name} -"] = [added(target.model, vectors, dose, -1.0)]
    for number, vectors in enumerate(random_vectors(target, groups, rule, 0)):
        edits[f"random {number}"] = [added(target.model, inside(vectors, dose.window, rule), dose, 1.0)]
    measured = side_effects(
        target.model, texts, edits, seed=rule.seed, progress=f"price of steering in {target.name}"
    )
    random = [measured[f"random {number}"] for number in range(rule.randoms)]
    return [
        SteeringPrice(
            direction=source.name,
            model=target.name,
            place=place,
            layers=dose.window,
            strength=dose.strength,
            adding=measured[f"{source.name} +"],
            subtracting=measured[f"{source.name} -"],
            random_kl=mean_and_extremes([price.kl.value for price in random], _RANDOM),
            random_loss=mean_and_extremes(
                [price.loss_change.value for price in random if price.loss_change is not None], _RANDOM
            ),
        )
        for source in sources
    ]
