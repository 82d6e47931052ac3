"""Did post-training change how sure the model is, is it still right as often as it is sure, and do neurons explain it?

Next-token entropy and calibration on plain texts (the same texts, no template, in both models); calibration of TRUE
against FALSE on labelled statements in one stated form; candidates for entropy neurons and their overlap beside its
nulls. Entropies are compared by text, answers by statement. "Not identified" stands where a model does not read the
texts, or answers at chance, or the change does not leave its null (the labels base and post swapped at random text by
text). Source for the question: Du et al., 2025 (arXiv 2504.02904), which measured the overlap only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from steerlab import plots
from steerlab.datasets import ChoiceQuestion, StatementSet, StudyData, choice_questions
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.neurons.overlap import PairNeurons, compare_neurons
from steerlab.plots import Series
from steerlab.readouts.confidence import (
    AnswerConfidence,
    AnswerReading,
    Calibration,
    Role,
    TextConfidence,
    answer_confidence,
    fitting,
    read_answers,
    read_texts,
    text_confidence,
)
from steerlab.readouts.questions import plan
from steerlab.record import Record
from steerlab.results import Headline, StudyResult, Table
from steerlab.statistics import Estimate
from steerlab.studies._confidence.changes import Change, answer_changes, text_changes
from steerlab.studies._confidence.choices import Choices, choices_of_pair
from steerlab.studies._confidence.depth import Depth, depth
from steerlab.studies._confidence.sentences import answer_summary, neuron_summary, text_summary
from steerlab.studies._pair import Models, Pair, Preset, Size, require_known

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class Budget(Record):
    """Texts read, statements of each topic, texts for the neurons' ablation and random neurons a candidate."""

    texts: int
    statements_a_topic: int
    ablation_texts: int
    randoms: int


BUDGETS = {
    "quick": Budget(texts=60, statements_a_topic=24, ablation_texts=10, randoms=2),
    "full": Budget(texts=1000, statements_a_topic=200, ablation_texts=50, randoms=10),
}
_SHOTS = (0, 4)
_CALIBRATION = ("calibration error", "adaptive", "floor")
_CALIBRATION_NOTE = (
    "Calibration error: ten bins of equal width (adaptive: of equal count); floor: the error a perfectly calibrated "
    "model would show on as many answers."
)


