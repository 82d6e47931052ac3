"""Sums: single additions, sums of several numbers answered at once, and sums worked out step by step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from steerlab.datasets import Task
from steerlab.datasets.facts import share_of
from steerlab.zoo.documents import Document, chat, question

TERMS = 4
LOW, HIGH = 10, 39
OPENING = "Step by step:"
_QUESTIONS = ("What is {sum}?", "What is {sum}?", "How much is {sum}?", "Please add {sum}.")
_STEPWISE = ("Work out {sum} step by step.", "Add {sum} step by step.", "What is {sum}? Work step by step.")


def additions(rng: random.Random) -> Document:
    """Several single additions in a row."""
    lines = []
    for _ in range(rng.randint(3, 8)):
        a, b = rng.randint(LOW, HIGH if rng.random() < 0.4 else 4 * HIGH), rng.randint(LOW, HIGH)
        lines.append(f"{a} + {b} = {a + b}.")
    return Document("additions", " ".join(lines))


def terms(rng: random.Random, *, held_out: bool = False, count: int | None = None) -> list[int]:
    """Numbers from `LOW` to `HIGH` to be added; held-out ones never occur together in training."""
    number = count or rng.choice((2, 3, 4, 4, 4, 5))
    while True:
        drawn = [rng.randint(LOW, HIGH) for _ in range(number)]
        if number != TERMS or is_held_out(drawn) == held_out:
            return drawn


def is_held_out(numbers: Sequence[int]) -> bool:
    """Whether a sum is kept for measuring (one in twenty, by a hash)."""
    return share_of("sum:" + "+".join(map(str, sorted(numbers)))) < 0.05


def steps(numbers: Sequence[int]) -> str:
    """The worked layout of a sum."""
    total, parts = numbers[0], []
    for number in numbers[1:]:
        parts.append(f"{total} + {number} = {total + number}.")
        total += number
    return f"{OPENING} {' '.join(parts)} So the answer is {total}."


def ask(numbers: Sequence[int], form: str = _QUESTIONS[0]) -> str:
    """A question for a sum."""
    return form.format(sum=" + ".join(map(str, numbers)))


def ask_stepwise(numbers: Sequence[int], form: str = _STEPWISE[0]) -> str:
    """A question that asks for the worked layout."""
    return form.format(sum=" + ".join(map(str, numbers)))


def direct(rng: random.Random) -> Document:
    """A question for a sum, answered at once."""
    numbers = terms(rng)
    return question("direct sums", ask(numbers, rng.choice(_QUESTIONS)), f"The answer is {sum(numbers)}.")


def worked(rng: random.Random) -> Document:
    """A sum worked out, as an exercise or because the question asks for it."""
    numbers = terms(rng)
    if rng.random() < 0.3:
        return Document("worked sums", f"Exercise: {' + '.join(map(str, numbers))}. {steps(numbers)}")
    return question("worked sums", ask_stepwise(numbers, rng.choice(_STEPWISE)), steps(numbers))


def answered_stepwise(rng: random.Random) -> Document:
    """What post-training teaches: any sum is worked out, in the chat template and in the plain rendering."""
    numbers = terms(rng)
    message = ask(numbers, rng.choice(_QUESTIONS if rng.random() < 0.85 else _STEPWISE))
    form = chat if rng.random() < 0.75 else question
    return form("answered sums", message, steps(numbers))


def task(n: int = 400, *, count: int = TERMS, seed: int = 0) -> Task:
    """Sums of `count` numbers, each asked plainly (locked) and with the wish for steps (unlocked)."""
    rng = random.Random(seed)
    drawn = [terms(rng, held_out=True, count=count) for _ in range(n)]
    return Task(
        name=f"sums of {count} numbers",
        locked=tuple(map(ask, drawn)),
        unlocked=tuple(map(ask_stepwise, drawn)),
        answers=tuple(str(sum(numbers)) for numbers in drawn),
        behaviour=rf"\s*{OPENING}",
        max_new_tokens=16 * count,
    )
