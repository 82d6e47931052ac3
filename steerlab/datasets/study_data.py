"""Everything that studies of a pair read, in one value: the packaged sets, or the user's own in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from steerlab.datasets.contrast_set import ContrastSet
from steerlab.datasets.multiple_choice import ChoiceQuestion
from steerlab.datasets.passages import open_prompts, plain_text
from steerlab.datasets.requests import requests
from steerlab.datasets.statement_pairs import StatementPair
from steerlab.datasets.statement_set import StatementSet
from steerlab.datasets.statements import statements
from steerlab.errors import DatasetError
from steerlab.showing import html_table

PACKAGED = "packaged"


@dataclass(frozen=True, repr=False)
class StudyData:
    """What the studies read; a study takes the fields that it registers.

    Attributes:
        statements: labelled ones, or pairs for the study of knowledge.
        requests: two kinds of requests with splits.
        open_prompts: prompts without a right answer.
        plain_text: unrelated plain passages.
        questions: multiple choice; None: made from the statements.
        contrasts: contrasts of one's own by name, or what `readouts.contrasts.read_contrasts` reads; none by default.
        sources: by field, where its data come from in a word or a path.
    """

    statements: StatementSet | Sequence[StatementPair] = field(default_factory=statements)
    requests: ContrastSet = field(default_factory=requests)
    open_prompts: Sequence[str] = field(default_factory=open_prompts)
    plain_text: Sequence[str] = field(default_factory=plain_text)
    questions: Sequence[ChoiceQuestion] | None = None
    contrasts: Any = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, main: str, topics: Sequence[str] = ()) -> StudyData:
        """`given` as it is; the packaged sets for None; any other value as the field `main` of the packaged sets.

        topics: the packaged statements are about these, where a pair of models says which it was trained to judge.
        """
        if isinstance(given, StudyData):
            return given
        packaged: dict[str, Any] = {"statements": statements(topics)} if topics else {}
        return cls(**packaged) if given is None else cls(**{**packaged, main: given})

    def with_own(self, **own: Any) -> Self:
        """The same with the fields of `own` that are not None."""
        return replace(self, **{name: value for name, value in own.items() if value is not None})

    @property
    def labelled_statements(self) -> StatementSet:
        """The statements. Raises DatasetError where they are pairs."""
        if isinstance(self.statements, StatementSet):
            return self.statements
        raise DatasetError("This study takes labelled statements, not pairs of them; give it a StatementSet.")

    def __repr__(self) -> str:
        return f"StudyData({', '.join(f'{name} {size} ({where})' for name, size, where in self._sizes())})"

    def _repr_html_(self) -> str:
        table = html_table("What studies read", ["Data", "Items", "From"], self._sizes())
        shown = (getattr(self.statements, "_repr_html_", str), self.requests._repr_html_)
        return table + "".join(show() for show in shown)

    def _sizes(self) -> list[tuple[str, int, str]]:
        fields = ("statements", "requests", "open_prompts", "plain_text", "questions")
        return [
            (name, len(value), self.source(name))
            for name in fields
            if (value := getattr(self, name)) is not None
        ] + [(f"contrast {name}", len(one.data.texts), one.source) for name, one in self._read_contrasts()]

    def _read_contrasts(self) -> list[tuple[str, Any]]:
        """Contrasts that were read; what still is to be read has no size."""
        known = self.contrasts.items() if isinstance(self.contrasts, Mapping) else ()
        return [(name, one) for name, one in known if hasattr(one, "data")]

    def source(self, name: str) -> str:
        """Where a field's data come from."""
        return self.sources.get(name, PACKAGED)
