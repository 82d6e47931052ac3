"""Things by name: studies, estimators, interventions, aligners, backends and exports register where they are defined.

A registry looks through one package and one group of entry points when it is first asked, so adding a thing is one
file, or one package of somebody else's. Nothing that runs keeps another list of names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Generic, Literal, TypeVar, cast, get_args

from steerlab.errors import RunError, SteerlabError, reason

Entry = TypeVar("Entry")
Defined = TypeVar("Defined")


class Registry(Generic[Entry]):
    """Entries by name, in the order of registration.

    Args:
        kind: what an entry is, for error sentences ("study").
        package: dotted name of the package whose modules register entries as they are imported.
        group: entry-point group of other people's modules, likewise.
        error: class of the error for an unknown name.
    """

    def __init__(
        self, kind: str, *, package: str, group: str = "", error: type[SteerlabError] = SteerlabError
    ) -> None:
        self._kind, self._package, self._group, self._error = kind, package, group, error
        self._entries: dict[str, Entry] = {}
        self._looked = self._looking = False

    def add(self, name: str, entry: Entry) -> None:
        """Register `entry`. Raises ValueError where another one has the name."""
        if self._entries.get(name, entry) != entry:
            raise ValueError(f"There are two of the {self._kind} {name!r}; give one of them another name.")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[Defined], Defined]:
        """Decorator form of `add`; what it decorates keeps its own type."""

        def _registered(entry: Defined) -> Defined:
            self.add(name, cast(Entry, entry))
            return entry

        return _registered

    def __getitem__(self, name: str) -> Entry:
        """The entry called `name`. Raises this registry's error, with the known names, for an unknown one."""
        if name not in self:
            raise self._error(f"There is no {self._kind} {name!r}; choose from {', '.join(map(str, self))}.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._look()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        self._look()
        return len(self._entries)

    def values(self) -> tuple[Entry, ...]:
        """Every entry."""
        self._look()
        return tuple(self._entries.values())

    def _look(self) -> None:
        """Import what registers entries, once. A package that is being imported looks no further.

        Private modules hold helpers, private packages may hold entries (each study is one).
        """
        if self._looked or self._looking:
            return
        self._looking = True
        try:
            for module in iter_modules(import_module(self._package).__path__):
                if module.ispkg or not module.name.startswith("_"):
                    import_module(f"{self._package}.{module.name}")
            if self._group:
                for point in entry_points(group=self._group):
                    self._take(point)
            self._looked = True
        finally:
            self._looking = False

    def _take(self, point: EntryPoint) -> None:
        """Import somebody else's module; one that fails is left out whole, with a warning that names it."""
        before = dict(self._entries)
        try:
            point.load()
        except Exception as error:
            self._entries = before
            warnings.warn(
                f"The {self._kind} of the entry point {point.name!r} ({point.value}) is left out, since it cannot "
                f"be imported: {type(error).__name__}: {reason(error)}; mend or uninstall it.",
                stacklevel=2,
            )


Size = Literal["quick", "full"]
Preset = Literal["corrected", "published"]


def check_options(
    whose: str, *, size: str = "quick", preset: str = "corrected", presets: Collection[str] = ("corrected",)
) -> None:
    """Raise SteerlabError with a sentence about `whose` ("The refusal study") where it has no such size or preset."""
    for what, given, known in (("size", size, get_args(Size)), ("preset", preset, presets)):
        if given not in known:
            raise SteerlabError(f"{whose} has no {what} {given!r}; choose from {', '.join(known)}.")


@dataclass(frozen=True)
class Study:
    """What is known of a study without importing it.

    Attributes:
        name: of its function in `steerlab.studies`, of its result and of its files.
        title: heading in the report.
        question: what it answers, in a sentence.
        reads: fields of `datasets.StudyData` that it takes.
        function: "module:function".
        result: "module:class".
        in_compare: whether it takes a pair (`pair, data, *, size, preset, seed`) and `steerlab compare` runs it.
        order: studies come in ascending order in runs and reports.
        needs: the field of `datasets.StudyData` without which there is nothing to study, "" for none: `compare` runs
            the study where that is given.
        stage: "module:function" of what it measures of one model by itself (`model, data, *, size, seed`, to a list of
            `readouts.quantities.Reading`), by which stages of training are compared; "" for nothing.
    """

    name: str
    title: str
    question: str
    reads: tuple[str, ...]
    function: str
    result: str
    in_compare: bool = True
    order: int = 100
    needs: str = ""
    stage: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"A study has a name of small letters, digits and _, not {self.name!r}.")

    def load(self) -> Callable[..., Any]:
        """Its function, imported now."""
        function: Callable[..., Any] = _named(self.function)
        return function

    def result_class(self) -> Any:
        """The class of its result, imported now."""
        return _named(self.result)

    def load_stage(self) -> Callable[..., Any] | None:
        """What it measures of one model, imported now; None for nothing."""
        stage: Callable[..., Any] | None = _named(self.stage) if self.stage else None
        return stage


#: Every study, this package's and those of the entry-point group `steerlab.studies`.
STUDIES: Registry[Study] = Registry(
    "study", package="steerlab.studies", group="steerlab.studies", error=RunError
)


#: Where each registry is, by the name of its things; looked up late, since rooms are expensive to import.
REGISTRIES = {
    "studies": "steerlab.registry:STUDIES",
    "estimators": "steerlab.directions:ESTIMATORS",
    "interventions": "steerlab.steering:INTERVENTIONS",
    "aligners": "steerlab.alignment:ALIGNERS",
    "backends": "steerlab.models.backends:BACKENDS",
    "exports": "steerlab.steering:EXPORTS",
    "monitors": "steerlab.monitoring:MONITORS",
}


def registry_of(things: str) -> Registry[Any]:
    """The registry of these things ("estimators"), its room imported now.

    Raises:
        KeyError: there is none.
    """
    registry: Registry[Any] = _named(REGISTRIES[things])
    return registry


def names_in_source(things: str) -> list[str]:
    """Names of these things ("estimators") that the package's own files register, read off their text.

    Nothing is imported, so names of other people's packages are not among them.
    """
    module, _, registry = REGISTRIES[things].partition(":")
    folder = Path(__file__).parent.joinpath(*module.split(".")[1:])
    registered = re.compile(rf'^@{registry}\.register\("([^"]+)"\)', re.MULTILINE)
    return sorted(
        name for file in folder.glob("*.py") for name in registered.findall(file.read_text("utf-8"))
    )


def register_study(study: Study) -> None:
    """Make a study known to runs, commands, reports and docs. Raises ValueError where its name is taken."""
    STUDIES.add(study.name, study)


def ordered_studies(*, in_compare: bool = False) -> list[Study]:
    """The registered studies in the order of runs and reports; only those that `compare` runs where asked."""
    studies = sorted(STUDIES.values(), key=lambda study: (study.order, study.name))
    return [study for study in studies if study.in_compare or not in_compare]


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
