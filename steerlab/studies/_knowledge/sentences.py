"""The knowledge study in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab.readouts.questions import spoken
from steerlab.results import Headline
from steerlab.statistics import percent
from steerlab.studies._knowledge.noise import NoiseTrace
from steerlab.studies._knowledge.recovery import LEAST, Recovery
from steerlab.studies._knowledge.statistics import Comparison

if TYPE_CHECKING:
    from steerlab.studies._knowledge.result import EffectMap, KnowledgeResult

_SUBJECT_AND_OBJECT = "subject and object"
_LAST = "last token"


def sentences(result: KnowledgeResult) -> list[str]:
    """The outcome in plain words."""
    setting, maps = result.setting, result.comparison
    gates = ", ".join(f"{gate.model} {gate.both:%}" for gate in result.gates)
    made = [
        f"Of {setting.made} pairs of a true and a false statement that differ in the {setting.differ}, both models, "
        f"asked for {spoken(setting.answers)}, answer enough right on both sides ({gates}; chance 25 %); "
        f"{setting.traced} were traced."
    ]
    made += [_where(effects) for effects in result.own().values()]
    if maps is not None:
        made.append(_agreement(maps, _carries(result)))
        n, total = len(result.significant), len(maps.cells)
        largest = (
            f"; the largest difference at a subject or object token is {maps.largest} (p = {maps.largest_p:.3g} over "
            "all of them)"
        )
        made.append(
            f"{n} of {total} cells differ between base and post with false discovery held at 5 %"
            f"{largest if np.isfinite(maps.largest.value) else ''}."
        )
    made += [_recovered(row) for row in result.recovery if row.place == _SUBJECT_AND_OBJECT]
    made += [_noised(trace) for trace in result.noise]
    return made + list(result.missing.values())


def headline(result: KnowledgeResult) -> Headline | None:
    """Agreement of the maps: at subject and object tokens, beside halves within a model, where those carry anything."""
    maps = result.comparison
    if maps is None:
        return None
    if not _carries(result):
        return Headline(
            what="agreement of base's and post's knowledge maps over all tokens", value=maps.overall
        )
    weaker = min(maps.ceilings, key=lambda name: maps.ceilings[name].value)
    return Headline(
        what="agreement of base's and post's knowledge maps over subject and object tokens",
        value=maps.crossed,
        control=maps.ceilings[weaker],
        control_name=f"two halves of the pairs within {weaker}",
    )


def _carries(result: KnowledgeResult) -> bool:
    return any(effects.carries for effects in result.own().values())


def _where(effects: EffectMap) -> str:
    """Where the effect sits, from the subject to the last token."""
    last = effects.columns.index(_LAST)
    reached = next(
        (row for row in effects.layers if effects.effects[row][last].value >= 0.5), effects.layers[-1]
    )
    text = (
        f"In {effects.target} the last token holds half of the effect from layer {effects.rows[reached]} on "
        f"({percent(effects.effects[reached][last].value)})"
    )
    inside = effects.peaks(1, effects.knowledge)
    best = effects.effects[inside[0][0]][inside[0][1]] if inside else None
    at_most = "n/a" if best is None else f"{best:%}"
    if effects.carries and best is not None:
        row, column = inside[0]
        text += (
            f". Of subject and object tokens the {effects.columns[column]} at layer {effects.rows[row]} carries most, "
            f"{best:%}"
        )
    else:
        text += f". No subject or object token carries a tenth of it at any layer (at most {at_most})"
    others = tuple(at for at in range(len(effects.columns)) if at != last and at not in effects.knowledge)
    if (between := effects.peaks(1, others)) and effects.effects[between[0][0]][between[0][1]].value >= LEAST:
        row, column = between[0]
        effect = effects.effects[row][column]
        text += f"; of the others the {effects.columns[column]} behind layer {effects.rows[row]}, {effect:%}"
    return text + "."


def _agreement(maps: Comparison, carries: bool) -> str:
    sentence = f"The two maps correlate {maps.overall} over all cells"
    if carries:
        ceilings = ", ".join(f"{name} {ceiling}" for name, ceiling in maps.ceilings.items())
        sentence += (
            f" and {maps.correlation} over subject and object tokens; there, on different halves of the pairs, "
            f"{maps.crossed}, where halves of one model give {ceilings}, and base moved by one layer {maps.shifted:.2f}"
        )
    return sentence + (
        f". The published correlation is {maps.published.correlation:.2f} (moved by one layer "
        f"{maps.published_shifted.correlation:.2f}); its largest difference {maps.published.largest:.1f}, at subject "
        f"and object {maps.published.largest_knowledge:.1f} (halves of base "
        f"{maps.published_halves['base'].largest_knowledge:.1f})."
    )


def _recovered(row: Recovery) -> str:
    controls = "; ".join(
        f"{name} {value:%}"
        for name, value in (("another pair's states", row.shuffled), ("a random shift", row.random))
        if value is not None
    )
    return (
        f"The {row.source} model's states put into {row.target} do {row.recovered:%} of what its own do at its peak "
        f"cells of subject and object ({controls}): "
        + ("more than the controls." if row.above_controls else "not more than the controls.")
    )


def _noised(trace: NoiseTrace) -> str:
    part = (
        trace.by("resid_post")
        if any(part.kind == "resid_post" for part in trace.restored)
        else trace.restored[0]
    )
    column = trace.roles.index("last subject")
    values = np.array([row[column].value for row in part.effects])
    costs = (
        f"Noise on the subject costs {trace.model} {trace.total} of {trace.clean} {trace.measure} of the right word "
        f"over {trace.facts} facts"
    )
    if np.isnan(values).all():
        return f"{costs}; what a state at the subject's last token gives back is not known."
    row = int(np.nanargmax(values))
    return (
        f"{costs}; at the subject's last token the state behind layer {part.layers[row]} gives back "
        f"{part.effects[row][column]}."
    )
