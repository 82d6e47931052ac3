"""The result of the refusal study: its numbers, and how they read as sentences, tables and figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from steerlab import plots
from steerlab.plots import Series
from steerlab.statistics import Estimate
from steerlab.studies._contrast import Agreement
from steerlab.studies._refusal_place import (
    TEMPLATES,
    Cell,
    Projection,
    grid_figure,
    grid_table,
    projection_figure,
    projection_table,
)
from steerlab.studies._refusal_price import Price, price_figure, price_table
from steerlab.studies._surface import Surface
from steerlab.studies._truthfulness_figures import cosine_figure
from steerlab.studies.result import Headline, StudyResult, Table
from steerlab.studies.selection import Selection

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Intervention = Literal["none", "ablation", "addition"]


class Outcome(BaseModel):
    """What a model does with one kind of test prompts under one intervention.

    direction: "none", "base", "post" or "random". refused: by any phrase rule; start, anywhere: by the published ones.
    log_odds: of the first token beginning a refusal. gibberish: share of incoherent answers. effect: change against
    the unsteered model, under ablation of the share refused or gibberish, under addition of the share refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompts: Literal["harmful", "harmless"]
    intervention: Intervention
    direction: str
    refused: Estimate
    start: Estimate
    anywhere: Estimate
    log_odds: Estimate
    gibberish: Estimate
    effect: Estimate | None = None


