"""Schedules: how strongly an intervention acts at generated token j = 0, 1, ...; the prompt gets s(0).

    Constant(value)            s(j) = value
    Linear(start, stop, steps) from start to stop in `steps` steps, then stop
    Decay(rate, start, floor)  s(j) = floor + (start - floor) · rate^j
    PerStep(values)            s(j) = values[j], then the last value

Any function of j is a schedule; these can be written down as data as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steerlab.errors import SteeringError
from steerlab.models.gates import Schedule


@dataclass(frozen=True)
class Constant:
    """The same at every step."""

    value: float

    def __call__(self, step: int) -> float:
        """The value, at any step."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """From ``start`` at step 0 to ``stop`` at step ``steps``, and ``stop`` from there on."""

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SteeringError(
                f"A linear schedule over {self.steps} steps goes nowhere; give at least one step."
            )

    def __call__(self, step: int) -> float:
        """The value on the line."""
        return self.start + (self.stop - self.start) * min(step, self.steps) / self.steps


@dataclass(frozen=True)
class Decay:
    """Exponential: every step keeps ``rate`` of what lies above ``floor``; ``rate=0.5`` halves it."""

    rate: float
    start: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise SteeringError(f"A decay keeps a share between 0 and 1 of each step, not {self.rate}.")

    def __call__(self, step: int) -> float:
        """The value that is left."""
        return self.floor + (self.start - self.floor) * self.rate**step


@dataclass(frozen=True)
class PerStep:
    """One value a step; the last one holds from there on."""

    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.values:
            raise SteeringError("A list of no values is no schedule; give at least one.")
        object.__setattr__(self, "values", tuple(self.values))

    def __call__(self, step: int) -> float:
        """The step's value."""
        return self.values[min(step, len(self.values) - 1)]


_KINDS: dict[str, type[Constant] | type[Linear] | type[Decay] | type[PerStep]] = {
    "constant": Constant,
    "linear": Linear,
    "decay": Decay,
    "per_step": PerStep,
}


def schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    """A schedule as JSON data.

    Raises:
        SteeringError: for a function of the caller's.
    """
    for name, kind in _KINDS.items():
        if isinstance(schedule, kind):
            written = asdict(schedule)
            return {"kind": name} | {
                key: list(v) if isinstance(v, tuple) else v for key, v in written.items()
            }
    raise SteeringError(
        f"The schedule {schedule!r} is a function and cannot be written down; write its values as PerStep([...])."
    )


def schedule_from_dict(data: Mapping[str, Any]) -> Schedule:
    """The schedule that :func:`schedule_to_dict` wrote.

    Raises:
        SteeringError: for data that is none.
    """
    kind = _KINDS.get(data.get("kind", ""))
    try:
        if kind is None:
            raise TypeError("unknown kind")
        return kind(**{name: value for name, value in data.items() if name != "kind"})
    except TypeError as error:
        raise SteeringError(
            f"{dict(data)} is not a schedule ({error}); the kinds are {', '.join(_KINDS)}."
        ) from error
