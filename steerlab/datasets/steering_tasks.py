"""Steering tasks: what a steering card asks a model, and what a person would write into the prompt instead.

    name = "happy"
    wish = "Write in a very happy mood."
    opened = true
    wording = "Carry on with this text. {text}"
    probes = [["My week has been", " fantastic", " awful"], ...]

A probe is a text with two ways in which it may go on, of which the first is the one that is steered towards. Where
`opened` is true the text is how the answer begins, otherwise it is what the user says and the two are openings of the
answer. The packaged tasks are files of this form in `data/steering`, named for the contrasts that they go with.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from steerlab.datasets.contrasts import names as contrast_names
from steerlab.datasets.readers.source import text_of
from steerlab.errors import DatasetError, kind_of

_FOLDER = Path(__file__).parent / "data" / "steering"
_FEWEST = 2


class Probe(NamedTuple):
    """A text, a continuation that the steering points to, and one on the other side."""

    text: str
    towards: str
    away: str


@dataclass(frozen=True)
class SteeringTask:
    """What a steering card asks.

    Attributes:
        name: of the task.
        wish: what a person would write into the prompt instead of steering.
        probes: at least two; (text, towards, away) each.
        opened: whether a probe's text is how the answer begins, and not what the user says.
        wording: the user's words around a probe's text.
        rewording: other words for the same request; "" where there are none.
        examples: texts with answers of the wished kind, which a person would show instead of steering.
        contrast: the packaged contrast that goes with it, from which the predictor reads; "" where there is none.
        other_probes: probes in another language.
        other_wording: the user's words in that language.
    """

    name: str
    wish: str
    probes: Any  # tuple[Probe, ...]; rows of three texts are made probes
    opened: bool = False
    wording: str = "{text}"
    rewording: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    contrast: str = ""
    other_probes: Any = ()
    other_wording: str = "{text}"

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise DatasetError(
                    f"The steering task {self.name!r}: {name} is {kind_of(value)}; make it {_CALLED[kind]}."
                )
        shown = _rows(self.examples, 2, f"{self.name}, examples")
        object.__setattr__(self, "examples", tuple((text, answer) for text, answer in shown))
        for name in ("probes", "other_probes"):
            rows = tuple(Probe(*row) for row in _rows(getattr(self, name), 3, f"{self.name}, {name}"))
            object.__setattr__(self, name, rows)
        if len(self.probes) < _FEWEST:
            raise DatasetError(
                f"The steering task {self.name!r} has {len(self.probes)} probes; give {_FEWEST} or more."
            )
        for probe in (*self.probes, *self.other_probes):
            if not probe.text.strip() or not probe.towards or not probe.away or probe.towards == probe.away:
                raise DatasetError(
                    f"A probe of the steering task {self.name!r} is {[*probe]!r}; give a text and two ways to go on "
                    "that differ."
                )
        for wording in (self.wording, self.other_wording, self.rewording or "{text}"):
            if wording.count("{text}") != 1:
                raise DatasetError(
                    f"A wording of the steering task {self.name!r} is {wording!r}; write {{text}} once, where a "
                    "probe's text stands."
                )
        if not self.wish.strip():
            raise DatasetError(f"The steering task {self.name!r} has no wish; write what one would ask for.")
        if self.contrast and self.contrast not in contrast_names():
            raise DatasetError(
                f"The steering task {self.name!r} goes with the contrast {self.contrast!r}; the packaged ones are "
                f"{', '.join(contrast_names())}."
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "The task") -> Self:
        """A task from plain data, as it stands in a file.

        Raises:
            DatasetError: a field that is missing, unknown or of another kind.
        """
        given = dict(data)
        other = given.pop("other_language", {})
        if not isinstance(other, Mapping):
            raise DatasetError(f"{where}: other_language is {kind_of(other)}; make it a table with probes.")
        other = dict(other)
        given["other_probes"] = other.pop("probes", ())
        if "wording" in other:
            given["other_wording"] = other.pop("wording")
        unknown = [*(given.keys() - {field.name for field in fields(cls)}), *other]
        missing = [name for name in ("name", "wish", "probes") if name not in given]
        if unknown or missing:
            said = f"has an unknown {sorted(unknown)[0]!r}" if unknown else f"lacks {missing[0]!r}"
            raise DatasetError(f"{where} {said}; a steering task holds name, wish and probes, see the docs.")
        for name in ("probes", "other_probes"):
            _rows(given[name], 3, f"{where}, {name}")  # the sentence then names the file
        given["examples"] = tuple(
            (text, answer) for text, answer in _rows(given.get("examples", ()), 2, f"{where}, examples")
        )
        for name, kind in _KINDS.items():
            if name in given and not isinstance(given[name], kind):
                raise DatasetError(f"{where}: {name} is {kind_of(given[name])}; make it {_CALLED[kind]}.")
        return cls(**given)


TaskGiven: TypeAlias = "SteeringTask | str | Path"
"""A task, the name of a packaged one, or a file."""
_CALLED = {str: "a text", bool: "true or false"}
_KINDS: dict[str, type] = {
    **dict.fromkeys(("name", "wish", "wording", "rewording", "contrast", "other_wording"), str),
    "opened": bool,
}


class Benign(NamedTuple):
    """A harmless request, and words of which a right answer holds one."""

    request: str
    kept: tuple[str, ...]

    def kept_in(self, answer: str) -> bool:
        """Whether the answer holds one of the words, in whatever case."""
        lowered = answer.lower()
        return any(word in lowered for word in self.kept)


def steering_task(given: TaskGiven) -> SteeringTask:
    """A task: itself, a packaged one by its name, or one in a TOML file.

    Raises:
        DatasetError: an unknown name, a file that cannot be read, or a task that is not sound.
    """
    if isinstance(given, SteeringTask):
        return given
    if isinstance(given, str) and given in steering_task_names():
        return _read(_FOLDER / f"{given}.toml")
    if isinstance(given, Path) or (isinstance(given, str) and Path(given).suffix == ".toml"):
        return _read(Path(given))
    raise DatasetError(
        f"There is no steering task {given!r}; the packaged ones are {', '.join(steering_task_names())}, and a task of "
        "your own is a .toml file."
    )


@cache
def steering_task_names() -> tuple[str, ...]:
    """The names of the packaged tasks."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


@cache
def benign_requests() -> tuple[Benign, ...]:
    """Harmless requests, each with words of which a right answer holds one. All of our own writing."""
    text = files("steerlab.datasets").joinpath("data/benign.csv").read_text(encoding="utf-8")
    rows = [line.rpartition(",") for line in text.splitlines()[1:]]
    return tuple(Benign(request, tuple(kept.split("|"))) for request, _, kept in rows)


# -- private --


def _read(file: Path) -> SteeringTask:
    try:
        data = tomllib.loads(text_of(file))
    except tomllib.TOMLDecodeError as error:
        raise DatasetError(f"{file}: no TOML ({error}).") from error
    return SteeringTask.from_dict(data, str(file))


def _rows(given: Any, width: int, where: str) -> list[list[str]]:
    rows = given if isinstance(given, Sequence) and not isinstance(given, str) else None
    if rows is None:
        raise DatasetError(f"{where}: {kind_of(given)}; make it a list of rows of {width} texts.")
    for number, row in enumerate(rows):
        whole = isinstance(row, Sequence) and not isinstance(row, str) and len(row) == width
        if not whole or not all(isinstance(text, str) for text in row):
            raise DatasetError(f"{where}, row {number}: not {width} texts.")
    return [list(row) for row in rows]
