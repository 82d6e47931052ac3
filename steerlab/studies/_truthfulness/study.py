"""Do a base model and its post-trained version write truth in the same direction?

Each model reads bare statements (no template in either); at the last token of each, at every layer, the direction is
the difference between the mean states of true and of false statements, topics centred apart. Asked are: the cosine of
the two directions beside its ceiling, whether one model's probe reads the other's states on topics it never saw,
whether adding either direction turns the answer of either model after "This statement is:", and what that costs on
unrelated text. Sources: Marks and Tegmark (2023), "The geometry of truth"; Du et al. (2025), "How post-training
reshapes LLMs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from steerlab.activations import Activations, capture
from steerlab.datasets import StatementSet, StudyData
from steerlab.directions import Ccs, DifferenceInMeans, LinearDirection, PcaReader
from steerlab.directions.coordinates import Coordinates, InCoordinates, require_coordinates
from steerlab.errors import DirectionError, SiteError, SteerlabError
from steerlab.models import LanguageModel, Last, Selector, Span
from steerlab.progress import track
from steerlab.readouts.agreement import Stack
from steerlab.readouts.questions import (
    ANSWER_SITE,
    QUESTION_END,
    WANTED_TOPICS,
    Plan,
    plan,
    question,
    some_folds,
)
from steerlab.registry import Preset, Size, check_options
from steerlab.studies._pair import LARGE, Models, Pair, amounts_note, amounts_of
from steerlab.studies._truthfulness.answers import Examinee, Labels, choose_shots, label_accuracy, words_for
from steerlab.studies._truthfulness.geometry import direction
from steerlab.studies._truthfulness.price import SteeringPrice, prices
from steerlab.studies._truthfulness.probed import Probed, probed_states
from steerlab.studies._truthfulness.probes import (
    fitter,
)
from steerlab.studies._truthfulness.result import Setting, TruthfulnessResult
from steerlab.studies._truthfulness.sentences import headline, sentences
from steerlab.studies._truthfulness.steering import Rule, Steering, Window, steer_all, windows

__all__ = ["Setting", "TruthfulnessResult", "truthfulness"]

#: Where an answer can be steered: where the statement ends (Marks and Tegmark), or where the answer is decided.
PLACES: dict[str, Selector] = {
    "object and full stop": Span(ANSWER_SITE),
    "end of the question": Span(QUESTION_END),
}


@dataclass(frozen=True)
class _Amount:
    per_topic: int
    questions: int
    shots: tuple[int, ...]
    steered_folds: int | None
    rows: int
    choice_rows: int
    windows: int
    strengths: tuple[float, ...]
    passages: int


AMOUNTS: dict[str, _Amount] = {
    "quick": _Amount(64, 120, (0, 4), 3, 16, 12, windows=3, strengths=(1.0, 2.0, 4.0), passages=12),
    LARGE: _Amount(40, 80, (0, 4), 2, 16, 8, windows=3, strengths=(1.0, 2.0, 4.0), passages=6),
    "full": _Amount(
        400, 400, (0, 2, 4), None, 48, 48, windows=8, strengths=(0.5, 1.0, 2.0, 4.0, 8.0), passages=64
    ),
}


# Long: a third or more of it documents its options.
def truthfulness(
    pair: Pair | Models,
    data: StudyData | StatementSet | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    answers: tuple[str, str] = (" TRUE", " FALSE"),
    estimator: LinearDirection | None = None,
    coordinates: Coordinates | None = None,
    layers: Window | None = None,
    places: Mapping[str, Selector] | None = None,
    plain_text: Sequence[str] | None = None,
) -> TruthfulnessResult:
    """Compare the truth directions of a pair of models on labelled statements.

    Every topic is held out in turn; statements that join others are tested on only.

    Args:
        pair: base and post, loaded.
        data: statements, or everything that studies read; None takes the packaged sets.
        size: "full" reads and asks more; "quick" steers three of the held-out topics, "full" all of them.
        answers: the words for true and false after the question (with their space). Where one is not a single token
            that follows the question, they are scored as sequences.
        preset: "published" takes the choices of Du et al. (2025): the probe's layer at 0.375 of the depth and a window
            that begins at 0.25 of it, strength 1, one vector with its own length in the whole window, four lines.
        estimator: what makes a direction of a topic-centred training set; the difference in means by default.
        coordinates: those in which probes are fitted; None standardises them at the layers where one mean dominates the
            states (its share of their norm is 0.95 or more). What steers and is compared stays in plain ones.
        layers: first and last layer steered; probes are then read at the last. None chooses both on training topics.
        places: tokens to steer, by name; the spans "answer_site" and "question_end" are at hand.
        plain_text: passages on which steering is priced; None takes those of `data`, an empty list leaves it out.

    Returns:
        The result; its `artefacts()` are the two `Direction`s (every layer, all simple statements). What this pair
        cannot take (other widths, answers that cannot be told apart) is left out and said in `missing`.

    Raises:
        DatasetError: too few statements to hold any out.
        SiteError: `layers` that a model has not.
        SteerlabError: an unknown size or preset.
        DirectionError: an estimator that reads pairs, which resampled and shuffled statements are not.
    """
    _require_single(estimator)
    require_coordinates(coordinates or "plain")
    check_options("The truthfulness study", size=size, preset=preset, presets=get_args(Preset))
    pair = Pair.of(pair)
    data = StudyData.of(data, "statements", pair.topics).with_own(plain_text=plain_text)
    models, amounts = pair.by_name, amounts_of(size, pair)
    amount = AMOUNTS[amounts]
    used = plan(data.labelled_statements, per_topic=amount.per_topic, seed=seed)
    fixed = _fixed_layers(models, layers, preset)
    read = {name: _read(model, used, name) for name, model in models.items()}
    missing = _few_topics(used)
    probed = probed_states(models, read, used, fixed, estimator, coordinates, missing, seed)
    rule = _rule(models, used, amount, fixed, preset, places, seed)
    labels, steering, priced = _answers(
        models, probed, used, answers, amount, rule, estimator, data.plain_text, missing
    )
    result = TruthfulnessResult(
        status="done" if any(probed.has_direction.values()) else "not identified",
        summary=[],
        setting=_setting(models, used, size, preset, answers, estimator, seed),
        **probed.fields(used, estimator, seed),
        labels=labels,
        steering=steering,
        prices=priced,
        missing=missing,
    )
    result = result.model_copy(
        update={"summary": [*sentences(result), *amounts_note(amounts)], "headline": headline(result)}
    )
    return result.with_artefacts(
        {
            f"truthfulness_{name}": direction(read[name], model, used, estimator)
            for name, model in models.items()
            if probed.has_direction[name]
        }
    )


# -- private, in the order they are called --


def _require_single(estimator: LinearDirection | None) -> None:
    """Raise DirectionError for an estimator that reads pairs."""
    inner = estimator.estimator if isinstance(estimator, InCoordinates) else estimator
    if isinstance(inner, Ccs | PcaReader):
        raise DirectionError(
            f"{type(inner).__name__} reads pairs of a statement and its negation, which the resampled and shuffled "
            "statements of this study are not; fit it with sl.directions.fit_direction or `steerlab extract`."
        )


def _setting(
    models: Mapping[str, LanguageModel],
    used: Plan,
    size: Size,
    preset: Preset,
    answers: tuple[str, str],
    estimator: LinearDirection | None,
    seed: int,
) -> Setting:
    return Setting(
        size=size,
        seed=seed,
        preset=preset,
        estimator=repr(estimator or DifferenceInMeans()),
        models={name: model.name for name, model in models.items()},
        statements=len(used.statements),
        topics=tuple(fold.test[0] for fold in used.folds),
        by_topic=used.by_topic,
        answers=answers,
    )


def _read(model: LanguageModel, used: Plan, name: str) -> Activations:
    """States of every statement's last token at every layer."""
    sites = model.sites("resid_post")
    return capture(
        model, used.statements.texts, sites, positions=Last(), progress=f"reading statements in {name}"
    )


