"""The tables of the study of contrasts; a row names its contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from steerlab.readouts.agreement import COLUMNS
from steerlab.results import Table, with_rows

if TYPE_CHECKING:
    from steerlab.studies._contrast.result import ContrastResult, Outcome


def tables(result: ContrastResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    return with_rows(
        _verdicts(result),
        _transfer(result),
        _accuracy(result),
        _cosine(result),
        _steering(result),
        _changes(result),
    )


# -- private, in the order of the page --


def _verdicts(result: ContrastResult) -> Table:
    return Table.of(
        "verdicts",
        "Contrasts",
        result.contrasts,
        {
            "contrast": "name",
            "verdict": "verdict",
            "from, to": lambda one: f"{one.ends[1]}, {one.ends[0]}",
            "texts": "texts",
            "groups": "groups",
            "base": lambda one: one.own("base").accuracy,
            "post": lambda one: one.own("post").accuracy,
            "bag of words": "words",
            "cosine": lambda one: one.at_best.cosine if one.at_best else None,
            "ceiling": lambda one: one.at_best.ceiling if one.at_best else None,
        },
        note="A matched pair is one group. base, post: share of held-out texts that the model's own direction calls "
        "right, at a layer chosen without them. Where a bag of words does as well, the words are enough. Cosine at "
        "post's best layer; its ceiling is one model with itself across halves of the texts.",
    )


def _transfer(result: ContrastResult) -> Table:
    return _of_each(
        result,
        "transfer",
        "Directions of one model on the states of the other, held-out texts",
        "cells",
        {
            "direction of": "direction",
            "states of": "states",
            "decided at the middle of": "midpoint",
            "direction at layer": lambda cell: _numbers(cell.layers),
            "states at layer": lambda cell: _numbers(cell.read_at),
            "accuracy": "accuracy",
            "shuffled labels": "control",
            "always one class": "chance",
        },
        note="Difference in means. Every fold's layer is chosen in its rest; the middle lies between the class means "
        "of that rest, in the model whose states are read or as the direction's own model has it.",
    )


def _accuracy(result: ContrastResult) -> Table:
    return _of_each(
        result,
        "accuracy",
        "Held-out accuracy by layer",
        "by_layer",
        {"model": "model", "layer": "layer", "accuracy": "accuracy", "shuffled labels": "control"},
        note="Each model's own direction, five folds, groups whole; the interval is clustered by group. The best of "
        "many layers is too high: what is reported above is chosen without the held-out texts.",
    )


def _cosine(result: ContrastResult) -> Table:
    return _of_each(
        result,
        "cosine",
        "Cosine of the two models' directions, by layer",
        "agreement",
        COLUMNS,
        note="Across halves: base found on one half of the groups, post on the other. Ceiling: one model with itself "
        "across the same halves. Shuffled labels: the same random labels in both models.",
    )


def _steering(result: ContrastResult) -> Table:
    return _of_each(
        result,
        "steering",
        "One class gap added: what it does to held-out texts, and its price",
        "steering",
        {
            "direction of": "direction",
            "model": "model",
            "layers": lambda cell: _numbers(cell.layers),
            "texts": "texts",
            "effect": "effect",
            "random directions": "control",
            "beyond all": lambda cell: "yes" if cell.above_control else "no",
            "KL on plain text": "kl",
            "KL, random": "random_kl",
        },
        note="Effect: change of ln P(positive text) - ln P(negative text), nats a token, from where a pair differs. "
        "Random directions have the same length: mean, least and greatest. KL in nats a token, every token steered.",
    )


def _changes(result: ContrastResult) -> Table:
    return _of_each(
        result,
        "changes",
        "Post minus base",
        "changes",
        {
            "what": "what",
            "unit": "unit",
            "change": "value",
            "changed": lambda row: "yes" if row.changed else "no change",
        },
        note="Each model with its own direction; paired by text, resampled by group.",
    )


def _of_each(
    result: ContrastResult,
    key: str,
    title: str,
    field: str,
    columns: Mapping[str, str | Callable[[Any], Any]],
    *,
    note: str,
) -> Table:
    """A table of the rows that every contrast has in a field, its name in front."""

    def of_row(cell: str | Callable[[Any], Any]) -> Callable[[tuple[Outcome, Any]], Any]:
        get = attrgetter(cell) if isinstance(cell, str) else cell
        return lambda pair: get(pair[1])

    rows = [(one, row) for one in result.contrasts for row in getattr(one, field)]
    named: dict[str, Callable[[tuple[Outcome, Any]], Any]] = {"contrast": lambda pair: pair[0].name}
    return Table.of(
        key, title, rows, {**named, **{head: of_row(cell) for head, cell in columns.items()}}, note=note
    )


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(set(values))))
