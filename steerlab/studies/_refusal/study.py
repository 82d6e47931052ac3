"""Is refusal one direction in each model, and does one model's direction work in the other?

Direction: difference between the mean states of harmful and of harmless training prompts, after the instruction;
layer and position chosen on validation prompts. Test: ablated on harmful prompts refusal should fall, added on
harmless ones it should rise, in both models with both directions and with random ones. A dose is stated in class gaps
of the model that is steered, so that every direction added to it has the same length. Sources: Arditi et al. (2024),
"Refusal in language models is mediated by a single direction"; Du et al. (2025), "How post-training reshapes LLMs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from steerlab.datasets import ContrastSet, StatementSet, StudyData
from steerlab.errors import DatasetError
from steerlab.judging import JudgeAgreement, RefusalJudge, agreement_of, asked_once, judge_name
from steerlab.models import LanguageModel
from steerlab.models.thinking import thinking_in
from steerlab.progress import track
from steerlab.readouts.dominance import mean_shares
from steerlab.readouts.refusals import Judge, Verdicts, refusal_tokens, tells_apart
from steerlab.readouts.requests import Split
from steerlab.readouts.surface import surface
from steerlab.registry import Preset, Size, check_options
from steerlab.studies._pair import LARGE, Models, Pair, amounts_note, amounts_of
from steerlab.studies._refusal.outcomes import joined, outcome
from steerlab.studies._refusal.parts import (
    METHODS,
    Amount,
    Found,
    Method,
    Subject,
    added,
    agreements,
    direction_of,
    effects,
    find,
    points_of,
    prices_of,
)
from steerlab.studies._refusal.result import RefusalResult, Setting
from steerlab.studies._refusal.sentences import headline, sentences

if TYPE_CHECKING:
    from steerlab.models.prompts import Template

__all__ = ["RefusalResult", "Setting", "refusal"]

_TEXTS = 4  # on which the shared mean is measured


AMOUNTS: dict[str, Amount] = {
    "quick": Amount(
        64,
        16,
        24,
        (0.5, 1.0, 2.0, 4.0),
        randoms=20,
        random_share=1 / 3,
        texts=24,
        task=48,
        priced_randoms=4,
        scores="needed",
    ),
    LARGE: Amount(
        40,
        12,
        24,
        (1.0, 2.0, 4.0),
        randoms=20,  # fewer could not say that a direction does more than nineteen of twenty
        random_share=1 / 8,
        texts=12,
        task=16,
        priced_randoms=2,
        scores="needed",
    ),
    "full": Amount(
        128,
        32,
        100,
        (0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
        randoms=20,
        random_share=1 / 2,
        texts=100,
        task=200,
        priced_randoms=10,
        scores="all",
    ),
}


# Long: a third or more of it documents its options.
def refusal(
    pair: Pair | Models,
    data: StudyData | ContrastSet | None = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    plain_text: Sequence[str] | None = None,
    statements: StatementSet | None = None,
    judge: RefusalJudge | None = None,
    max_new_tokens: int | None = None,
) -> RefusalResult:
    """Compare the refusal directions of a pair of models on harmful and harmless requests with splits.

    A model with a chat template is asked through it, one without through the plain rendering; the result says which. A
    thinking block that a template opens is closed, so that the answer's first token is what is read.
    Answers are scored in memory and kept nowhere.

    Args:
        pair: base and post, loaded.
        data: requests, or everything that studies read; None takes the packaged sets.
        size: "quick" or "full" (more prompts, doses and random directions).
        preset: "corrected", or "published": place chosen by the published rule in `resid_pre`, refusal by a phrase at
            the start of 16 tokens and nothing else, addition at three points of the layer.
        plain_text: passages on which the price of steering is measured; None takes those of `data`, an empty list
            leaves it out.
        statements: labelled statements of the task that steering should leave alone, likewise.
        judge: says of (request, answer) whether it was refused, asked once for each. Its word then decides in place of
            the phrases, whose share stands beside it with the agreement of the two; the result has its name.
        max_new_tokens: of each answer; by default as many as the phrases need (12, published 16). A judge that reads
            what was answered may want more.

    Returns:
        The result; its `artefacts()` are the two `Direction`s (every layer, at the chosen position).

    Raises:
        DatasetError: the requests have no splits, or fewer than eight of a kind in one.
        SteerlabError: an unknown size or preset, or a judge that fails or gives something that is no bool.
    """
    check_options("The refusal study", size=size, preset=preset, presets=METHODS)
    pair = Pair.of(pair)
    amounts, method = amounts_of(size, pair), METHODS[preset]
    amount = AMOUNTS[amounts]
    method = replace(method, new_tokens=max_new_tokens or method.new_tokens)
    judge = None if judge is None else asked_once(judge)  # of an answer that both models give, too
    data = StudyData.of(data, "requests", pair.topics).with_own(plain_text=plain_text, statements=statements)
    requests = data.requests
    splits = splits_of(requests, amount, seed)
    missing: dict[str, str] = {}
    subjects = [
        subject_of(name, model, splits, method, seed, missing, judge) for name, model in pair.by_name.items()
    ]
    plain = {subject.name: _unsteered(subject) for subject in subjects}
    outcomes = [
        outcome(
            subject.name, kind, "none", "none", plain[subject.name][kind], judged=judge is not None, seed=seed
        )
        for subject in subjects
        for kind in ("harmful", "harmless")
    ]
    separates = {
        name: tells_apart(verdicts["harmful"], verdicts["harmless"]) for name, verdicts in plain.items()
    }
    result = RefusalResult(
        status="not identified",
        summary=[],
        setting=_setting(subjects, splits, requests, size, seed, preset),
        separates=separates,
        outcomes=tuple(outcomes),
        choices={},
        surface=surface(requests.positive, requests.negative, seed=seed),
        missing=missing,
        judge=None if judge is None else judge_name(judge),
        agreements={} if judge is None else {name: _agreement(verdicts) for name, verdicts in plain.items()},
    )
    if separates["post"]:
        result = _with_directions(
            result, subjects, plain, amount, seed, requests.hash, data.plain_text, data.labelled_statements
        )
    summary = {"summary": [*sentences(result), *amounts_note(amounts)], "headline": headline(result)}
    return result.model_copy(update=summary).with_artefacts(result.artefacts())


# -- private: the parts, in the order they are called --


def splits_of(requests: ContrastSet, amount: Amount, seed: int) -> dict[str, ContrastSet]:
    """So many requests of each kind and split, drawn by the seed."""
    if not any(requests.splits):
        raise DatasetError(
            "The refusal study needs requests with splits; make them with ContrastSet.from_texts."
        )
    chosen = {}
    for name, n in (("train", amount.train), ("val", amount.val), ("test", amount.test)):
        part = requests.split(name)
        if min(len(part.positive), len(part.negative)) < 8:
            raise DatasetError(
                f"The {name} split holds {len(part.positive)} {requests.positive_name} and {len(part.negative)} "
                f"{requests.negative_name} requests; give at least eight of each in every split (about 30 of each)."
            )
        rng = np.random.default_rng(seed)
        positive, negative = (
            tuple(texts[row] for row in np.sort(rng.permutation(len(texts))[:n]))
            for texts in (part.positive, part.negative)
        )
        chosen[name] = ContrastSet(positive, negative)
    return chosen


def subject_of(
    name: str,
    model: LanguageModel,
    splits: Mapping[str, ContrastSet],
    method: Method,
    seed: int,
    missing: dict[str, str],
    judge: RefusalJudge | None,
    template: Template = "auto",
) -> Subject:
    def rendered(part: ContrastSet) -> Split:
        kinds = (
            [model.instruction_prompt(text, template=template, think=False) for text in texts]
            for texts in (part.positive, part.negative)
        )
        return Split(*kinds)

    train, val, test = (rendered(splits[part]) for part in ("train", "val", "test"))
    tokens = refusal_tokens(model, val.harmful[0])
    if not tokens:
        missing[f"tokens {name}"] = (
            f"No token of the {name} model begins a refusal as a whole word, so its log-odds are missing and its layer "
            "was chosen by separation."
        )
    scores = Judge.of(
        model, val.prompts, list(tokens), seed,
        phrases=method.phrases, new_tokens=method.new_tokens, judge=judge,
    )  # fmt: skip
    words = tuple(dict.fromkeys(tokens.values()))
    return Subject(name, model, train, val, test, scores, words, method)


def _unsteered(subject: Subject) -> dict[str, Verdicts]:
    return {
        "harmful": subject.judge.verdicts(subject.test.harmful),
        "harmless": subject.judge.verdicts(subject.test.harmless),
    }


def _agreement(verdicts: Mapping[str, Verdicts]) -> JudgeAgreement:
    """The judge and the phrases on a model's unsteered answers to all test prompts."""
    both = joined(list(verdicts.values()))
    return agreement_of(both.refused, both.phrases)


