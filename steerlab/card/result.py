"""The steering card: what a person must know before using a vector, as a page, as data and as Markdown."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from steerlab.card.effects import Baseline, Effects
from steerlab.card.figures import CAPTIONS, figures
from steerlab.card.harnesses import Score
from steerlab.card.markdown import markdown
from steerlab.card.predictor import Predictor, Reading
from steerlab.card.robustness import Robustness
from steerlab.card.sentences import sentences, verdict
from steerlab.card.tables import tables
from steerlab.card.utility import ASKED, Utility
from steerlab.errors import RunError, reason
from steerlab.files import system_reason, whole, write_text
from steerlab.record import Record
from steerlab.report import write_card
from steerlab.results import Argument, Headline, KeyFigure, KeyRow, Page, StudyResult, Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Gate(Record):
    """One of the three: its number, what it is held against, and whether it is passed."""

    name: str
    passed: bool
    number: str
    against: str
    what: str


def _argument(card: SteeringCard, default: Argument) -> Argument:
    return default.model_copy(
        update={
            "answer": card.verdict,
            "would_change": "Another task, model or strength: a card is of these probes and this model alone.",
        }
    )


def _key_figure(card: SteeringCard) -> KeyFigure:
    one = card.effects.at()
    rows = [KeyRow(name="steered", value=one.effect, role="post")]
    rows += [KeyRow(name=each.name, value=each.effect, role="base") for each in card.effects.baselines]
    rows.append(KeyRow(name="random directions", value=one.random, role="control"))
    return KeyFigure(what=f"nats towards {card.task}", rows=tuple(rows))


class SteeringCard(StudyResult):
    """What a person must know before using a vector.

    Attributes:
        model: its name.
        fingerprint: of its weights.
        task: name of the task.
        wish: what one would write into the prompt instead.
        interventions: in words.
        sites: where they act.
        effects: on the probes, by dose, beside random directions and asking.
        utility: what happens to benign answers and to facts.
        robustness: the same probes asked otherwise.
        predictor: how well the training pairs predict effects in this model; None where not measured.
        reading: what the pairs of this task's contrast say at the first site.
        scores: tasks of evaluation harnesses.
        facts: seeds, sizes and versions, as plain values.
    """

    page: ClassVar[Page | None] = Page(captions=CAPTIONS, argument=_argument, key_figure=_key_figure)

    study: str = "steering_card"
    model: str
    fingerprint: str
    task: str
    wish: str
    interventions: list[str]
    sites: list[str]
    effects: Effects
    utility: Utility
    robustness: Robustness
    predictor: Predictor | None = None
    reading: Reading | None = None
    scores: list[Score] = Field(default_factory=list)
    facts: dict[str, str | int | float] = Field(default_factory=dict)

    @cached_property
    def verdict(self) -> str:
        """The card in a sentence."""
        return verdict(self)

    @property
    def asked(self) -> Baseline | None:
        """The wish in the prompt."""
        return next((one for one in self.effects.baselines if one.name == ASKED), None)

    @property
    def safe_doses(self) -> list[float]:
        """The longest run of doses at which the effect is identified and no harm is measured, from weak to strong."""
        runs: list[list[float]] = [[]]
        for one in self.effects.doses:
            if one.identified and not self.utility.harms(one.dose):
                runs[-1].append(one.dose)
            else:
                runs.append([])
        return max(runs, key=len)

    @property
    def gates(self) -> list[Gate]:
        """Control, utility and robustness at the strength given."""
        one, harms, forms = self.effects.at(), self.utility.harms(1.0), self.robustness.forms
        measured = [measure for measure in self.utility.of(1.0) if measure.bad]
        return [
            Gate(
                name="control",
                passed=one.identified,
                number=f"{one.effect:.2f} nats",
                against=f"at most {one.random.high:.2f} of {one.random.n} random directions",
                what="the effect is beyond every random direction of the same length",
            ),
            Gate(
                name="utility",
                passed=not harms,
                number=f"{len(harms)} of {len(measured)} measures show harm",
                against="",
                what="benign answers and facts: no change has its interval on the bad side of zero",
            ),
            Gate(
                name="robustness",
                passed=bool(forms) and not self.robustness.failing,
                number=f"holds in {len(forms) - len(self.robustness.failing)} of {len(forms)} forms",
                against="",
                what="other words, role, system message, language, template and a long prompt",
            ),
        ]

    def with_sentences(self) -> Self:
        """The card with its summary, status and headline, made of its numbers."""
        one = self.effects.at()
        return self.model_copy(
            update={
                "status": "done" if one.identified else "not identified",
                "summary": [self.verdict, *sentences(self)],
                "headline": Headline(
                    what=f"log-odds towards {self.task}, nats",
                    value=one.effect,
                    control=one.random,
                    control_name="random directions",
                ),
            }
        )

    def tables(self) -> list[Table]:
        """Gates, doses, baselines, benign answers, other forms, harnesses, the predictor and every probe."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Interactive figures by key, in reading order."""
        return figures(self)

    def markdown(self) -> str:
        """The card for a model hub."""
        return markdown(self)

    def save(self, folder: str | Path) -> Path:
        """Write card.html, card.json and card.md into a folder, and return it.

        Raises:
            RunError: the folder cannot be written.
        """
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
            for name, text in (
                ("card.json", json.dumps(self.to_dict(), indent=1)),
                ("card.md", self.markdown()),
            ):
                with whole(place / name) as partial:
                    write_text(partial, text)
        except OSError as error:
            raise RunError(f"The card cannot be written to {place}: {system_reason(error)}.") from error
        write_card(
            self,
            self.gates,
            place / "card.html",
            title=f"Steering card: {self.task} in {self.model.rpartition('/')[2]}",
            lines=self.interventions,
            facts={"model": self.model, "fingerprint": self.fingerprint, **self.facts},
        )
        return place

    @classmethod
    def load(cls, file: str | Path) -> SteeringCard:
        """A card from the JSON that `save` wrote.

        Raises:
            RunError: no such file, or it holds no card.
        """
        place = Path(file)
        place = place / "card.json" if place.is_dir() else place
        try:
            written = json.loads(place.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"{place} cannot be read: {system_reason(error)}.") from error
        except ValueError as error:
            raise RunError(f"{place} holds no card: {reason(error)}.") from error
        if not isinstance(written, dict):
            raise RunError(f"{place} holds no card; give the card.json that save(...) wrote.")
        return cls.from_dict(written)
