"""Tables and figures of the refusal study: rates and effects, chosen places, form, cosines by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.plots import Series
from steerlab.readouts.agreement import Agreement
from steerlab.results import Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from steerlab.studies._refusal.result import RefusalResult


def rates_table(result: RefusalResult) -> Table:
    columns = [
        "model",
        "prompts",
        "intervention",
        "direction",
        "refuses",
        "phrase at start",
        "phrase anywhere",
    ]
    columns += ["refusal log-odds", "gibberish", "change"]
    return Table(
        key="rates",
        title="Refusal rates on test prompts",
        columns=columns,
        rows=[
            [
                one.model,
                one.prompts,
                one.intervention,
                one.direction,
                one.refused,
                one.start,
                one.anywhere,
                one.log_odds,
                one.gibberish if result.setting.preset == "corrected" else None,
                one.effect,
            ]
            for one in result.outcomes
        ],
        note="Change against the unsteered model: under ablation of the share that refuses or writes gibberish, under "
        "addition of the share that refuses in language. A direction is added at the layer where it was chosen, as "
        "long as the dose in class gaps of the steered model there, and so are its random controls. "
        "Log-odds of the first token among: "
        + "; ".join(
            f"{model}: {', '.join(words) or 'none'}" for model, words in result.setting.refusal_tokens.items()
        )
        + (f". Added with {result.setting.strength:g} class gaps" if result.setting.strength else "")
        + (", at each of three points of the layer." if result.setting.preset == "published" else "."),
    )


def choice_table(result: RefusalResult) -> Table:
    columns = [
        "model",
        "template",
        "layer",
        "position",
        "token",
        "rule",
        "separation",
        "bypass",
        "induce",
        "KL",
    ]
    columns += ["unanswered", "gap"]
    return Table(
        key="choice",
        title="Where each model's refusal direction was read, chosen on validation prompts",
        columns=columns,
        rows=[
            [
                model,
                result.setting.templates[model],
                one.chosen.layer,
                one.chosen.position,
                repr(one.token),
                one.rule,
                one.chosen.separation,
                one.chosen.bypass,
                one.chosen.induce,
                one.chosen.kl,
                one.chosen.unanswered,
                one.chosen.gap,
            ]
            for model, one in result.choices.items()
        ],
        note="Single numbers of the selection, without intervals: they are not results. Position -1 is the last token.",
    )


def surface_table(result: RefusalResult) -> Table:
    form = result.surface
    return Table(
        key="surface",
        title="Can form alone tell the two kinds of prompts apart?",
        columns=["classifier of length and final punctuation", "chance", "words", "end in punctuation"],
        rows=[
            [
                form.accuracy,
                form.chance,
                " / ".join(f"{n:.1f}" for n in form.words),
                " / ".join(f"{share:.0%}" for share in form.ends_in_punctuation),
            ]
        ]
        if form
        else [],
        note=f"Held-out accuracy over five folds; words and punctuation of {result.setting.kinds[0]} / "
        f"{result.setting.kinds[1]} prompts.",
    )


def cosine_table(key: str, title: str, rows: tuple[Agreement, ...]) -> Table:
    return Table(
        key=key,
        title=title,
        columns=[
            "layer",
            "cosine",
            "across halves",
            "ceiling (same model)",
            "shuffled labels",
            "random below",
        ],
        rows=[[one.layer, one.cosine, one.crossed, one.ceiling, one.shuffled, one.random] for one in rows],
        note="Across halves: base found on one half of the prompts, post on the other. Ceiling: one model with itself "
        "across the same halves.",
    )


def rates_figure(result: RefusalResult) -> Figure:
    conditions = [
        ("none", "none"),
        *((kind, name) for kind in ("ablation", "addition") for name in ("base", "post")),
    ]
    conditions += [("ablation", "random"), ("addition", "random")]
    names = {("none", "none"): "unsteered"}
    names |= {(kind, name): f"{name} direction, {kind}" for kind, name in conditions[1:]}
    categories = [(model, kind) for model in result.setting.models for kind in ("harmful", "harmless")]

    def value(model: str, prompts: str, condition: tuple[str, str], end: str) -> float:
        kind, name = condition
        found = [
            one
            for one in result.outcomes
            if (one.model, one.prompts, one.intervention, one.direction) == (model, prompts, kind, name)
        ]
        return float(getattr(found[0].refused, end)) if found else float("nan")

    series = []
    for condition in conditions:
        ends = {
            end: [value(model, kind, condition, end) for model, kind in categories]
            for end in ("value", "low", "high")
        }
        if np.isfinite(ends["value"]).any():
            series.append(Series(names[condition], ends["value"], ends["low"], ends["high"]))
    return plots.bars(
        [f"{model}, {result.setting.kinds[0 if kind == 'harmful' else 1]}" for model, kind in categories],
        series,
        title="Who refuses what, and what a direction does about it",
        y_title="Share refused",
        y_range=(0, 1.03),
    )


def effects_figure(result: RefusalResult) -> Figure:
    models = list(result.setting.models)
    rows = [(kind, name) for kind in ("ablation", "addition") for name in (*models, "random")]
    found = [[result.outcome(model, kind, name) for model in models] for kind, name in rows]

    def cells(end: str) -> list[list[float]]:
        return [
            [float(getattr(one.effect, end)) if one and one.effect else float("nan") for one in row]
            for row in found
        ]

    return plots.heatmap(
        cells("value"),
        x=[f"in {model}" for model in models],
        y=[f"{kind}: {name} direction" for kind, name in rows],
        low=cells("low"),
        high=cells("high"),
        title="Change of refusal: ablation on harmful, addition on harmless prompts",
        colour_title="Change",
        diverging=True,
        limits=(-1.0, 1.0),
    )