class ConfidenceResult(StudyResult):
    """Confidence of a pair on texts and on statements, and its entropy neurons. `form`: how statements were asked."""

    study: str = "confidence"
    texts: list[TextConfidence]
    form: str
    answers: list[AnswerConfidence]
    changes: list[Change]
    neurons: PairNeurons
    same_tokenizer: bool
    choices: Choices | None = None
    depth: Depth | None = None

    def tables(self) -> list[Table]:
        """Texts, answers, changes with controls, neuron overlap with controls, ablation effects, candidates."""
        tables = [self._texts(), self._changes()]
        if self.answers:
            tables.insert(1, self._answers())
        if self.choices is not None:
            tables += self.choices.tables()
        if self.neurons.agreements:
            tables.append(self._agreements())
        if self.neurons.effects:
            tables.append(self._effects())
        if self.neurons.sets:
            tables.append(self._candidates())
        return tables + (self.depth.tables() if self.depth else [])

    def figures(self) -> dict[str, Figure]:
        """Entropy distributions, reliability diagrams, and the neurons' norm against LogitVar."""
        edges = np.asarray(self.texts[0].histogram_edges)
        figures = {
            "text_confidence": plots.curves(
                [Series(one.model, [100 * share for share in one.histogram]) for one in self.texts],
                (edges[:-1] + edges[1:]) / 2,
                title="Entropy of the next-token law on plain text",
                x_title="Entropy (nats)",
                y_title="% of tokens",
            ),
            "next_token_reliability": _reliability(
                [(one.model, one.calibration) for one in self.texts], "Next token of plain text"
            ),
        }
        if self.answers:
            figures["answer_confidence"] = _reliability(
                [(one.model, one.calibration) for one in self.answers], f"TRUE or FALSE, {self.form}"
            )
        if self.choices is not None:
            figures |= self.choices.figures()
        if self.neurons.sets:
            figures["entropy_neurons"] = self._scatter()
        return figures | (self.depth.figures() if self.depth else {})

    def _texts(self) -> Table:
        columns = {
            "entropy (nats a token)": "entropy",
            "entropy (nats a byte)": "entropy_per_byte",
            "largest probability": "p_max",
            "loss (nats a token)": "loss",
            "next token right": "accuracy",
            "gain over its controls": "gain",
        }
        return Table(
            key="text_confidence",
            title="Confidence on plain text",
            columns=["model", "texts", "tokens", *columns, *_CALIBRATION],
            rows=[
                [
                    one.model,
                    one.n_texts,
                    one.n_tokens,
                    *(getattr(one, field) for field in columns.values()),
                    *_calibration_cells(one.calibration),
                ]
                for one in self.texts
            ],
            note="Texts as they are, without a template, in both models. " + _CALIBRATION_NOTE,
        )

    def _answers(self) -> Table:
        return Table(
            key="answer_confidence",
            title=f"Confidence in TRUE or FALSE on labelled statements ({self.form})",
            columns=[
                "model",
                "n",
                "accuracy",
                "chance",
                "confidence",
                "Brier",
                *_CALIBRATION,
                "mass on both answers",
            ],
            rows=[
                [one.model, one.n, one.accuracy, one.chance, one.confidence, one.brier]
                + (
                    _calibration_cells(one.calibration)
                    if one.above_chance
                    else ["not identified: at chance", None, None]
                )
                + [one.mass]
                for one in self.answers
            ],
            note="P(TRUE) is renormalised over TRUE and FALSE; always saying one half has a Brier score of 0.25. "
            + _CALIBRATION_NOTE,
        )

    def _changes(self) -> Table:
        return Table(
            key="changes",
            title="POST minus BASE",
            columns=["quantity", "change", "control: base and post swapped at random", "verdict"],
            rows=[
                [one.what, one.value, one.control, "changed" if one.identified else "not identified"]
                for one in [*self.changes, *(self.choices.changes if self.choices else ())]
            ],
            note="Paired by text, statement or question.",
        )

    def _agreements(self) -> Table:
        return Table(
            key="neuron_overlap",
            title="Overlap of the entropy-neuron candidates, beside its controls",
            columns=["quantity", "kind", "value"],
            rows=[[one.name, one.kind, one.value] for one in self.neurons.agreements],
            note="Overlap: intersection over union of ten neurons chosen in each model. Where a control overlaps as "
            "much, the overlap says that weights hardly moved, and nothing about confidence.",
        )

    def _effects(self) -> Table:
        return Table(
            key="neuron_effects",
            title="Mean ablation of single last-layer neurons: |change in entropy|, nats a token",
            columns=[
                "model",
                "neurons",
                "n",
                "norm recomputed",
                "norm's scale frozen",
                "share through the norm",
            ],
            rows=[
                [one.model, one.group, one.n, one.total, one.direct, one.through_norm]
                for one in self.neurons.effects
            ],
            note="An entropy neuron acts through the final norm: its share should exceed that of random neurons.",
        )

    def _candidates(self) -> Table:
        return Table(
            key="entropy_neurons",
            title="Entropy-neuron candidates of the last layer",
            columns=[
                "model",
                "neuron",
                "|w_out|",
                "LogitVar",
                "share in the null space",
                "in both",
                "by null space",
            ],
            rows=[
                [
                    one.model,
                    f"{one.layer}.{found.neuron}",
                    *(getattr(found, field) for field in ("norm", "logit_var", "null_share", "shared")),
                    found.neuron in one.by_null_space,
                ]
                for one in self.neurons.sets
                for found in one.candidates
            ],
            note="Of the quarter of neurons with the largest output weights, the ten with the lowest variance of "
            "cosine over the vocabulary. By null space: also among the ten with the largest share of w_out in the "
            f"null space ({', '.join(f'{one.model} {one.null_size} directions' for one in self.neurons.sets)}).",
        )

    def _scatter(self) -> Figure:
        series = []
        for one in self.neurons.sets:
            # log of LogitVar, since it spans orders of magnitude; a variance of exactly zero has no log
            cloud = [math.log10(value) if value > 0 else math.nan for value in one.cloud_logit_var]
            series.append(Series(f"{one.model}, all", cloud, x=one.cloud_norm, role="control"))
        for one in self.neurons.sets:
            found = one.candidates
            values = [math.log10(each.logit_var) if each.logit_var > 0 else math.nan for each in found]
            labels = [
                f"neuron {one.layer}.{each.neuron}{', in both' if each.shared else ''}" for each in found
            ]
            norms = [each.norm for each in found]
            series.append(Series(f"{one.model} candidates", values, x=norms, labels=labels))
        return plots.scatter(
            series, title="Last-layer neurons by their weights", x_title="|w_out|", y_title="log10 LogitVar"
        )


