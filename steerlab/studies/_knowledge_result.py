"""What the knowledge study hands on: gates, maps, their comparison, recovery and noise traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from steerlab import plots
from steerlab.plots import Series
from steerlab.statistics import Estimate, Number
from steerlab.studies.knowledge_recovery import LEAST, Recovery
from steerlab.studies.knowledge_statistics import CellDifference, Comparison
from steerlab.studies.noise_tracing import NoiseTrace
from steerlab.studies.result import Cell, Headline, StudyResult, Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SUBJECT_AND_OBJECT = "subject and object"
_LAST = "last token"


class Setting(BaseModel):
    """What was run.

    made: pairs whose prompts are aligned. traced: of them mapped. reused: statements in more than one pair. left_out:
    statements without a pair, by reason. shots: labelled lines before every statement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str
    seed: int
    preset: str
    models: dict[str, str]
    answers: tuple[str, str]
    differ: Literal["subject", "object"]
    shots: int
    columns: str
    made: int
    traced: int = 0
    reused: int
    left_out: dict[str, int]
    topics: tuple[str, ...]


class Gate(BaseModel):
    """Whether a model knows the answers: share right after true prompts, after false ones, and of pairs on both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    pairs: int
    right: int
    true_side: Estimate
    false_side: Estimate
    both: Estimate


class EffectMap(BaseModel):
    """A map of one target with states of one source.

    rows: layers (or heads). knowledge: columns of subject and object tokens. layers: rows other than the embedding's.
    raw: mean logit difference [row][column]. effects: mean normalised indirect effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    target: str
    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    knowledge: tuple[int, ...]
    layers: tuple[int, ...]
    raw: tuple[tuple[Number, ...], ...]
    effects: tuple[tuple[Estimate, ...], ...]

    @property
    def values(self) -> NDArray[np.float64]:
        """Mean effects [row, column]."""
        return np.array([[cell.value for cell in row] for row in self.effects])

    @property
    def carries(self) -> bool:
        """Whether a subject or object token carries a tenth of the effect behind some block."""
        top = self.peaks(1, self.knowledge)
        return bool(top) and self.effects[top[0][0]][top[0][1]].value >= LEAST

    def peaks(self, n: int = 1, among: tuple[int, ...] | None = None) -> list[tuple[int, int]]:
        """The cells with the largest effects behind a block, of some columns."""
        columns = range(len(self.columns)) if among is None else among
        cells = [
            (row, column)
            for row in self.layers
            for column in columns
            if np.isfinite(self.effects[row][column].value)
        ]
        return sorted(cells, key=lambda at: -self.effects[at[0]][at[1]].value)[:n]


class TopicPeak(BaseModel):
    """One topic's largest mean effect at a subject or object token behind a block, and at the other tokens but the
    last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    topic: str
    pairs: int
    knowledge: tuple[str, str, Estimate] | None
    other: tuple[str, str, Estimate] | None


class Spent(BaseModel):
    """Token-layers that a map took, what one whole pass a cell would take, and how runs were taken up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_layers: int
    naive: int
    saving: float
    mode: str


