"""The tables of the knowledge study."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from steerlab.readouts.questions import spoken
from steerlab.results import Table
from steerlab.statistics import Estimate
from steerlab.studies._knowledge.noise import NoiseTrace, RestoredBy
from steerlab.studies._knowledge.statistics import Published

if TYPE_CHECKING:
    from steerlab.studies._knowledge.result import KnowledgeResult


def tables(result: KnowledgeResult) -> list[Table]:
    """Gate, topics, agreement, differing cells, recovery, noise, cost."""
    made = [_gate(result)]
    made += [_topics(result)] if result.topics else []
    made += [_agreement(result), _cells(result)] if result.comparison else []
    made += [_recovery(result)] if result.recovery else []
    made += [_noise(result)] if result.noise else []
    made += [_cost(result)] if result.spent else []
    return made


# -- private, in the order of the page --


def _gate(result: KnowledgeResult) -> Table:
    left_out = "".join(f" {reason}: {n} statements." for reason, n in result.setting.left_out.items())
    return Table.of(
        "gate",
        "Do the models know the answers?",
        result.gates,
        {
            "model": "model",
            "pairs": "pairs",
            "true prompts": "true_side",
            "false prompts": "false_side",
            "both right": "both",
            "pairs right": "right",
        },
        note=f"Pairs differ in the {result.setting.differ}; {spoken(result.setting.answers)} is asked for. "
        "A coin answers both sides right in a quarter of pairs; "
        f"only pairs that both models answer right are traced.{left_out}",
    )


def _topics(result: KnowledgeResult) -> Table:
    return Table.of(
        "topics",
        "Where each topic sits",
        result.topics,
        {
            "topic": "topic",
            "model": "model",
            "pairs": "pairs",
            "subject or object: layer": lambda row: row.knowledge and row.knowledge[0],
            "token": lambda row: row.knowledge and row.knowledge[1],
            "effect": lambda row: row.knowledge and row.knowledge[2],
            "other tokens: layer": lambda row: row.other and row.other[0],
            "token ": lambda row: row.other and row.other[1],
            "effect ": lambda row: row.other and row.other[2],
        },
        note="The largest mean normalised effect behind a block, the last token left out. Chosen and measured on the "
        "same pairs, so a largest one is too large by chance where pairs are few.",
    )


class _Between(NamedTuple):
    """How two maps agree: over all cells, over subject and object tokens, and as the paper measured it."""

    name: str
    overall: Estimate | None
    correlation: Estimate | float | None
    published: Published | None


def _agreement(result: KnowledgeResult) -> Table:
    assert result.comparison is not None
    maps = result.comparison
    rows = [
        _Between("base and post", maps.overall, maps.correlation, maps.published),
        _Between("base and post, different halves of the pairs", None, maps.crossed, None),
    ]
    for name, ceiling in maps.ceilings.items():
        rows.append(_Between(f"{name}: two halves of the pairs", None, ceiling, maps.published_halves[name]))
    rows.append(_Between("base moved by one layer", None, maps.shifted, maps.published_shifted))
    return Table.of(
        "agreement",
        "Agreement of the two maps",
        rows,
        {
            "between": "name",
            "correlation, all cells": "overall",
            "correlation, subject and object": "correlation",
            "published correlation": lambda row: row.published and row.published.correlation,
            "published largest": lambda row: row.published and row.published.largest,
            "published largest, subject and object": lambda row: (
                row.published and row.published.largest_knowledge
            ),
        },
        note="First: Pearson over mean normalised effects of subject and object tokens. Published: Pearson and largest "
        "difference of maps quantised between their own extremes, over all cells, which the last token decides.",
    )


def _cells(result: KnowledgeResult) -> Table:
    base, post = (result.own()[name] for name in ("base", "post"))
    strongest = sorted(result.significant, key=lambda cell: -abs(cell.difference.value))[:20]
    total = len(result.comparison.cells if result.comparison else ())
    shown = ", of which the twenty largest." if len(result.significant) > len(strongest) else "."
    return Table.of(
        "cells",
        "Cells in which post differs from base",
        strongest,
        {
            "layer": lambda cell: base.rows[cell.row],
            "token": lambda cell: base.columns[cell.column],
            "base": lambda cell: base.effects[cell.row][cell.column],
            "post": lambda cell: post.effects[cell.row][cell.column],
            "difference": "difference",
            "q": "q",
        },
        note=f"Normalised effects; {len(result.significant)} of {total} cells differ with false discovery held at "
        f"5 %{shown}",
    )


def _recovery(result: KnowledgeResult) -> Table:
    return Table.of(
        "recovery",
        "Effect of the other model's states over that of the model's own",
        result.recovery,
        {
            "source": "source",
            "target": "target",
            "at": "place",
            "cells": lambda row: len(row.cells),
            "recovered": "recovered",
            "another pair's states": "shuffled",
            "random shift": "random",
        },
        note="1: the source's states do all that the target's own do. Cells were chosen on one half of the pairs and "
        "measured on the other. Random shift: as far as by the patch, in a random direction.",
    )


class _Restored(NamedTuple):
    """A noise trace, one kind of state restored in it, and where that gives back most: row and column."""

    trace: NoiseTrace
    part: RestoredBy
    row: int
    column: int


def _restored(trace: NoiseTrace, part: RestoredBy) -> _Restored:
    values = np.array([[cell.value for cell in row] for row in part.effects])
    row, column = np.unravel_index(np.nanargmax(values), values.shape)
    return _Restored(trace, part, int(row), int(column))


def _noise(result: KnowledgeResult) -> Table:
    first = result.noise[0]
    return Table.of(
        "noise",
        "Facts restored after noise on their subject",
        [_restored(trace, part) for trace in result.noise for part in trace.restored],
        {
            "model": "trace.model",
            "facts": "trace.facts",
            "not known": "trace.unknown",
            "clean": "trace.clean",
            "with noise": "trace.corrupted",
            "total effect": "trace.total",
            "restored": "part.kind",
            "layers": "part.window",
            "largest at": lambda best: best.part.layers[best.row],
            "token": lambda best: best.trace.roles[best.column],
            "indirect effect": lambda best: best.part.effects[best.row][best.column],
        },
        note=f"{first.measure.capitalize()} of the right word, {first.copies} draws of noise a fact, of three standard "
        "deviations of the subjects' embeddings.",
    )


def _cost(result: KnowledgeResult) -> Table:
    return Table.of(
        "cost",
        "What the maps took",
        result.spent.items(),
        {
            "model": lambda row: row[0],
            "token-layers": lambda row: row[1].token_layers,
            "one pass a cell": lambda row: row[1].naive,
            "times fewer": lambda row: row[1].saving,
            "runs taken up by": lambda row: row[1].mode,
        },
    )
