"""What every study hands on: a frozen result with sentences, tables, figures, headline and JSON form; the registry.

A study's package registers itself in `STUDIES` with a name, a title, what it reads and where its function and its
result class are; nothing of it is imported before it is run or read. Its result subclasses `StudyResult`, gives
`study` a fixed default (the registered name), adds its own numbers as fields and overrides `tables` and `figures`.
A result may say more for its page (`page`: captions, argument, key figure); without it the page takes its defaults.
JSON is strict: unknown keys are refused, NaN is null. A table whose key is a figure's key is that figure's table.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from steerlab.errors import RunError
from steerlab.record import Record
from steerlab.registry import STUDIES, Study, ordered_studies, register_study
from steerlab.showing import cut, html_figure, html_table, html_text
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "STUDIES",
    "Argument",
    "Headline",
    "KeyFigure",
    "KeyRow",
    "Page",
    "SkippedResult",
    "Study",
    "StudyResult",
    "Table",
    "ordered_studies",
    "register_study",
    "result_from_dict",
    "study_title",
    "with_rows",
]

SCHEMA_VERSION: Literal[1] = 1
_NAME = r"[a-z][a-z0-9_]*"
Status = Literal["done", "not identified", "skipped"]
Result = TypeVar("Result", bound="StudyResult")
Row = TypeVar("Row")


def _plain_cell(value: Any) -> Any:
    """NumPy scalars become Python's, NaN becomes an empty cell, so that JSON gives the same cell back."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


Cell = Annotated[bool | int | float | str | Estimate | None, BeforeValidator(_plain_cell)]