class KnowledgeResult(StudyResult):
    """Where two models hold what they know, and whether one's knowledge works in the other."""

    title: ClassVar[str] = "Where knowledge is stored"

    study: str = "knowledge"
    setting: Setting
    gates: tuple[Gate, ...]
    maps: tuple[EffectMap, ...] = ()
    topics: tuple[TopicPeak, ...] = ()
    comparison: Comparison | None = None
    recovery: tuple[Recovery, ...] = ()
    noise: tuple[NoiseTrace, ...] = ()
    spent: dict[str, Spent] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)

    def map(self, source: str, target: str, kind: str = "resid_post") -> EffectMap:
        """One map. Raises KeyError."""
        return {(one.source, one.target, one.kind): one for one in self.maps}[source, target, kind]

    def own(self, kind: str = "resid_post") -> dict[str, EffectMap]:
        """Each model's own map of one kind."""
        return {one.target: one for one in self.maps if one.source == one.target and one.kind == kind}

    @property
    def significant(self) -> tuple[CellDifference, ...]:
        """Cells in which the two maps differ, false discovery held at 5 %."""
        return (
            () if self.comparison is None else tuple(one for one in self.comparison.cells if one.significant)
        )

    def tables(self) -> list[Table]:
        """Gate, topics, agreement, differing cells, recovery, noise, cost."""
        made = [self._gate_table()]
        if self.topics:
            made.append(self._topics_table())
        if self.comparison is not None:
            made += [self._agreement_table(self.comparison), self._cells_table()]
        if self.recovery:
            made.append(self._recovery_table())
        if self.noise:
            made.append(self._noise_table())
        if self.spent:
            made.append(self._cost_table())
        return made

    def figures(self) -> dict[str, Figure]:
        """The maps with their difference, maps of other kinds, cross-model maps, recovery, noise."""
        made: dict[str, Figure] = {}
        for kind in dict.fromkeys(one.kind for one in self.maps):
            if self.own(kind):
                made["maps" if kind == "resid_post" else f"maps_{kind}"] = self._maps_figure(kind)
        crossed = {f"{one.source} into {one.target}": one for one in self.maps if one.source != one.target}
        if crossed:
            made["crossed"] = _side_by_side(crossed, "States of one model in the other's runs")
        if self.recovery:
            made["recovery"] = self._recovery_figure()
        for one in self.noise:
            made[f"noise_{one.model}"] = _noise_figure(one)
            if one.severed:
                made[f"severed_{one.model}"] = _severed_figure(one)
        return made

    # -- private --

    def _gate_table(self) -> Table:
        return Table(
            key="gate",
            title="Do the models know the answers?",
            columns=["model", "pairs", "true prompts", "false prompts", "both right", "pairs right"],
            rows=[
                [one.model, one.pairs, one.true_side, one.false_side, one.both, one.right]
                for one in self.gates
            ],
            note=f"Pairs differ in the {self.setting.differ}. A coin answers both sides right in a quarter of "
            f"pairs; only "
            "pairs that both models answer right are traced."
            + "".join(f" {reason}: {n} statements." for reason, n in self.setting.left_out.items()),
        )

    def _topics_table(self) -> Table:
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
                for one in self.topics
            ],
            note="The largest mean normalised effect behind a block, the last token left out. Chosen and "
            "measured on the "
            "same pairs, so a largest one is too large by chance where pairs are few.",
        )

    def _agreement_table(self, one: Comparison) -> Table:
        rows: list[list[Cell]] = [
            ["base and post", one.overall, one.correlation, *_three(one.published)],
            ["base and post, different halves of the pairs", None, one.crossed, None, None, None],
        ]
        for name, ceiling in one.ceilings.items():
            rows.append(
                [f"{name}: two halves of the pairs", None, ceiling, *_three(one.published_halves[name])]
            )
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

    def _cells_table(self) -> Table:
        names = self.own()["base"]
        chosen = sorted(self.significant, key=lambda one: -abs(one.difference.value))[:20]
        return Table(
            key="cells",
            title="Cells in which post differs from base",
            columns=["layer", "token", "base", "post", "difference", "q"],
            rows=[
                [
                    names.rows[one.row],
                    names.columns[one.column],
                    names.effects[one.row][one.column],
                    self.own()["post"].effects[one.row][one.column],
                    one.difference,
                    one.q,
                ]
                for one in chosen
            ],
            note=f"Normalised effects; {len(self.significant)} of "
            f"{len(self.comparison.cells if self.comparison else ())} "
            "cells differ with false discovery held at 5 %"
            + (", of which the twenty largest." if len(self.significant) > len(chosen) else "."),
        )

    def _recovery_table(self) -> Table:
        return Table(
            key="recovery",
            title="Effect of the other model's states over that of the model's own",
            columns=["source", "target", "at", "cells", "recovered", "another pair's states", "random shift"],
            rows=[
                [one.source, one.target, one.place, len(one.cells), one.recovered, one.shuffled, one.random]
                for one in self.recovery
            ],
            note="1: the source's states do all that the target's own do. Cells were chosen on one half of the "
            "pairs and "
            "measured on the other. Random shift: as far as by the patch, in a random direction.",
        )

    def _noise_table(self) -> Table:
        rows: list[list[Cell]] = []
        for one in self.noise:
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
            note=f"{self.noise[0].measure.capitalize()} of the right word, {self.noise[0].copies} draws of "
            f"noise a fact, of "
            "three standard deviations of the subjects' embeddings.",
        )

    def _cost_table(self) -> Table:
        return Table(
            key="cost",
            title="What the maps took",
            columns=["model", "token-layers", "one pass a cell", "times fewer", "runs taken up by"],
            rows=[
                [name, one.token_layers, one.naive, one.saving, one.mode] for name, one in self.spent.items()
            ],
        )

    def _maps_figure(self, kind: str) -> Figure:
        own = self.own(kind)
        title = f"Effect of a true prompt's {kind} in the false prompt's run"
        if kind != "resid_post" or self.comparison is None:
            return _side_by_side(own, title)
        names = own["base"]
        difference = np.full(names.values.shape, np.nan)
        for one in self.comparison.cells:
            difference[one.row, one.column] = one.difference.value
        return plots.heatmaps(
            {**{name: one.values for name, one in own.items()}, "post less base": difference},
            x=names.columns,
            y=names.rows,
            title="Effect of a true prompt's state in the false prompt's run",
            y_title="Layer",
            diverging=True,
            framed={"post less base": [(one.row, one.column) for one in self.significant]},
        )

    def _recovery_figure(self) -> Figure:
        rows = list(self.recovery)
        nothing = Estimate(value=float("nan"))
        return plots.bars(
            [f"{one.source} → {one.target}, {one.place}" for one in rows],
            [
                Series.of("the source's states", [one.recovered for one in rows], role="post"),
                Series.of("of another pair", [one.shuffled or nothing for one in rows], role="other"),
                Series.of("random shift", [one.random or nothing for one in rows], role="control"),
            ],
            title="Effect of the other model's states, as a share of the own",
            y_title="Recovered",
        )