def _fixed_layers(
    models: Mapping[str, LanguageModel], layers: Window | None, preset: Preset
) -> dict[str, Window]:
    """The window of each model where it is given or published; the probe is read at its last layer."""
    if layers is None and preset == "corrected":
        return {}
    fixed = {}
    for name, model in models.items():
        first, last = layers or (round(0.25 * model.n_layers), round(0.375 * model.n_layers))
        if not 0 <= first <= last < model.n_layers:
            raise SiteError(
                f"The layers {first} to {last} do not lie in order between 0 and {model.n_layers - 1}, the layers of "
                f"{model.name}; give the first and the last layer to steer."
            )
        fixed[name] = (first, last)
    return fixed


def _few_topics(used: Plan) -> dict[str, str]:
    if not used.by_topic:
        sentence = (
            "The statements name too few topics to hold topics out, so random parts of them were held out: what is "
            "found may be particular to their subject."
        )
        return {"topics": sentence}
    if len(used.folds) < WANTED_TOPICS:
        return {
            "topics": f"Only {len(used.folds)} topics have enough statements (six would be better): held-out "
            "accuracies say little about topics of another kind."
        }
    return {}


def _rule(
    models: Mapping[str, LanguageModel],
    used: Plan,
    amount: _Amount,
    fixed: Mapping[str, Window],
    preset: Preset,
    places: Mapping[str, Selector] | None,
    seed: int,
) -> Rule:
    published = preset == "published"
    depth = min(model.n_layers for model in models.values())
    usual = dict(list(PLACES.items())[:1]) if published else PLACES
    return Rule(
        folds=some_folds(used.folds, amount.steered_folds, seed),
        places=usual if places is None else places,
        # models of one depth have one window; of different depths the shallower one's fits both
        windows=(min(fixed.values()),) if fixed else windows(depth, amount.windows),
        strengths=(1.0,) if published else amount.strengths,
        shots=(4,) if published else amount.shots,
        rows=amount.rows,
        choice_rows=amount.choice_rows,
        as_published=published,
        seed=seed,
    )


