"""The result of the refusal study: its numbers, and which of them lie beyond their controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from steerlab.judging import JudgeAgreement
from steerlab.readouts.agreement import Agreement
from steerlab.readouts.dominance import MeanShare
from steerlab.readouts.surface import Surface
from steerlab.record import Record
from steerlab.results import Page, StudyResult, Table
from steerlab.selection import Selection
from steerlab.statistics import Estimate, auroc
from steerlab.studies._refusal.argument import PAGE
from steerlab.studies._refusal.figures import figures
from steerlab.studies._refusal.place import Cell, Projection
from steerlab.studies._refusal.price import InterventionPrice
from steerlab.studies._refusal.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Intervention = Literal["none", "ablation", "addition"]


class Outcome(Record):
    """What a model does with one kind of test prompts under one intervention.

    direction: "none", "base", "post", "random", or "random at layer l" as the control of a direction added there.
    An ablation goes the way that was chosen for the model; "post, as published" is its own direction removed toward
    0 everywhere, beside another way. refused: by the judge where there is one, else by any phrase rule; start,
    anywhere: by the published ones. judged: judge and phrases on the same answers. unfinished: share that never
    ended its thinking block, where there are such. log_odds: of the first token beginning a refusal. gibberish:
    share of incoherent answers. effect: change against the unsteered model, under ablation of the share refused or
    gibberish, under addition of the share refused in language. draws: the effect of each random direction by
    itself.
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
    unfinished: Estimate | None = None
    judged: JudgeAgreement | None = None
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

    separates: whether a model refuses harmful prompts more often than harmless ones. choices: every candidate of
    each model with the chosen one. own, plain: cosines by layer, each model read in its own template at its chosen
    position, and both in the plain template at the last token. grid: cosines over layers and positions in both
    kinds of templates. points: test prompts along the directions. prices: what steering costs elsewhere. surface:
    whether form alone tells the requests apart. shared_means: by model how much of every token is one mean, by
    layer. missing: what was not run, and why. judge: the name of the judge that decided, where one did. agreements:
    that judge and the phrases on each model's unsteered test answers.
    """

    page: ClassVar[Page | None] = PAGE
    study: str = "refusal"
    setting: Setting
    separates: dict[str, bool]
    outcomes: tuple[Outcome, ...]
    choices: dict[str, Selection]
    own: tuple[Agreement, ...] = ()
    plain: tuple[Agreement, ...] = ()
    grid: tuple[Cell, ...] = ()
    points: tuple[Projection, ...] = ()
    prices: tuple[InterventionPrice, ...] = ()
    surface: Surface | None = None
    shared_means: Mapping[str, tuple[MeanShare, ...]] = Field(default_factory=dict)
    missing: dict[str, str]
    judge: str | None = None
    agreements: Mapping[str, JudgeAgreement] = Field(default_factory=dict)

    def outcome(self, model: str, intervention: str, direction: str, prompts: str = "") -> Outcome | None:
        """One row; without `prompts` the kind that the intervention is tested on."""
        kind = prompts or {"ablation": "harmful", "addition": "harmless"}[intervention]
        wanted = (model, kind, intervention, direction)
        rows: dict[tuple[str, ...], Outcome] = {
            (row.model, row.prompts, row.intervention, row.direction): row for row in reversed(self.outcomes)
        }
        return rows.get(wanted)

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
        """Refusal rates under every intervention, the chosen places, cosines, projections, prices and form."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Refusal rates, the 2x2 of effects, projections, prices and cosines."""
        return figures(self)

    def apart(self, model: str) -> Estimate | None:
        """AUROC of the test prompts along a model's own direction; None without projections."""
        points = [point for point in self.points if model in point.places]
        if not points:
            return None
        places, harmful = [point.places[model] for point in points], [point.harmful for point in points]
        return auroc(places, harmful, seed=self.setting.seed)

    def cells(self, template: str) -> list[Cell]:
        """The grid of one kind of template."""
        return [cell for cell in self.grid if cell.template == template]

    def cosines(self) -> list[tuple[str, str, tuple[Agreement, ...]]]:
        """Key, title and rows of both readings of the cosine by layer."""
        own = "Refusal directions of base and post, each in its own template"
        return [
            ("cosine_own", own, self.own),
            ("cosine_plain", "Refusal directions of base and post, both in the plain template", self.plain),
        ]