def _three(one: object) -> list[Cell]:
    return [getattr(one, name) for name in ("correlation", "largest", "largest_knowledge")]


def _side_by_side(maps: dict[str, EffectMap], title: str) -> Figure:
    first = next(iter(maps.values()))
    alike = {
        name: one for name, one in maps.items() if (one.rows, one.columns) == (first.rows, first.columns)
    }
    return plots.heatmaps(
        {name: one.values for name, one in alike.items()},
        x=first.columns,
        y=first.rows,
        title=title,
        y_title="Head" if first.kind == "heads" else "Layer",
        diverging=True,
    )


def _noise_figure(one: NoiseTrace) -> Figure:
    maps = {
        part.kind if part.window == 1 else f"{part.kind}, {part.window} layers": np.array(
            [[cell.value for cell in row] for row in part.effects]
        )
        for part in one.restored
        if part.layers == one.restored[0].layers
    }
    # Short prompts have no tokens of some roles.
    seen = np.isfinite(np.stack(list(maps.values()))).any(axis=(0, 1))
    return plots.heatmaps(
        {name: values[:, seen] for name, values in maps.items()},
        x=[role for role, any_ in zip(one.roles, seen, strict=True) if any_],
        y=one.restored[0].layers,
        title=f"What restoring a clean state gives back ({one.model})",
        y_title="Layer",
        diverging=True,
    )


def _severed_figure(one: NoiseTrace) -> Figure:
    return plots.curves(
        [
            Series.of(name, list(curve), role="control" if name == "whole" else "other")
            for name, curve in one.severed.items()
        ],
        np.arange(len(next(iter(one.severed.values())))),
        title=f"Restored at the subject's last token, later paths severed ({one.model})",
        x_title="Layer",
        y_title="Indirect effect",
        zero_line=True,
    )


def sentences(result: KnowledgeResult) -> list[str]:
    """The outcome in plain words."""
    setting, one = result.setting, result.comparison
    gates = ", ".join(f"{gate.model} {gate.both}" for gate in result.gates)
    said = [
        f"Of {setting.made} pairs of a true and a false statement that differ in the {setting.differ}, both "
        f"models answer "
        f"enough right on both sides ({gates}; chance 0.25); {setting.traced} were traced."
    ]
    said += [_where(found) for found in result.own().values()]
    if one is not None:
        said.append(_agreement(one, _carries(result)))
        n, total = len(result.significant), len(one.cells)
        said.append(
            f"{n} of {total} cells differ between base and post with false discovery held at 5 %"
            + (f"; the largest difference at a subject or object token is {one.largest} (p = {one.largest_p:.3g} under "
               "exchanged models)." if np.isfinite(one.largest.value) else ".")
        )  # fmt: skip
    said += [_recovered(found) for found in result.recovery if found.place == _SUBJECT_AND_OBJECT]
    said += [_noised(found) for found in result.noise]
    return said + list(result.missing.values())


