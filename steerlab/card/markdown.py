"""A card as Markdown, for the page of a model on a hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Cell, Table
from steerlab.showing import text_of

if TYPE_CHECKING:
    from steerlab.card.result import SteeringCard

_SHOWN = ("gates", "doses", "baselines", "utility", "robustness", "harnesses")


def markdown(card: SteeringCard) -> str:
    """Verdict, sentences and tables; every probe and the predictor stand in the JSON."""
    by_key = {table.key: table for table in card.tables()}
    parts = [
        f"# Steering card: {_escaped(card.task)} in {_escaped(card.model)}",
        f"**{_escaped(card.verdict)}**",
        "\n".join(f"- {_escaped(one)}" for one in card.interventions),
        *(_table(by_key[key]) for key in _SHOWN if key in by_key),
        "## In words",
        "\n".join(f"- {_escaped(said)}" for said in card.summary[1:]),
        "\n".join(f"- {name}: {_escaped(str(value))}" for name, value in card.facts.items()),
        "Made by [steerlab](https://github.com/steerlab/steerlab); the method is in docs/methods/card.md.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- private --


def _table(table: Table) -> str:
    rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    head = "| " + " | ".join(map(_escaped, table.columns)) + " |"
    body = "\n".join([head, "|" + "---|" * len(table.columns), *rows])
    note = f"\n\n{_escaped(table.note)}" if table.note else ""
    return f"## {_escaped(table.title)}\n\n{body}{note}"


def _cell(cell: Cell) -> str:
    return _escaped(text_of(cell))


def _escaped(text: str) -> str:
    """Text as Markdown shows it: nothing of it opens a cell, a tag or a link."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
