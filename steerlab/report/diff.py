"""Two runs side by side: answers on common axes, the difference of the main numbers, figures in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlab.report.keys import marks, on_one_axis
from steerlab.report.manifest import model_names, moment
from steerlab.report.page import environment, packed_plotly, written
from steerlab.report.questions import question
from steerlab.results import STUDIES, StudyResult, study_title


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name, its results by study and its manifest."""

    name: str
    results: Mapping[str, StudyResult]
    manifest: Mapping[str, Any]


def write_diff(
    sides: tuple[Side, Side], differences: Sequence[tuple[str, str, str]], path: str | Path
) -> Path:
    """Write the page that sets two runs side by side to `path`, whole or not at all, and return the path.

    differences: (what, in A, in B) for all in which the runs' making differs. Raises RunError when the file cannot
    be written.
    """
    names = dict.fromkeys([*sides[0].results, *sides[1].results])
    studies = [_study(name, [side.results.get(name) for side in sides]) for name in names]
    page = (
        environment()
        .get_template("diff.html.jinja")
        .render(
            title=f"{sides[0].name} and {sides[1].name}",
            runs=[_run(letter, side) for letter, side in zip("AB", sides, strict=True)],
            studies=studies,
            differences=[list(row) for row in differences],
            plotly=packed_plotly() if any(study["pairs"] for study in studies) else None,
        )
    )
    return written(page, Path(path))


# -- private --


def _run(letter: str, side: Side) -> dict[str, str]:
    models = " → ".join(name for _, name in model_names(side.manifest))
    created = moment(str(side.manifest.get("created", "")))
    return {"letter": letter, "name": side.name, "models": models, "created": created}


def _study(name: str, results: Sequence[StudyResult | None]) -> dict[str, Any]:
    """Both results of a study, with key figures on one axis and figures paired by their key."""
    shown = [question(one, mark) if one else None for mark, one in zip(("a-", "b-"), results, strict=True)]
    keys = {at: figure for at, result in enumerate(results) if result and (figure := result.key_figure())}
    for at, figure in zip(keys, on_one_axis(list(keys.values())), strict=True):
        side = shown[at]
        if side is not None:
            side["key"] = marks(figure)
    return {
        "id": f"study-{name}",
        "title": study_title(name),
        "question": STUDIES[name].question if name in STUDIES else "",
        "sides": shown,
        "verdict": _verdict(results),
        "pairs": _pairs(shown),
    }


def _pairs(shown: Sequence[dict[str, Any] | None]) -> list[tuple[dict[str, Any] | None, ...]]:
    """The figures of both runs by key, in reading order; None where one run has none."""
    by_key = [
        {figure["key"]: figure for figure in (*side["figures"], *side["more_figures"])} if side else {}
        for side in shown
    ]
    return [tuple(of.get(key) for of in by_key) for key in dict.fromkeys([*by_key[0], *by_key[1]])]


def _verdict(results: Sequence[StudyResult | None]) -> str:
    """The two main numbers and whether their intervals meet; "" where they are not of the same thing."""
    a, b = (result.headline if result else None for result in results)
    if a is None or b is None or a.what != b.what:
        return ""
    both = f"{a.what[:1].upper()}{a.what[1:]}: A {a.value}; B {b.value}"
    if not (a.value.has_interval and b.value.has_interval):
        return f"{both}."
    meet = a.value.low <= b.value.high and b.value.low <= a.value.high
    return f"{both}. The intervals {'overlap' if meet else 'do not overlap'}."