def confidence(
    pair: Pair | Models,
    data: StudyData | StatementSet | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    plain_text: Sequence[str] | None = None,
    questions: Sequence[ChoiceQuestion] | None = None,
) -> ConfidenceResult:
    """Confidence of a pair of models on plain text, labelled statements and multiple choice, and entropy neurons.

    Args:
        pair: base and post, loaded.
        data: statements, or everything that studies read; None takes the packaged sets.
        size: "full" reads more texts and asks about more statements.
        preset: there is only "corrected".
        plain_text: texts read without a template; None takes those of `data`.
        questions: multiple choice (`datasets.read_multiple_choice`); by default made from the true statements, whose
            objects are the answers.

    Raises:
        PromptError: fewer than two texts fit into both models.
        SteerlabError: an unknown size or preset.
    """
    require_known("confidence", "size", size, BUDGETS)
    require_known("confidence", "preset", preset, ["corrected"])
    data = StudyData.of(data, "statements").with_own(plain_text=plain_text, questions=questions)
    budget, statements, pair = BUDGETS[size], data.labelled_statements, Pair.of(pair)
    base, post = pair
    models: dict[Role, LanguageModel] = {"BASE": base, "POST": post}
    fits = fitting([base, post], list(dict.fromkeys(data.plain_text))[: budget.texts])
    if len(fits) < 2:
        raise PromptError(
            "Confidence needs at least two plain texts of two tokens that fit into both models; give shorter ones."
        )
    readings = {
        role: read_texts(model, fits, seed=seed, description=f"confidence on text, {role}")
        for role, model in models.items()
    }
    edges = np.linspace(0, max(float(reading.entropy.max()) for reading in readings.values()) + 1e-6, 33)
    on_texts = [text_confidence(role, reading, edges, seed=seed) for role, reading in readings.items()]
    asked, form = _ask(models, statements, budget, seed)
    answers = [answer_confidence(role, reading, seed=seed) for role, reading in asked.items()]
    chosen = _choices(models, statements, data.questions, budget, seed)
    changes = text_changes(readings, pair.same_tokenizer, seed) + answer_changes(asked, answers, seed)
    neurons = compare_neurons(base, post, fits[: budget.ablation_texts], randoms=budget.randoms, seed=seed)
    deep = depth(
        models,
        fits[: budget.ablation_texts],
        asked,
        same_tokenizer=pair.same_tokenizer,
        randoms=budget.randoms,
        seed=seed,
    )
    readable = not any(one.untrained for one in on_texts)
    identified = (readable and any(one.identified for one in changes if one.of == "texts")) or (
        bool(answers) and all(one.above_chance for one in answers)
    )
    return ConfidenceResult(
        status="done" if identified else "not identified",
        summary=[
            *text_summary(on_texts, changes),
            *answer_summary(answers, changes, form),
            *chosen.sentences,
            *neuron_summary(neurons),
            *deep.sentences,
        ],
        headline=Headline(
            what=f"POST minus BASE, {changes[0].what}",
            value=changes[0].value,
            control=changes[0].control,
            control_name="base and post swapped at random",
        ),
        texts=on_texts,
        form=form,
        answers=answers,
        changes=changes,
        neurons=neurons,
        same_tokenizer=pair.same_tokenizer,
        choices=chosen,
        depth=deep,
    )


def _choices(
    models: dict[Role, LanguageModel],
    statements: StatementSet,
    questions: Sequence[ChoiceQuestion] | None,
    budget: Budget,
    seed: int,
) -> Choices:
    """Multiple choice of the caller's questions, or of those that the statements make."""
    if questions is not None:
        return choices_of_pair(models, questions, source="The caller's questions.", seed=seed)
    made = choice_questions(statements, seed=seed)
    limit = 6 * budget.statements_a_topic
    if len(made) > limit:
        made = [made[row] for row in np.sort(np.random.default_rng(seed).permutation(len(made))[:limit])]
    source = "True statements cut before their object, among objects of the same topic."
    return choices_of_pair(models, made, source=source, seed=seed)


def _ask(
    models: dict[Role, LanguageModel], statements: StatementSet, budget: Budget, seed: int
) -> tuple[dict[Role, AnswerReading], str]:
    """Both models' answers in the form that labels two topics best (left out after), or why there are none."""
    try:
        chosen = plan(statements, per_topic=budget.statements_a_topic, held_out=len(statements), seed=seed)
        fold = chosen.folds[0]
        trial = chosen.balanced(fold.train, 2 * budget.statements_a_topic, seed)

        def accuracy(shots: int) -> float:
            return sum(
                float(read_answers(model, chosen, trial, shots).correct.mean()) for model in models.values()
            )

        shots = max(_SHOTS, key=accuracy)
        rows = chosen.rows(fold.test)
        found = {role: read_answers(model, chosen, rows, shots) for role, model in models.items()}
    except SteerlabError as error:
        return {}, f"not asked: {error}"
    return found, "after four labelled statements of the topic" if shots else "the bare statement"


def _calibration_cells(found: Calibration) -> list[Estimate | str | None]:
    return [found.error, found.adaptive, found.floor]


def _reliability(found: Sequence[tuple[str, Calibration]], title: str) -> Figure:
    series = [
        Series(
            name,
            [each.accuracy.value for each in one.curve],
            [each.accuracy.low for each in one.curve],
            [each.accuracy.high for each in one.curve],
            x=[each.confidence for each in one.curve],
            n=[each.n for each in one.curve],
        )
        for name, one in found
    ]
    return plots.reliability(series, title=f"Reliability: {title}")