def headline(result: KnowledgeResult) -> Headline | None:
    """Agreement of the maps: at subject and object tokens, beside halves within a model, where those carry anything."""
    one = result.comparison
    if one is None:
        return None
    if not _carries(result):
        return Headline(
            what="agreement of base's and post's knowledge maps over all tokens", value=one.overall
        )
    weaker = min(one.ceilings, key=lambda name: one.ceilings[name].value)
    return Headline(
        what="agreement of base's and post's knowledge maps over subject and object tokens",
        value=one.crossed,
        control=one.ceilings[weaker],
        control_name=f"two halves of the pairs within {weaker}",
    )


def _carries(result: KnowledgeResult) -> bool:
    return any(found.carries for found in result.own().values())


def _where(one: EffectMap) -> str:
    """Where the effect sits, from the subject to the last token."""
    last = one.columns.index(_LAST)
    reached = next((row for row in one.layers if one.effects[row][last].value >= 0.5), one.layers[-1])
    text = (
        f"In {one.target} half of the whole effect has reached the last token behind layer {one.rows[reached]} "
        f"({one.effects[reached][last].value:.2f})"
    )
    inside = one.peaks(1, one.knowledge)
    best = one.effects[inside[0][0]][inside[0][1]] if inside else None
    if one.carries and best is not None:
        row, column = inside[0]
        text += (
            f"; of subject and object tokens the {one.columns[column]} behind layer {one.rows[row]} carries most, "
            f"{best}"
        )
    else:
        text += f"; no subject or object token carries a tenth behind any block (at most {best})"
    others = tuple(at for at in range(len(one.columns)) if at != last and at not in one.knowledge)
    if (between := one.peaks(1, others)) and one.effects[between[0][0]][between[0][1]].value >= LEAST:
        row, column = between[0]
        text += f"; of the others the {one.columns[column]} behind layer {one.rows[row]}, {one.effects[row][column]}"
    return text + "."


def _agreement(one: Comparison, carries: bool) -> str:
    said = f"The two maps correlate {one.overall} over all cells"
    if carries:
        ceilings = ", ".join(f"{name} {ceiling}" for name, ceiling in one.ceilings.items())
        said += (
            f" and {one.correlation} over subject and object tokens; there, on different halves of the pairs, "
            f"{one.crossed}, where halves of one model give {ceilings}, and base moved by one layer {one.shifted:.2f}"
        )
    return said + (
        f". The published correlation is {one.published.correlation:.2f} (moved by one layer "
        f"{one.published_shifted.correlation:.2f}); its largest difference {one.published.largest:.1f}, at subject and "
        f"object {one.published.largest_knowledge:.1f} (halves of base "
        f"{one.published_halves['base'].largest_knowledge:.1f})."
    )


def _recovered(one: Recovery) -> str:
    controls = "; ".join(
        f"{name} {value}"
        for name, value in (("another pair's states", one.shuffled), ("a random shift", one.random))
        if value is not None
    )
    return (
        f"The {one.source} model's states put into {one.target} do {one.recovered} of what its own do at its "
        f"peak cells "
        f"of subject and object ({controls}): "
        + ("more than the controls." if one.above_controls else "not more than the controls.")
    )


def _noised(one: NoiseTrace) -> str:
    part = (
        one.by("resid_post") if any(each.kind == "resid_post" for each in one.restored) else one.restored[0]
    )
    values = np.array([[cell.value for cell in row] for row in part.effects])
    column = one.roles.index("last subject")
    row = int(np.nanargmax(values[:, column]))
    return (
        f"Noise on the subject costs {one.model} {one.total} of {one.clean} {one.measure} of the right word over "
        f"{one.facts} facts; at the subject's last token the state behind layer {part.layers[row]} gives back "
        f"{part.effects[row][column]}."
    )