def _answers(
    models: Mapping[str, LanguageModel],
    probed: Probed,
    used: Plan,
    words: tuple[str, str],
    amount: _Amount,
    rule: Rule,
    estimator: LinearDirection | None,
    texts: Sequence[str],
    missing: dict[str, str],
) -> tuple[tuple[Labels, ...], tuple[Steering, ...], tuple[SteeringPrice, ...]]:
    """The models' own labels, and the steering of those that label above chance and have a direction."""
    rows = used.balanced([fold.test[0] for fold in used.folds], amount.questions, rule.seed)
    try:
        examinees = [
            _examinee(name, model, probed.stacks[name], used, words, estimator)
            for name, model in models.items()
        ]
        shown = [n for n in rule.shots if all(examinee.has_room(used, rows, n) for examinee in examinees)]
        log_odds = [
            {n: examinee.answers(examinee.prompts(used, rows, n))[:, 1] for n in shown or rule.shots[:1]}
            for examinee in track(examinees, "asking the models for labels", len(examinees))
        ]
    except SteerlabError as error:
        missing["answers"] = f"The models were not asked for their own labels, and not steered: {error}"
        return (), (), ()
    shots = choose_shots(log_odds, used, rows)
    labels = [
        row
        for examinee, odds in zip(examinees, log_odds, strict=True)
        for row in label_accuracy(examinee, odds, shots, used, rows)
    ]
    chosen = _steerable(examinees, labels, probed.has_direction, missing)
    if not chosen:
        return tuple(labels), (), ()
    steering, doses = steer_all(chosen, used, shots, rule, crossed=probed.comparable)
    priced = (
        prices(chosen, used, doses, texts[: amount.passages], rule, crossed=probed.comparable)
        if len(texts)
        else []
    )
    return tuple(labels), tuple(steering), tuple(priced)


def _steerable(
    examinees: Sequence[Examinee],
    labels: Sequence[Labels],
    has_direction: Mapping[str, bool],
    missing: dict[str, str],
) -> list[Examinee]:
    """The models that label above chance and have a direction; says why the others are not steered."""
    able = {row.model for row in labels if row.statements == "all" and row.above_chance}
    for name, known in has_direction.items():
        if not known:
            why = "its truth direction is not identified"
        elif name not in able:
            why = "it labels statements at chance"
        else:
            continue
        missing[f"steering {name}"] = f"The {name} model's answers were not steered: {why}."
    return [examinee for examinee in examinees if examinee.name in able and has_direction[examinee.name]]


def _examinee(
    name: str,
    model: LanguageModel,
    stack: Stack,
    used: Plan,
    words: tuple[str, str],
    estimator: LinearDirection | None,
) -> Examinee:
    one_each = np.array([used.rows(fold.test)[0] for fold in used.folds])
    questions = [question(used.statements[row], (), words) for row in one_each.tolist()]
    return Examinee(
        name,
        model,
        words_for(model, words, questions),
        tuple(fitter(x, used, None, estimator, "plain") for x in stack),
    )