class Setting(BaseModel):
    """What was asked and how it was scored. The prompts' counts are for each kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str
    seed: int
    models: dict[str, str]
    templates: dict[str, str]
    refusal_tokens: dict[str, tuple[str, ...]]
    train: int
    val: int
    test: int
    new_tokens: int
    kinds: tuple[str, str]
    preset: str = "corrected"
    strength: float | None = None


class RefusalResult(StudyResult):
    """Refusal in two models: how often they refuse, where the direction is, and what it does in either model.

    separates: whether a model refuses harmful prompts more often than harmless ones. choices: every candidate of each
    model with the chosen one. own, plain: cosines by layer, each model read in its own template at its chosen position,
    and both in the plain template at the last token. grid: cosines over layers and positions in both kinds of
    templates. points: test prompts along the directions. prices: what steering costs elsewhere. surface: whether form
    alone tells the requests apart. missing: what was not run, and why.
    """

    title: ClassVar[str] = "Refusal"

    study: str = "refusal"
    setting: Setting
    separates: dict[str, bool]
    outcomes: tuple[Outcome, ...]
    choices: dict[str, Selection]
    own: tuple[Agreement, ...] = ()
    plain: tuple[Agreement, ...] = ()
    grid: tuple[Cell, ...] = ()
    points: tuple[Projection, ...] = ()
    prices: tuple[Price, ...] = ()
    surface: Surface | None = None
    missing: dict[str, str]

    def outcome(self, model: str, intervention: str, direction: str, prompts: str = "") -> Outcome | None:
        """One row; without `prompts` the kind that the intervention is tested on."""
        kind = prompts or {"ablation": "harmful", "addition": "harmless"}[intervention]
        wanted = (model, kind, intervention, direction)
        return next(
            (
                one
                for one in self.outcomes
                if (one.model, one.prompts, one.intervention, one.direction) == wanted
            ),
            None,
        )

    def above_control(self, model: str, intervention: str, direction: str) -> bool:
        """Whether the effect lies beyond zero, and its distance to that of random directions does as well."""
        row, null = self.outcome(model, intervention, direction), self.outcome(model, intervention, "random")
        if row is None or null is None or row.effect is None or null.effect is None:
            return False
        beyond = difference(row.effect, null.effect)
        if intervention == "ablation":
            return max(row.effect.high, beyond.high) < 0
        return min(row.effect.low, beyond.low) > 0

    def tables(self) -> list[Table]:
        """Refusal rates under every intervention, the chosen places, and the cosines."""
        made = [_rates_table(self), _choice_table(self)]
        made += [one.table(f"selection_{model}") for model, one in self.choices.items()]
        made += [_cosine_table(key, title, rows) for key, title, rows in self._cosines()]
        made += [grid_table(template, self._cells(template)) for template in TEMPLATES]
        made += [
            projection_table(self.points, self.setting.kinds, self.setting.seed),
            price_table(self.prices),
            _surface_table(self),
        ]
        return [table for table in made if table.rows]

    def figures(self) -> dict[str, Figure]:
        """Refusal rates, the 2x2 of effects, and cosines by layer."""
        made = {"rates": _rates_figure(self)}
        if len({one.direction for one in self.outcomes} & {"base", "post"}) == 2:
            made["effects"] = _effects_figure(self)
        made |= {f"selection_{model}": one.plot() for model, one in self.choices.items() if one.scored}
        if self.points:
            made["projections"] = projection_figure(self.points, self.setting.kinds)
        if any(one.intervention != "none" for one in self.prices):
            made["side_effects"] = price_figure(self.prices)
        made |= {key: cosine_figure(rows, title) for key, title, rows in self._cosines() if rows}
        place = self.choices["post"].chosen if self.choices else None
        for template in TEMPLATES:
            if cells := self._cells(template):
                # the chosen position is one of the model's own template
                own = template == "own" and place is not None
                marked = (place.layer, place.position) if own and place else None
                made[f"grid_{template}"] = grid_figure(template, cells, marked)
        return made

    def _cells(self, template: str) -> list[Cell]:
        return [one for one in self.grid if one.template == template]

    def _cosines(self) -> list[tuple[str, str, tuple[Agreement, ...]]]:
        own = "Refusal directions of base and post, each in its own template"
        return [
            ("cosine_own", own, self.own),
            ("cosine_plain", "Refusal directions of base and post, both in the plain template", self.plain),
        ]


def difference(after: Estimate, before: Estimate) -> Estimate:
    """after - before, its interval made of the two intervals (Newcombe, 1998): honest at shares of 0 and 1."""
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    n = min(after.n, before.n)
    return Estimate(value=value, low=low, high=high, n=n, method="Newcombe")


def sentences(result: RefusalResult) -> list[str]:
    """The study in plain words."""
    harmful, harmless = result.setting.kinds
    said = []
    for model in result.setting.models:
        asked = f"{model.capitalize()} ({result.setting.templates[model]})"
        unsteered = [result.outcome(model, "none", "none", kind) for kind in ("harmful", "harmless")]
        refuses = [row.refused for row in unsteered if row is not None]
        verdict = "" if result.separates[model] else " — no difference to explain"
        said.append(
            f"{asked} refuses {refuses[0]} of {harmful} and {refuses[1]} of {harmless} prompts{verdict}."
        )
    if not result.separates["post"]:
        said.append(
            "Refusal is not identified: the post-trained model does not refuse one kind more than the other."
        )
        return said + list(result.missing.values())
    for model in result.setting.models:
        for direction in (model, *(other for other in result.setting.models if other != model)):
            said += [_effect_sentence(result, model, direction, kind) for kind in ("ablation", "addition")]
    said = [sentence for sentence in said if sentence]
    for name, rows in (
        ("each in its own template", result.own),
        ("both in the plain template", result.plain),
    ):
        at = next((row for row in rows if row.layer == result.choices["post"].chosen.layer), None)
        if at is not None:
            said.append(
                f"Cosine of the two refusal directions at layer {at.layer}, {name}: {at.cosine}; on different halves "
                f"of the prompts {at.crossed}, where one model with itself gives {at.ceiling}."
            )
    said += [_price_sentence(result, model) for model in result.setting.models]
    said = [sentence for sentence in said if sentence]
    if result.surface is not None and result.surface.above_chance:
        said.append(_surface_sentence(result))
    if result.status == "not identified":
        said.append(
            "Refusal is not identified: random directions do as much as the post-trained model's own."
        )
    return said + list(result.missing.values())


def headline(result: RefusalResult) -> Headline | None:
    """What ablating its own direction does to the post-trained model's refusal, beside random directions."""
    row, null = result.outcome("post", "ablation", "post"), result.outcome("post", "ablation", "random")
    if row is None or row.effect is None:
        asked = result.outcome("post", "none", "none", "harmful")
        control = result.outcome("post", "none", "none", "harmless")
        if asked is None or control is None:
            return None
        return Headline(
            what=f"refusal of {result.setting.kinds[0]} prompts, post-trained model",
            value=asked.refused,
            control=control.refused,
            control_name=f"{result.setting.kinds[1]} prompts",
        )
    return Headline(
        what=f"change of refusal of {result.setting.kinds[0]} prompts, own direction ablated in the post-trained model",
        value=row.effect,
        control=null.effect if null else None,
        control_name="random directions",
    )


