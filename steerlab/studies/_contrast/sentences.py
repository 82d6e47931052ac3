"""The study of contrasts in plain sentences, and its main numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steerlab.results import Headline

if TYPE_CHECKING:
    from steerlab.studies._contrast.result import Outcome


def sentences(one: Outcome) -> list[str]:
    """A contrast in plain words."""
    known = one.identified
    made = [_reading(one), _not_identified(one)]
    if len(known) == 2:
        made += [*_cosine(one), *_transfer(one)]
    made += [_steered(one, model) for model in known if one.steered(model, model)]
    made += _changes(one)
    return [sentence for sentence in made if sentence] + list(dict.fromkeys(one.missing.values()))


def verdicts(contrasts: Sequence[Outcome]) -> list[str]:
    """Several contrasts in one sentence."""
    said = "; ".join(f"{one.name} is {one.verdict.replace('; ', ' and ')}" for one in contrasts)
    return [f"In short: {said}."] if len(contrasts) > 1 else []


def headline(one: Outcome) -> Headline:
    """The cosine beside that of shuffled labels where both models have a direction; else how one reads, or fails to."""
    if (at := one.at_best) is not None:
        return Headline(
            what=f"{one.name}: cosine of the two directions (layer {at.layer}, ceiling {at.ceiling.value:.2f})",
            value=at.cosine,
            control=at.shuffled,
            control_name="shuffled labels",
        )
    model = one.identified[-1] if one.identified else "post"
    return Headline(
        what=f"{one.name}: held-out texts told apart in {model}",
        value=one.own(model).accuracy,
        control=one.own(model).control,
        control_name="shuffled labels",
        share=True,
    )


# -- private, in the order they are called --


def _reading(one: Outcome) -> str:
    """How well the identified directions are read, beside a bag of words."""
    if not one.identified:
        return ""
    read = " and ".join(
        f"{one.own(model).accuracy:%} in {model} ({_layers(one.own(model).layers)})"
        for model in one.identified
    )
    enough = all(one.words.value >= one.own(model).accuracy.value for model in one.identified)
    words = f"a bag of words reads {one.words:%}" + (", so the words are enough" if enough else "")
    return f"{one.name}: the direction from {one.ends[1]} to {one.ends[0]} is read at {read}; {words}."


def _not_identified(one: Outcome) -> str:
    """In which models there is no direction, and by what numbers."""
    parts = [
        f"in {model} ({own.accuracy:%}, with shuffled labels {own.control:%})"
        for model in one.best
        if not (own := one.own(model)).above_chance
    ]
    words = "" if one.identified else f"; a bag of words reads {one.words:%}"
    return (
        f"{one.name}: the direction from {one.ends[1]} to {one.ends[0]} is not identified, accuracy at chance "
        f"{' and '.join(parts)}{words}."
        if parts
        else ""
    )


def _cosine(one: Outcome) -> list[str]:
    at = one.at_best
    if at is None:
        return []
    return [
        f"{one.name}: the two directions have cosine {at.cosine} at layer {at.layer}. Found on different halves of the "
        f"texts they have {at.crossed.value:.2f} of a ceiling of {at.ceiling.value:.2f}; random labels give "
        f"{at.shuffled.value:.2f}."
    ]


def _transfer(one: Outcome) -> list[str]:
    parts = [
        f"{direction}'s direction classifies {states}'s states at {cell.accuracy:%}, decided at {states}'s midpoint"
        for direction, states in (("base", "post"), ("post", "base"))
        if (cell := one.cell(direction, states)) is not None
    ]
    return [f"{one.name}: {', and '.join(parts)}."] if parts else []


def _layers(layers: Sequence[int]) -> str:
    known = sorted(set(layers))
    return f"layer {known[0]}" if len(known) == 1 else f"layers {', '.join(map(str, known))}"


def _steered(one: Outcome, model: str) -> str:
    """What the own direction does, beside random ones and the other model's, and its price."""
    own = one.steered(model, model)
    if own is None:
        return ""
    other = next((cell for cell in one.steering if cell.model == model and cell.direction != model), None)
    verdict = "beyond all of them" if own.above_control else "not beyond all of them"
    said = (
        f"{one.name}: adding the direction to {model} moves ln P({one.ends[0]}) - ln P({one.ends[1]}) by {own.effect} "
        f"nats a token; {own.control.n} random directions move it by {own.control.low:.2f} to {own.control.high:.2f}: "
        f"{verdict}."
    )
    if other is not None:
        said += f" {other.direction.capitalize()}'s direction moves it by {other.effect}."
    if own.kl is not None and own.random_kl is not None:
        random = f"random directions {own.random_kl.value:.2f}"
        said += f" The price is a KL of {own.kl} nats a token on plain text ({random})."
    return said


def _changes(one: Outcome) -> list[str]:
    changed = [
        f"{change.what} changes by {change.value} {change.unit}".rstrip()
        for change in one.changes
        if change.changed
    ]
    if changed:
        return [f"{one.name}: from base to post {' and '.join(changed)}."]
    same = " and ".join(change.what for change in one.changes)
    return [f"{one.name}: no change from base to post in {same}."] if same else []
