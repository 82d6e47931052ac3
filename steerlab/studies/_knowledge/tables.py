"""The tables of the knowledge study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab.results import Cell, Table
from steerlab.statistics import Estimate
from steerlab.studies._knowledge.statistics import Comparison

if TYPE_CHECKING:
    from steerlab.studies._knowledge.result import KnowledgeResult


def tables(result: KnowledgeResult) -> list[Table]:
    """Gate, topics, agreement, differing cells, recovery, noise, cost."""
    made = [gate_table(result)]
    if result.topics:
        made.append(topics_table(result))
    if result.comparison is not None:
        made += [agreement_table(result, result.comparison), cells_table(result)]
    if result.recovery:
        made.append(recovery_table(result))
    if result.noise:
        made.append(noise_table(result))
    if result.spent:
        made.append(cost_table(result))
    return made


def gate_table(result: KnowledgeResult) -> Table:
    return Table(
        key="gate",
        title="Do the models know the answers?",
        columns=["model", "pairs", "true prompts", "false prompts", "both right", "pairs right"],
        rows=[
            [one.model, one.pairs, one.true_side, one.false_side, one.both, one.right] for one in result.gates
        ],
        note=f"Pairs differ in the {result.setting.differ}. A coin answers both sides right in a quarter of "
        f"pairs; only "
        "pairs that both models answer right are traced."
        + "".join(f" {reason}: {n} statements." for reason, n in result.setting.left_out.items()),
    )


def topics_table(result: KnowledgeResult) -> Table:
    def three(peak: tuple[str, str, Estimate] | None) -> list[Cell]:
        return list(peak) if peak else [None, None, None]

    return Table(
        key="topics",
        title="Where each topic sits",
        columns=[
            *("topic", "model", "pairs", "subject or object: layer", "token", "effect"),
            *("other tokens: layer", "token ", "effect "),
        ],
        rows=[
            [one.topic, one.model, one.pairs, *three(one.knowledge), *three(one.other)]
            for one in result.topics
        ],
        note="The largest mean normalised effect behind a block, the last token left out. Chosen and "
        "measured on the "
        "same pairs, so a largest one is too large by chance where pairs are few.",
    )


def agreement_table(result: KnowledgeResult, one: Comparison) -> Table:
    rows: list[list[Cell]] = [
        ["base and post", one.overall, one.correlation, *_three(one.published)],
        ["base and post, different halves of the pairs", None, one.crossed, None, None, None],
    ]
    for name, ceiling in one.ceilings.items():
        rows.append([f"{name}: two halves of the pairs", None, ceiling, *_three(one.published_halves[name])])
    rows.append(["base moved by one layer", None, one.shifted, *_three(one.published_shifted)])
    return Table(
        key="agreement",
        title="Agreement of the two maps",
        columns=[
            "between",
            "correlation, all cells",
            "correlation, subject and object",
            "published correlation",
            "published largest",
            "published largest, subject and object",
        ],
        rows=rows,
        note="First: Pearson over mean normalised effects of subject and object tokens. Published: Pearson "
        "and largest "
        "difference of maps quantised between their own extremes, over all cells, which the last token decides.",
    )


def cells_table(result: KnowledgeResult) -> Table:
    names = result.own()["base"]
    chosen = sorted(result.significant, key=lambda one: -abs(one.difference.value))[:20]
    return Table(
        key="cells",
        title="Cells in which post differs from base",
        columns=["layer", "token", "base", "post", "difference", "q"],
        rows=[
            [
                names.rows[one.row],
                names.columns[one.column],
                names.effects[one.row][one.column],
                result.own()["post"].effects[one.row][one.column],
                one.difference,
                one.q,
            ]
            for one in chosen
        ],
        note=f"Normalised effects; {len(result.significant)} of "
        f"{len(result.comparison.cells if result.comparison else ())} "
        "cells differ with false discovery held at 5 %"
        + (", of which the twenty largest." if len(result.significant) > len(chosen) else "."),
    )


def recovery_table(result: KnowledgeResult) -> Table:
    return Table(
        key="recovery",
        title="Effect of the other model's states over that of the model's own",
        columns=["source", "target", "at", "cells", "recovered", "another pair's states", "random shift"],
        rows=[
            [one.source, one.target, one.place, len(one.cells), one.recovered, one.shuffled, one.random]
            for one in result.recovery
        ],
        note="1: the source's states do all that the target's own do. Cells were chosen on one half of the "
        "pairs and "
        "measured on the other. Random shift: as far as by the patch, in a random direction.",
    )


def noise_table(result: KnowledgeResult) -> Table:
    rows: list[list[Cell]] = []
    for one in result.noise:
        for part in one.restored:
            values = np.array([[cell.value for cell in row] for row in part.effects])
            row, column = np.unravel_index(np.nanargmax(values), values.shape)
            rows.append(
                [
                    *(one.model, one.facts, one.unknown, one.clean, one.corrupted, one.total, part.kind),
                    *(part.window, part.layers[row], one.roles[column], part.effects[row][column]),
                ]
            )
    return Table(
        key="noise",
        title="Facts restored after noise on their subject",
        columns=[
            *("model", "facts", "not known", "clean", "with noise", "total effect", "restored"),
            *("layers", "largest at", "token", "indirect effect"),
        ],
        rows=rows,
        note=f"{result.noise[0].measure.capitalize()} of the right word, {result.noise[0].copies} draws of "
        f"noise a fact, of "
        "three standard deviations of the subjects' embeddings.",
    )


def cost_table(result: KnowledgeResult) -> Table:
    return Table(
        key="cost",
        title="What the maps took",
        columns=["model", "token-layers", "one pass a cell", "times fewer", "runs taken up by"],
        rows=[
            [name, one.token_layers, one.naive, one.saving, one.mode] for name, one in result.spent.items()
        ],
    )


def _three(one: object) -> list[Cell]:
    return [getattr(one, name) for name in ("correlation", "largest", "largest_knowledge")]