class Table(Record):
    """A titled table of plain cells and `Estimate`s; every row has one cell a column."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""

    @model_validator(mode="after")
    def _rows_fit(self) -> Table:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.key!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )
        return self

    @classmethod
    def of(
        cls,
        key: str,
        title: str,
        rows: Iterable[Row],
        columns: Mapping[str, str | Callable[[Row], Any]],
        *,
        note: str = "",
    ) -> Table:
        """A table with one row for each of `rows`.

        columns: by heading, what stands below it: a field of the row ("accuracy", "price.kl"), or a function of it.
        """
        cells = [attrgetter(cell) if isinstance(cell, str) else cell for cell in columns.values()]
        return cls(
            key=key,
            title=title,
            columns=list(columns),
            rows=[[cell(row) for cell in cells] for row in rows],
            note=note,
        )


def with_rows(*tables: Table) -> list[Table]:
    """Those of the tables that have a row: what a study measures nothing of is not shown."""
    return [table for table in tables if table.rows]


class Headline(Record):
    """The main number of a study in a few words (`what`), with its control and what the control is.

    share: whether it is a share, which people read in percent.
    """

    what: str
    value: Estimate
    control: Estimate | None = None
    control_name: str = ""
    share: bool = False

    def said(self, estimate: Estimate) -> str:
        """The value or the control as people read it."""
        return f"{estimate:%}" if self.share else str(estimate)


class KeyRow(Record):
    """One number of a key figure: whose it is, and the role that gives it its colour."""

    name: str
    value: Estimate
    role: Literal["base", "post", "control", "other"] = "other"


class KeyFigure(Record):
    """The one small figure of a study: a few numbers with their intervals on one axis.

    what: what the axis measures. limits: its ends; None for those of the numbers and zero. share: whether it measures
    shares, which people read in percent.
    """

    what: str
    rows: tuple[KeyRow, ...]
    limits: tuple[float, float] | None = None
    share: bool = False


class Argument(Record):
    """What a study says for itself, in the order of its page: one sentence each."""

    answer: str
    compared: str = ""
    sure: str = ""
    would_change: str = ""


_WOULD_CHANGE: dict[Status, str] = {
    "done": "A control that reaches the number above, or other data on which its interval holds the control's value.",
    "not identified": "More data or a stronger effect: an interval that its own control does not reach.",
    "skipped": "A pair of models for which the reason above does not hold.",
}


class Savable(Protocol):
    """Anything a study keeps in a file of its own (a `Direction`)."""

    def save(self, path: Path) -> None:
        """Write the file."""


@dataclass(frozen=True)
class Page:
    """What a kind of result says on its page beyond the defaults: `StudyResult.page`.

    captions: by figure. argument: made of the result and the default one. key_figure: None where it has no other than
    the default.
    """

    captions: Mapping[str, str]
    argument: Callable[[Any, Argument], Argument]
    key_figure: Callable[[Any], KeyFigure | None]


class StudyResult(Record):
    """One study's outcome: status, plain sentences, the main number, and what its class adds."""

    page: ClassVar[Page | None] = None

    schema_version: Literal[1] = SCHEMA_VERSION
    study: str
    status: Status = "done"
    summary: list[str]
    headline: Headline | None = None
    _artefacts: dict[str, Savable] = PrivateAttr(default_factory=dict)

    @field_validator("study")
    @classmethod
    def _is_a_name(cls, study: str) -> str:
        if not re.fullmatch(_NAME, study):
            raise ValueError(f"a study has a name of small letters, digits and _, not {study!r}")
        return study

    def headlines(self) -> list[Headline]:
        """The main number; a study of several things has one for each."""
        return [] if self.headline is None else [self.headline]

    def tables(self) -> list[Table]:
        """The numbers, each with its interval and its control."""
        return []

    def figures(self) -> dict[str, Figure]:
        """Interactive figures by key, in reading order."""
        return {}

    def captions(self) -> dict[str, str]:
        """Captions by figure, each readable alone. Figures with one stand on the page, the others are folded."""
        return {} if self.page is None else dict(self.page.captions)

    def key_figure(self) -> KeyFigure | None:
        """The one figure of the first screen; by default the headline and its control."""
        if self.page is not None and (own := self.page.key_figure(self)) is not None:
            return own
        if self.headline is None:
            return None
        rows = [KeyRow(name="found", value=self.headline.value)]
        if self.headline.control is not None:
            name = self.headline.control_name or "control"
            rows.append(KeyRow(name=name, value=self.headline.control, role="control"))
        return KeyFigure(what=self.headline.what, rows=tuple(rows), share=self.headline.share)

    def argument(self) -> Argument:
        """Answer, comparison, certainty, and what would change the answer; by default from summary and headline."""
        answer = self.summary[0] if self.summary else "No sentence was written for this study."
        if self.status == "not identified":  # the sentence that says what is not
            answer = next((said for said in self.summary if "not identified" in said), answer)
        default = Argument(
            answer=answer,
            compared=_compared(self.headline),
            sure=_sure(self.headline),
            would_change=_WOULD_CHANGE[self.status],
        )
        return default if self.page is None else self.page.argument(self, default)

    def plot(self) -> Figure:
        """The first figure. Raises RunError when the study has none."""
        figure = next(iter(self.figures().values()), None)
        if figure is None:
            raise RunError(
                f"The study {self.study!r} has no figure: its status is {self.status!r}; read its summary."
            )
        return figure

    def __repr__(self) -> str:
        said = f": {cut(self.summary[0])}" if self.summary else ""
        return f"{type(self).__name__}({self.study}, {self.status}{said})"

    def _repr_html_(self) -> str:
        title = html_text(f"{study_title(self.study)}: {self.status}")
        said = "".join(map(html_text, self.summary))
        figure = next(iter(self.figures().values()), None)
        drawn = "" if figure is None else html_figure(figure)
        table = next((html_table(table.title, table.columns, table.rows) for table in self.tables()), "")
        return title + said + drawn + table

    def artefacts(self) -> dict[str, Savable]:
        """Files that go with the result, by name; not part of its JSON, so none on a result that was read."""
        return dict(self._artefacts)

    def with_artefacts(self: Result, artefacts: Mapping[str, Savable]) -> Result:
        """The same result with files to keep."""
        copy = self.model_copy()
        copy._artefacts = dict(artefacts)
        return copy

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `result_from_dict` gives an equal result back."""
        fields: dict[str, Any] = json.loads(self.model_dump_json())
        return {"result": type(self).__name__, **fields}

    @classmethod
    def from_dict(cls: type[Result], fields: Mapping[str, Any]) -> Result:
        """The result written by `to_dict`. Raises RunError for another schema, class or damaged fields."""
        written = dict(fields)
        name = written.pop("result", cls.__name__)
        if name != cls.__name__:
            raise RunError(f"This is a {name}, not a {cls.__name__}; read it with result_from_dict.")
        if (version := written.get("schema_version")) != SCHEMA_VERSION:
            raise RunError(
                f"The result of {written.get('study')!r} has schema version {version}, but this steerlab reads "
                f"{SCHEMA_VERSION}; run the comparison again."
            )
        try:
            return cls.model_validate_json(json.dumps(written))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "fields"
            raise RunError(
                f"The stored result of {written.get('study')!r} does not fit at {where}: {first['msg']}; "
                "run the same comparison with --resume."
            ) from error


class SkippedResult(StudyResult):
    """A study that this pair of models cannot take; `reason` says why in a sentence."""

    status: Status = "skipped"
    reason: str
    summary: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _reason_is_the_summary(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "reason" in fields and not fields.get("summary"):
            return {**fields, "summary": [fields["reason"]]}
        return fields


def _compared(headline: Headline | None) -> str:
    if headline is None or headline.control is None:
        return ""
    found = f"{headline.what[:1].upper()}{headline.what[1:]}: {headline.said(headline.value)}"
    return f"{found}; {headline.control_name or 'the control'}: {headline.said(headline.control)}."


def _sure(headline: Headline | None) -> str:
    if headline is None:
        return ""
    value = headline.value
    over = f" over {value.n} units" if value.n else ""
    how = f" ({value.method})" if value.method else ""
    level = (
        f"{100 * value.level:.0f} % interval{over}{how}"
        if value.has_interval
        else "No interval could be made"
    )
    return f"{level}: {headline.said(value)}."


def study_title(name: str) -> str:
    """The heading of a study; a name that is not registered (a stored result of another's study) stands for itself."""
    return STUDIES[name].title if name in STUDIES else name.replace("_", " ").capitalize()


def result_from_dict(fields: Mapping[str, Any]) -> StudyResult:
    """Any stored result, as the class that its study registered. Raises RunError where none did, or for damage."""
    study, name = fields.get("study"), fields.get("result")
    for general in (StudyResult, SkippedResult):
        if name == general.__name__:
            return general.from_dict(fields)
    if not isinstance(study, str) or not re.fullmatch(_NAME, study):
        raise RunError(
            f"A stored result names its study, not {study!r}; run the same comparison with --resume."
        )
    again = "run the comparison again with this version"
    if study not in STUDIES:
        raise RunError(f"There is no study {study!r} in this steerlab; {again}.")
    kind = STUDIES[study].result_class()
    if not (isinstance(kind, type) and issubclass(kind, StudyResult) and kind.__name__ == name):
        raise RunError(f"The study {study!r} has no result class {name!r}; {again}.")
    return kind.from_dict(fields)
