"""The result of the refusal study: its numbers, and how they read as sentences, tables and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from steerlab.readouts.agreement import Agreement, cosine_figure
from steerlab.readouts.surface import Surface
from steerlab.record import Record
from steerlab.results import StudyResult, Table
from steerlab.selection.select import Selection
from steerlab.statistics import Estimate, auroc
from steerlab.studies._refusal import tables as show
from steerlab.studies._refusal.place import (
    TEMPLATES,
    Cell,
    Projection,
    grid_figure,
    grid_table,
    projection_figure,
    projection_table,
)
from steerlab.studies._refusal.price import Price, price_figure, price_table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Intervention = Literal["none", "ablation", "addition"]


class Outcome(Record):
    """What a model does with one kind of test prompts under one intervention.

    direction: "none", "base", "post", "random", or "random at layer l" as the control of a direction
    added there. refused: by any phrase rule; start, anywhere: by the published ones.
    log_odds: of the first token beginning a refusal. gibberish: share of incoherent answers. effect: change against
    the unsteered model, under ablation of the share refused or gibberish, under addition of the share refused in
    language. draws: the effect of each random direction by itself.
    """

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
    draws: tuple[float, ...] = ()


class Setting(Record):
    """What was asked and how it was scored. The prompts' counts are for each kind."""

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

    def control(self, model: str, intervention: str, direction: str) -> Outcome | None:
        """The random directions beside one row: removed like it, or added at its layer."""
        name = "random"
        if intervention == "addition" and direction in self.choices:
            layer = self.choices[direction].chosen.layer
            if layer != self.choices[model].chosen.layer:
                name = f"random at layer {layer}"
        return self.outcome(model, intervention, name)

    def above_control(self, model: str, intervention: str, direction: str) -> bool:
        """Whether the effect lies beyond zero and none of twenty random directions reaches it (rank p <= 0.05)."""
        row, null = self.outcome(model, intervention, direction), self.control(model, intervention, direction)
        if row is None or null is None or row.effect is None or null.effect is None:
            return False
        if intervention == "ablation":
            reached = sum(draw <= row.effect.value for draw in null.draws)
            beyond = row.effect.high < 0
        else:
            reached = sum(draw >= row.effect.value for draw in null.draws)
            beyond = row.effect.low > 0
        return beyond and (1 + reached) / (1 + len(null.draws)) <= 0.05

    def tables(self) -> list[Table]:
        """Refusal rates under every intervention, the chosen places, and the cosines."""
        made = [show.rates_table(self), show.choice_table(self)]
        made += [one.table(f"selection_{model}") for model, one in self.choices.items()]
        made += [show.cosine_table(key, title, rows) for key, title, rows in self._cosines()]
        made += [grid_table(template, self._cells(template)) for template in TEMPLATES]
        made += [
            projection_table(self.points, self.setting.kinds, self.apart, self.setting.seed),
            price_table(self.prices),
            show.surface_table(self),
        ]
        return [table for table in made if table.rows]

    def figures(self) -> dict[str, Figure]:
        """Refusal rates, the 2x2 of effects, and cosines by layer."""
        made = {"rates": show.rates_figure(self)}
        if len({one.direction for one in self.outcomes} & {"base", "post"}) == 2:
            made["effects"] = show.effects_figure(self)
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

    def apart(self, model: str) -> Estimate | None:
        """AUROC of the test prompts along a model's own direction; None without projections."""
        rows = [one for one in self.points if model in one.places]
        if not rows:
            return None
        return auroc(
            [one.places[model] for one in rows], [one.harmful for one in rows], seed=self.setting.seed
        )

    def _cells(self, template: str) -> list[Cell]:
        return [one for one in self.grid if one.template == template]

    def _cosines(self) -> list[tuple[str, str, tuple[Agreement, ...]]]:
        own = "Refusal directions of base and post, each in its own template"
        return [
            ("cosine_own", own, self.own),
            ("cosine_plain", "Refusal directions of base and post, both in the plain template", self.plain),
        ]