def _setting(
    subjects: Sequence[Subject],
    splits: Mapping[str, ContrastSet],
    requests: ContrastSet,
    size: str,
    seed: int,
    preset: Preset,
) -> Setting:
    rendering = {"chat": "its chat template", "plain": "plain User:/Assistant: rendering"}
    return Setting(
        size=size,
        seed=seed,
        models={subject.name: subject.model.name for subject in subjects},
        templates={
            subject.name: rendering[subject.test.harmful[0].template] + _closed(subject)
            for subject in subjects
        },
        refusal_tokens={subject.name: subject.words for subject in subjects},
        train=len(splits["train"].positive),
        val=len(splits["val"].positive),
        test=len(splits["test"].positive),
        new_tokens=subjects[0].method.new_tokens,
        preset=preset,
        kinds=(requests.positive_name, requests.negative_name),
    )


def _closed(subject: Subject) -> str:
    state = thinking_in(subject.test.harmful[0].text)
    return "" if state == "none" else f", its thinking block {state}"


def _with_directions(
    result: RefusalResult,
    subjects: Sequence[Subject],
    plain: Mapping[str, Mapping[str, Verdicts]],
    amount: Amount,
    seed: int,
    data: str,
    texts: Sequence[str],
    statements: StatementSet | None,
) -> RefusalResult:
    """The result with directions, their effects and cosines."""
    missing = dict(result.missing)
    chosen = {subject.name: find(subject, amount.scores, missing) for subject in subjects}
    base, post = (subject.model for subject in subjects)
    crossed = (base.d_model, base.n_layers) == (post.d_model, post.n_layers)
    if not crossed:
        missing["comparison"] = (
            f"The models differ in shape (width {base.d_model} and {post.d_model}, {base.n_layers} and {post.n_layers} "
            "layers), so cosines and the effect of one model's direction in the other were not run."
        )
    strength = _choose_strength(subjects, chosen, amount)
    outcomes = list(result.outcomes)
    for subject in subjects:
        sources = [name for name in chosen if crossed or name == subject.name]
        outcomes += effects(subject, chosen, sources, plain[subject.name], strength, amount, seed)
    own, plainly, cells = agreements(subjects, chosen, seed) if crossed else ((), (), ())
    priced = [
        price
        for subject in subjects
        for price in prices_of(
            subject, chosen[subject.name], strength, amount, texts, statements, seed, missing
        )
    ]
    filled = result.model_copy(
        update={
            "outcomes": tuple(outcomes),
            "choices": {name: direction.selection for name, direction in chosen.items()},
            "setting": result.setting.model_copy(update={"strength": strength}),
            "own": own,
            "plain": plainly,
            "grid": cells,
            "points": points_of(subjects, chosen),
            "prices": tuple(priced),
            "shared_means": {subject.name: mean_shares(subject.model, texts[:_TEXTS]) for subject in subjects}
            if texts
            else {},
            "missing": missing,
        }
    )
    clear = any(filled.above_control("post", kind, "post") for kind in ("ablation", "addition"))
    directions = {
        f"refusal_{subject.name}": direction_of(subject, chosen[subject.name], data) for subject in subjects
    }
    return filled.model_copy(update={"status": "done" if clear else "not identified"}).with_artefacts(
        directions if clear else {}
    )


def _choose_strength(subjects: Sequence[Subject], directions: Mapping[str, Found], amount: Amount) -> float:
    """The smallest strength with the most coherent refusals of harmless validation prompts, over both models."""
    scores = []
    for strength in track(amount.strengths, "choosing the strength of addition"):
        shares = []
        for subject in subjects:
            own = directions[subject.name]
            edit = added(subject, own.unit * own.gap(own.choice.layer), own.choice.layer, strength)
            verdicts = subject.judge.verdicts(subject.val.harmless, [edit])
            shares.append(float((verdicts.refused & ~verdicts.gibberish).mean()))
        scores.append(np.mean(shares))
    return amount.strengths[int(np.argmax(scores))]
