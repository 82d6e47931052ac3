"""The knowledge study in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steerlab.results import Headline
from steerlab.studies._knowledge.noise import NoiseTrace
from steerlab.studies._knowledge.recovery import LEAST, Recovery
from steerlab.studies._knowledge.statistics import Comparison

if TYPE_CHECKING:
    from steerlab.studies._knowledge.result import EffectMap, KnowledgeResult

_SUBJECT_AND_OBJECT = "subject and object"
_LAST = "last token"


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
        one.by("resid_post") if any(part.kind == "resid_post" for part in one.restored) else one.restored[0]
    )
    values = np.array([[cell.value for cell in row] for row in part.effects])
    column = one.roles.index("last subject")
    row = int(np.nanargmax(values[:, column]))
    return (
        f"Noise on the subject costs {one.model} {one.total} of {one.clean} {one.measure} of the right word over "
        f"{one.facts} facts; at the subject's last token the state behind layer {part.layers[row]} gives back "
        f"{part.effects[row][column]}."
    )