# -- private --


def _effect_sentence(result: RefusalResult, model: str, direction: str, intervention: str) -> str:
    row, null = result.outcome(model, intervention, direction), result.outcome(model, intervention, "random")
    if row is None or null is None or row.effect is None:
        return ""
    plain = result.outcome(model, "none", "none", row.prompts)
    kind = result.setting.kinds[0 if row.prompts == "harmful" else 1]
    if intervention == "ablation" and not result.separates[model]:
        return ""  # a model that does not refuse has nothing to lose
    verb = "Removing" if intervention == "ablation" else "Adding"
    verdict = (
        "" if result.above_control(model, intervention, direction) else " — no more than random directions do"
    )
    broken = f", {row.gibberish.value:.0%} of the answers gibberish" if row.gibberish.value >= 0.1 else ""
    return (
        f"{verb} the {direction} direction in the {model} model changes its refusal of {kind} prompts from "
        f"{plain.refused.value if plain else float('nan'):.2f} to {row.refused} (random directions: {null.refused})"
        f"{broken}{verdict}."
    )


def _rates_table(result: RefusalResult) -> Table:
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
                one.gibberish,
                one.effect,
            ]
            for one in result.outcomes
        ],
        note="Change against the unsteered model: under ablation of the share that refuses or writes gibberish, under "
        "addition of the share that refuses. Random directions have the same length (addition) and are removed in the "
        "same places (ablation). Log-odds of the first token among: "
        + "; ".join(
            f"{model}: {', '.join(words) or 'none'}" for model, words in result.setting.refusal_tokens.items()
        )
        + (f". Added with {result.setting.strength:g} class gaps." if result.setting.strength else "."),
    )


def _choice_table(result: RefusalResult) -> Table:
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


def _price_sentence(result: RefusalResult, model: str) -> str:
    rows = [one for one in result.prices if one.model == model and one.kl is not None]

    def kl(kind: str, direction: str) -> Estimate | None:
        found = (one.kl for one in rows if (one.intervention, one.direction) == (kind, direction))
        return next(found, None)

    parts = [
        f"{verb} it changes plain text by {own} nats a token of KL (random directions: {null})"
        for verb, kind in (("removing", "ablation"), ("adding", "addition"))
        if (own := kl(kind, "own")) and (null := kl(kind, "random"))
    ]
    return f"Price of the {model} direction in the {model} model: {'; '.join(parts)}." if parts else ""


def _surface_sentence(result: RefusalResult) -> str:
    form = result.surface
    assert form is not None
    shares = [f"{share:.0%}" for share in form.ends_in_punctuation]
    return (
        f"Careful: length and final punctuation alone tell {result.setting.kinds[0]} from {result.setting.kinds[1]} "
        f"prompts in {form.accuracy} of cases (chance {form.chance:.2f}; {shares[0]} and {shares[1]} end in "
        "punctuation), so part of the direction may be one of form; match the two lists."
    )


def _surface_table(result: RefusalResult) -> Table:
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


def _cosine_table(key: str, title: str, rows: tuple[Agreement, ...]) -> Table:
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


def _rates_figure(result: RefusalResult) -> Figure:
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


def _effects_figure(result: RefusalResult) -> Figure:
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
