"""Smaller amounts for the studies: what runs as printed or as a plain user starts it runs on fewer prompts.

A test of a finding takes the amounts a user gets. A test that a script, a page or a notebook runs through does not
need them: every line runs, every table and figure is made, on fewer rows.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest

from steerlab.card import making
from steerlab.studies._pair import LARGE
from steerlab.studies._stages import readings

_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "_truthfulness.study": (
        "AMOUNTS",
        {"per_topic": 24, "questions": 60, "shots": (0, 4), "steered_folds": 1, "rows": 8, "choice_rows": 6,
         "windows": 1, "strengths": (1.0, 2.0), "passages": 3},
    ),
    "_refusal.study": (
        "AMOUNTS",
        {"train": 32, "val": 12, "test": 16, "strengths": (1.0, 2.0), "randoms": 4, "random_share": 1 / 4,
         "texts": 4, "task": 12, "priced_randoms": 2},
    ),
    "_confidence.study": ("BUDGETS", {"texts": 16, "statements_a_topic": 16, "ablation_texts": 4, "randoms": 1}),
    "_branching.study": ("BUDGETS", {"prompts": 6, "samples": 4, "steps": 48}),
    "_branching.parts": (
        "PARTS",
        {"prompts": 4, "samples": 3, "steps": 12, "questions": 4, "rollouts": 3, "continuations": 2,
         "positions": (0, 4), "sum_steps": 48},
    ),
    "_contrast.study": ("_AMOUNTS", {"groups": 1, "randoms": 4, "passages": 2, "priced_randoms": 1}),
    "_difference.study": (
        "_AMOUNTS",
        {"texts": 10, "tokens": 12, "draws": 19, "flips": 39, "halvings": 1, "steered": 4, "randoms": 2, "forks": 4,
         "steps": 8, "continuations": 2},
    ),
    "_knowledge.study": ("AMOUNTS", {"pairs": 12, "facts": 6, "copies": 2}),
    "_transfer.study": (
        "_AMOUNTS",
        {"fit": 60, "dev": 6, "test": 6, "randoms": 2, "ranks": (1, 16), "rows": (16,), "samples": 2},
    ),
}  # fmt: skip

#: Of a steering card.
CARD = making.Amounts(randoms=4, few=2, texts=3, requests=6, new_tokens=12, facts=8)

#: What large models are asked less of still: what they run over and over, and what has no bound.
_LESS: dict[str, dict[str, Any]] = {
    "_refusal.study": {
        "train": 16,
        "val": 8,
        "test": 8,
        "strengths": (1.0,),
        "randoms": 2,
        "priced_randoms": 1,
        "texts": 2,
        "task": 4,
    },
    "_confidence.study": {"texts": 12, "statements_a_topic": 6},
    "_knowledge.study": {"asked": 24},
}


def use_smaller_amounts(patch: pytest.MonkeyPatch | None = None, *places: str) -> None:
    """Give size "quick" smaller amounts, of all studies or some; without `patch`, for the rest of this process."""
    patch = patch or pytest.MonkeyPatch()
    for place in places or _TABLES:
        table, changes = _TABLES[place]
        amounts = getattr(importlib.import_module(f"steerlab.studies.{place}"), table)
        quick = amounts["quick"]
        patch.setitem(amounts, "quick", type(quick)(**{**_fields(quick), **changes}))
    if not places:
        patch.setitem(readings.GROUPS, "quick", 8)
        patch.setitem(readings.A_TOPIC, "quick", 8)


def use_a_smaller_card(patch: pytest.MonkeyPatch | None = None) -> None:
    """Steering cards with fewer random directions and shorter answers."""
    (patch or pytest.MonkeyPatch()).setitem(making.AMOUNTS, "quick", CARD)


def ask_little_of_large_models(patch: pytest.MonkeyPatch | None = None) -> None:
    """The smaller amounts for models above 20 million parameters, whose passes take seconds; never more than theirs."""
    patch = patch or pytest.MonkeyPatch()
    for place, (table, changes) in _TABLES.items():
        amounts = getattr(importlib.import_module(f"steerlab.studies.{place}"), table)
        large = amounts.get(LARGE, amounts["quick"])
        own = _fields(large)
        less = {
            name: min(value, own[name]) if isinstance(own[name], int | float) else value
            for name, value in changes.items()
        }
        patch.setitem(amounts, LARGE, type(large)(**{**own, **less, **_LESS.get(place, {})}))


def use_twenty_random_directions(patch: pytest.MonkeyPatch) -> None:
    """As many as an effect of the refusal study has to beat: none of twenty reaches what has p <= 0.05."""
    amounts = importlib.import_module("steerlab.studies._refusal.study").AMOUNTS
    patch.setitem(amounts, "quick", replace(amounts["quick"], randoms=20))


def _fields(amount: Any) -> dict[str, Any]:
    """The fields of a dataclass or a model."""
    names = getattr(amount, "__dataclass_fields__", None) or type(amount).model_fields
    return {name: getattr(amount, name) for name in names}
