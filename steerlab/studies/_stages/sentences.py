"""The study of stages in plain sentences, and its main number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steerlab.results import Headline

if TYPE_CHECKING:
    from steerlab.studies._stages.changes import Change, Trajectory


def sentences(trajectories: Sequence[Trajectory], labels: Sequence[str]) -> list[str]:
    """In short, then a sentence for each quantity that moved, then what did not."""
    moved = [one for one in trajectories if one.most is not None]
    drifted = [one for one in trajectories if one.most is None and one.whole is not None and one.whole.moved]
    still = [one.quantity.name for one in trajectories if one not in [*moved, *drifted] and _compared(one)]
    never = [one.quantity.name for one in trajectories if not _compared(one)]
    made = [
        *_beyond(trajectories),
        _short(trajectories, [*moved, *drifted], labels),
        *map(_said, moved),
        *map(_drift, drifted),
    ]
    if still:
        made.append(f"No step identified: {'; '.join(still)}.")
    if never:
        made.append(f"Not comparable between any two adjacent stages: {'; '.join(never)}.")
    return made


def headline(trajectories: Sequence[Trajectory]) -> Headline | None:
    """The step that moved a quantity most in units of noise, one that did more than the controls before the others."""
    moved = [
        (one, step)
        for one in trajectories
        if (step := one.most or (one.whole if one.whole is not None and one.whole.moved else None))
        is not None
    ]
    if not moved:
        return None
    one, step = max(
        moved, key=lambda pair: (pair[1].verdict == "more than everything else", abs(pair[1].in_noise))
    )
    known = step.controls if step.controls.n else None
    return Headline(
        what=f"{one.quantity.name}, {step.step}",
        value=step.value,
        control=known,
        control_name="contrasts that training did not aim at" if known else "",
        share=one.quantity.share,
    )


# -- private, in the order they are called --


def _beyond(trajectories: Sequence[Trajectory]) -> list[str]:
    """What moved by more than the contrasts that training did not aim at, and at which steps."""
    parts = []
    for one in trajectories:
        steps = [step.step for step in one.steps if step.verdict == "more than everything else"]
        if steps:
            parts.append(f"{one.quantity.name} ({' and '.join(steps)})")
    return [f"More than contrasts that training did not aim at moved: {'; '.join(parts)}."] if parts else []


def _compared(one: Trajectory) -> bool:
    return any(step.verdict != "not comparable" for step in one.steps)


def _short(trajectories: Sequence[Trajectory], moved: Sequence[Trajectory], labels: Sequence[str]) -> str:
    if not moved:
        return (
            f"From {labels[0]} to {labels[-1]} no step is identified in any of {len(trajectories)} quantities: "
            "what training changed is not identified."
        )
    parts = []
    for number, step in enumerate(trajectories[0].steps):
        found = Counter(one.steps[number].verdict for one in trajectories)
        kinds = {
            "more than contrasts that training did not aim at": found["more than everything else"],
            "with everything else": found["with everything else"],
            "less than everything else, or against it": found["less than everything else"]
            + found["against everything else"],
            "not told apart from what else moved": found["not told apart"],
            "without such a control": found["changed"],
        }
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        parts.append(f"{step.step} changed {said or 'none'}")
    return f"Of {len(trajectories)} quantities: {'; '.join(parts)}."


def _said(one: Trajectory) -> str:
    step = one.most
    assert step is not None  # called for those that moved
    name = one.quantity.name
    return f"{name[:1].upper()}{name[1:]}: {step.step} moved it most, by {_amount(one, step)}{_beside(one, step)}."


def _amount(one: Trajectory, step: Change) -> str:
    value = step.value
    sign = "+" if value.value > 0 else ""
    if one.quantity.share:
        return f"{sign}{value:%}"
    return f"{sign}{value}{f' {one.quantity.unit}' if one.quantity.unit else ''}"


def _drift(one: Trajectory) -> str:
    """A quantity that moved from first to last and at no single step."""
    whole = one.whole
    assert whole is not None  # called for those that have one
    name = one.quantity.name
    return (
        f"{name[:1].upper()}{name[1:]}: no single step is identified; from {whole.before} to {whole.after} it changed "
        f"by {_amount(one, whole)}{_beside(one, whole)}."
    )


def _beside(one: Trajectory, step: Change) -> str:
    if step.verdict == "changed":
        return " (there is no control for it)" if not step.controls.n else " (too few controls)"
    grew = "grew" if step.value.value > 0 else "fell"
    how = {
        "more than everything else": "more than everything else did",
        "with everything else": f"it {grew} with everything else",
        "less than everything else": f"it {grew} less than everything else",
        "against everything else": f"it {grew} against everything else",
    }.get(step.verdict, "this is not told apart from what else moved")
    said = f"{step.controls:%}" if one.quantity.share else str(step.controls)
    return f"; {how}: {step.controls.n} contrasts that training did not aim at moved by {said}"
