"""Word problems in two steps, of our own writing; numbers and names are drawn by a seed."""

from __future__ import annotations

import random

_NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Lena", "Marco")
#: Text with a, b and c, and how the answer follows from them.
_PROBLEMS = (
    ("{name} has {a} boxes with {b} pens in each and finds {c} more pens. How many pens is that?", "a*b+c"),
    ("{name} buys {a} apples and {b} pears and eats {c} of the fruits. How many are left?", "a+b-c"),
    ("A train has {a} cars with {b} people in each. {c} people get off. How many stay?", "a*b-c"),
    (
        "{name} reads {a} pages on Monday, {b} on Tuesday and {c} on Wednesday. How many pages is that?",
        "a+b+c",
    ),
    ("A shop sells {a} cakes in the morning and {b} times {c} cakes later. How many in all?", "a+b*c"),
    ("{name} saves {a} coins a week for {b} weeks and spends {c}. How many coins remain?", "a*b-c"),
    ("There are {a} rows of {b} chairs and {c} chairs at the wall. How many chairs are there?", "a*b+c"),
    ("{name} is {a} years old. Her aunt is {b} times as old plus {c} years. How old is her aunt?", "a*b+c"),
    ("A garden has {a} roses, {b} tulips and {c} lilies. How many flowers grow there?", "a+b+c"),
    ("{name} bakes {a} trays of {b} rolls and gives {c} away. How many rolls are left?", "a*b-c"),
    ("A bus starts with {a} riders, {b} get on and {c} get off. How many are on the bus?", "a+b-c"),
    (
        "{name} walks {a} miles every day for {b} days and then {c} more miles. How many miles is that?",
        "a*b+c",
    ),
)


def sums(n: int, seed: int) -> list[tuple[str, str]]:
    """So many different problems with their answers."""
    rng, found = random.Random(seed), dict[str, str]()
    while len(found) < n:
        text, rule = rng.choice(_PROBLEMS)
        a, b, c = rng.randint(4, 12), rng.randint(2, 9), rng.randint(1, 6)
        answer = {
            "a*b+c": a * b + c,
            "a+b-c": a + b - c,
            "a*b-c": a * b - c,
            "a+b+c": a + b + c,
            "a+b*c": a + b * c,
        }
        question = text.format(name=rng.choice(_NAMES), a=a, b=b, c=c)
        if answer[rule] > 0:
            found[question] = str(answer[rule])
    return list(found.items())
