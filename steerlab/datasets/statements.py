"""The packaged statements, made from the table of facts by wordings of our own.

A fact gives four simple statements: affirmed and true, affirmed and false, negated and true, negated and false ("The
city of Lyon is not in Japan."). Two facts of a topic give four conjunctions (true of two true claims, false of one true
and one false in either order) and four disjunctions (false of two false claims, true of one). So in every topic half of
the statements of each form are true, label and polarity are balanced, and a subject or an object stands in as many true
as false ones. Every statement ends with a full stop, the position at which truth is usually read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import get_args

from steerlab.datasets.facts import FURTHER_TOPICS, TOPICS, Fact, facts, share_of
from steerlab.datasets.statement_set import Form, Statement, StatementSet
from steerlab.datasets.wording import LANGUAGES, joined, sentence
from steerlab.errors import DatasetError

Claim = tuple[Fact, str]

PACKAGED_TOPICS = (*TOPICS, *FURTHER_TOPICS)
NUMBER_FACTS = 36


def statements(
    topics: Sequence[str] | None = None, *, language: str = "en", form: Form = "simple"
) -> StatementSet:
    """The packaged statements of some topics (all of `PACKAGED_TOPICS` by default), in one language and one form.

    `language` is "en" or "de": the n-th German statement is the n-th English one translated. `form` is "simple",
    "conjunction" or "disjunction". Raises `DatasetError` for a topic, language or form that there is not.
    """
    wanted = PACKAGED_TOPICS if topics is None else (topics,) if isinstance(topics, str) else tuple(topics)
    _require("topic", wanted, PACKAGED_TOPICS)
    _require("language", (language,), LANGUAGES)
    _require("form", (form,), get_args(Form))
    return StatementSet(item for topic in wanted for item in _statements_of(topic, language, form))


def state(fact: Fact, *, object: str | None = None, negated: bool = False, language: str = "en") -> Statement:
    """The statement that a fact's subject stands (or, negated, does not stand) in the relation to `object`.

    Without `object` the fact's own is named. The label follows: true when exactly one of "names the true object" and
    "negated" holds.
    """
    named = fact.object if object is None else object
    text, spans = sentence(fact, named, negated=negated, language=language)
    return Statement(text, _holds(fact, named) != negated, fact.topic, -1 if negated else 1, spans)


# -- private, in the order they are called --


def _require(what: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise DatasetError(
                f"There are no packaged statements of {what} {name!r}; choose from {', '.join(known)}."
            )


@cache
def _statements_of(topic: str, language: str, form: Form) -> tuple[Statement, ...]:
    if form == "simple":
        return tuple(
            state(claim, object=named, negated=negated, language=language)
            for true, false in _claims(_packaged(topic))
            for claim, named in (true, false)
            for negated in (False, True)
        )
    return tuple(
        _join(first, second, both=form == "conjunction", language=language)
        for pair, other_pair in _couples(topic)
        for first, second in _combined(pair, other_pair, form)
    )


@cache
def _packaged(topic: str) -> tuple[Fact, ...]:
    """The facts that statements are made of: of the topics that the bundled models know, the reserved ones only."""
    if topic not in TOPICS:
        return facts(topic)
    reserved = tuple(fact for fact in facts(topic) if fact.reserved)
    if topic != "numbers":
        return reserved
    return tuple(
        sorted(reserved, key=lambda fact: share_of(f"packaged:{fact.subject}:{fact.object}"))[:NUMBER_FACTS]
    )


def _claims(of: Sequence[Fact], *, exchanged: bool = False) -> list[tuple[Claim, Claim]]:
    """For each fact a true and a false claim about its subject; of two numbers the false one names them turned."""
    if of[0].topic == "numbers":
        turned = [Fact("numbers", fact.object, fact.subject) for fact in of]
        return [((fact, fact.object), (back, back.object)) for fact, back in zip(of, turned, strict=True)]
    drawn = of[0].topic in TOPICS and not exchanged
    wrong = [_drawn(fact, of) for fact in of] if drawn else _exchanged(of)
    return [((fact, fact.object), (fact, other)) for fact, other in zip(of, wrong, strict=True)]


def _drawn(fact: Fact, of: Sequence[Fact]) -> str:
    """A wrong object drawn by a hash from the facts' objects: the draw on which the bundled models were measured."""
    others = [other.object for other in of if other.object != fact.object]
    return others[int(share_of(f"wrong:{fact.topic}:{fact.subject}") * len(others))]


def _exchanged(of: Sequence[Fact]) -> list[str]:
    """A wrong object for each fact, all together the right ones in another order: each as often wrong as right.

    No object may belong to more than half of the facts.
    """
    order = sorted(range(len(of)), key=lambda at: share_of(f"wrong:{of[at].topic}:{of[at].subject}"))
    wrong = [""] * len(of)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        wrong[here] = of[there].object
    for here, fact in enumerate(of):
        if wrong[here] == fact.object:
            # Whoever neither has this object nor is given it can take it and give its own in exchange.
            there = next(at for at in order if fact.object not in (wrong[at], of[at].object))
            wrong[here], wrong[there] = wrong[there], wrong[here]
    return wrong


def _couples(topic: str) -> list[tuple[tuple[Claim, Claim], tuple[Claim, Claim]]]:
    """The facts of a topic two by two, each in one couple at most, with a true and a false claim of either."""
    # Dealt out in the order of their objects, so that neither half has more than half of an object's facts.
    sorted_ = sorted(_packaged(topic), key=lambda fact: (fact.object, _rank(fact)))
    n = len(sorted_) // 2
    left, right = (sorted(sorted_[start : 2 * n : 2], key=_rank) for start in (0, 1))
    turn = next(turn for turn in range(n) if all(_apart(left[at], right[(at + turn) % n]) for at in range(n)))
    return list(
        zip(_claims(left, exchanged=True), _claims(right[turn:] + right[:turn], exchanged=True), strict=True)
    )


def _rank(fact: Fact) -> float:
    return share_of(f"couple:{fact.topic}:{fact.subject}:{fact.object}")


def _apart(first: Fact, second: Fact) -> bool:
    """Whether two facts are about different things: any two facts, but numbers only where none stands in both."""
    return first.topic != "numbers" or not {first.subject, first.object} & {second.subject, second.object}


def _combined(
    first: tuple[Claim, Claim], second: tuple[Claim, Claim], form: Form
) -> tuple[tuple[Claim, Claim], ...]:
    """Two true and two false joins of two facts: the same names, in each place equally often, on either side."""
    (true, false), (true_, false_) = first, second
    mixed = ((true, false_), (false_, true))
    if form == "conjunction":
        return ((true, true_), (true_, true), *mixed)
    return (*mixed, (false, false_), (false_, false))


def _join(first: Claim, second: Claim, *, both: bool, language: str) -> Statement:
    text, spans = joined(first, second, both=both, language=language)
    holds = (_holds(*first), _holds(*second))
    label = all(holds) if both else any(holds)
    form: Form = "conjunction" if both else "disjunction"
    return Statement(text, label, first[0].topic, spans=spans, form=form)


def _holds(fact: Fact, named: str) -> bool:
    return int(fact.subject) > int(named) if fact.topic == "numbers" else named == fact.object
