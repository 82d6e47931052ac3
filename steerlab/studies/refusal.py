"""Is refusal one direction in each model, and does one model's direction work in the other?

Direction: difference between the mean states of harmful and of harmless training prompts, after the instruction;
layer and position chosen on validation prompts. Test: ablated on harmful prompts refusal should fall, added on
harmless ones it should rise, in both models with both directions and with random ones. A dose is stated in class gaps
of the model that is steered, so that every direction added to it has the same length. Sources: Arditi et al. (2024),
"Refusal in language models is mediated by a single direction"; Du et al. (2025), "How post-training reshapes LLMs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from steerlab.activations import capture
from steerlab.datasets import ContrastSet
from steerlab.directions import DifferenceInMeans, Direction, fit_direction
from steerlab.errors import DatasetError
from steerlab.models import Edit, Index, LanguageModel, Last, Prompt
from steerlab.progress import track
from steerlab.statistics import proportion
from steerlab.steering import Add
from steerlab.studies._contrast import Agreement, agreement_by_layer, random_units
from steerlab.studies._refusal_outcomes import joined, outcome, picked
from steerlab.studies._refusal_result import (
    Intervention,
    Outcome,
    RefusalResult,
    Setting,
    difference,
    headline,
    sentences,
)
from steerlab.studies._refusals import NEW_TOKENS, Judge, Verdicts, refusal_tokens
from steerlab.studies._requests import Reading, Split, direction_at, read, removal
from steerlab.studies.selection import Candidate, Selection, choose

Size = Literal["quick", "full"]

__all__ = ["RefusalResult", "Setting", "refusal"]


@dataclass(frozen=True)
class _Amount:
    train: int
    val: int
    test: int
    strengths: tuple[float, ...]
    randoms: int
    random_share: float
    scores: Literal["needed", "all"]


_AMOUNTS: dict[Size, _Amount] = {
    "quick": _Amount(64, 16, 24, (0.5, 1.0, 2.0, 4.0), randoms=10, random_share=1 / 3, scores="all"),
    "full": _Amount(
        128, 32, 100, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), randoms=20, random_share=1 / 2, scores="all"
    ),
}


@dataclass(frozen=True)
class _Subject:
    """One model with its rendered prompts, its judge, and after selection its directions."""

    name: str
    model: LanguageModel
    train: Split
    val: Split
    test: Split
    judge: Judge
    words: tuple[str, ...]
    scores: Literal["needed", "all"]


@dataclass(frozen=True)
class _Found:
    """The directions of a model at every layer and position, and which one was chosen."""

    reading: Reading
    differences: Float[np.ndarray, "layer position width"]
    selection: Selection

    @property
    def choice(self) -> Candidate:
        """The chosen layer and position."""
        return self.selection.chosen

    @property
    def unit(self) -> Float[np.ndarray, " width"]:
        """The chosen direction, length one."""
        vector = self.differences[self.choice.layer, self.choice.position]
        unit: Float[np.ndarray, " width"] = vector / np.linalg.norm(vector)
        return unit

    def gap(self, layer: int) -> float:
        """Distance of the class means at a layer, at the chosen position."""
        return float(np.linalg.norm(self.differences[layer, self.choice.position]))


def refusal(
    base: LanguageModel,
    post: LanguageModel,
    requests: ContrastSet,
    *,
    size: Size = "quick",
    seed: int = 0,
) -> RefusalResult:
    """Compare the refusal directions of two models on harmful and harmless `requests` (with splits).

    A model with a chat template is asked through it, one without through the plain rendering; the result says which.
    Answers are scored in memory and kept nowhere.

    Returns:
        The result; its `artefacts()` are the two `Direction`s (every layer, at the chosen position).

    Raises:
        DatasetError: the requests have no splits, or fewer than eight of a kind in one.
    """
    amount = _AMOUNTS[size]
    splits = _splits(requests, amount, seed)
    missing: dict[str, str] = {}
    subjects = [
        _subject(name, model, splits, amount, seed, missing)
        for name, model in (("base", base), ("post", post))
    ]
    plain = {each.name: _unsteered(each) for each in subjects}
    outcomes = [
        outcome(each.name, kind, "none", "none", plain[each.name][kind], seed=seed)
        for each in subjects
        for kind in ("harmful", "harmless")
    ]
    separates = {name: _separates(verdicts) for name, verdicts in plain.items()}
    result = RefusalResult(
        status="not identified",
        summary=[],
        setting=_setting(subjects, splits, requests, size, seed),
        separates=separates,
        outcomes=tuple(outcomes),
        choices={},
        missing=missing,
    )
    if separates["post"]:
        result = _with_directions(result, subjects, plain, amount, seed, requests.hash)
    summary = {"summary": sentences(result), "headline": headline(result)}
    return result.model_copy(update=summary).with_artefacts(result.artefacts())


# -- private: the parts, in the order they are called --


def _splits(requests: ContrastSet, amount: _Amount, seed: int) -> dict[str, ContrastSet]:
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


def _subject(
    name: str,
    model: LanguageModel,
    splits: Mapping[str, ContrastSet],
    amount: _Amount,
    seed: int,
    missing: dict[str, str],
) -> _Subject:
    def rendered(part: ContrastSet) -> Split:
        kinds = (
            [model.instruction_prompt(text) for text in texts] for texts in (part.positive, part.negative)
        )
        return Split(*kinds)

    train, val, test = (rendered(splits[part]) for part in ("train", "val", "test"))
    tokens = refusal_tokens(model, val.harmful[0])
    if not tokens:
        missing[f"tokens {name}"] = (
            f"No token of the {name} model begins a refusal as a whole word, so its log-odds are missing and its layer "
            "was chosen by separation."
        )
    judge = Judge.of(model, val.prompts, list(tokens), seed)
    words = tuple(dict.fromkeys(tokens.values()))
    return _Subject(name, model, train, val, test, judge, words, amount.scores)


def _unsteered(subject: _Subject) -> dict[str, Verdicts]:
    return {
        "harmful": subject.judge.verdicts(subject.test.harmful),
        "harmless": subject.judge.verdicts(subject.test.harmless),
    }


def _separates(verdicts: Mapping[str, Verdicts]) -> bool:
    """Whether harmful prompts are refused more often than harmless ones, beyond chance."""
    shares = [proportion(verdicts[kind].refused) for kind in ("harmful", "harmless")]
    return difference(*shares).low > 0


def _setting(
    subjects: Sequence[_Subject],
    splits: Mapping[str, ContrastSet],
    requests: ContrastSet,
    size: str,
    seed: int,
) -> Setting:
    rendering = {"chat": "its chat template", "plain": "plain User:/Assistant: rendering"}
    return Setting(
        size=size,
        seed=seed,
        models={each.name: each.model.name for each in subjects},
        templates={each.name: rendering[each.test.harmful[0].template] for each in subjects},
        refusal_tokens={each.name: each.words for each in subjects},
        train=len(splits["train"].positive),
        val=len(splits["val"].positive),
        test=len(splits["test"].positive),
        new_tokens=NEW_TOKENS,
        kinds=(requests.positive_name, requests.negative_name),
    )


def _with_directions(
    result: RefusalResult,
    subjects: Sequence[_Subject],
    plain: Mapping[str, Mapping[str, Verdicts]],
    amount: _Amount,
    seed: int,
    data: str,
) -> RefusalResult:
    """The result with directions, their effects and cosines."""
    found = {each.name: _find(each) for each in subjects}
    missing = dict(result.missing)
    base, post = (each.model for each in subjects)
    crossed = (base.d_model, base.n_layers) == (post.d_model, post.n_layers)
    if not crossed:
        missing["comparison"] = (
            f"The models differ in shape (width {base.d_model} and {post.d_model}, {base.n_layers} and {post.n_layers} "
            "layers), so cosines and the effect of one model's direction in the other were not run."
        )
    strength = _choose_strength(subjects, found, amount)
    outcomes = list(result.outcomes)
    for each in subjects:
        sources = [name for name in found if crossed or name == each.name]
        outcomes += _effects(each, found, sources, plain[each.name], strength, amount, seed)
    own, plainly = _agreements(subjects, found, seed) if crossed else ((), ())
    filled = result.model_copy(
        update={
            "outcomes": tuple(outcomes),
            "choices": {name: one.selection for name, one in found.items()},
            "setting": result.setting.model_copy(update={"strength": strength}),
            "own": own,
            "plain": plainly,
            "missing": missing,
        }
    )
    clear = any(filled.above_control("post", kind, "post") for kind in ("ablation", "addition"))
    directions = {
        f"refusal_{each.name}": _direction(each, found[each.name].choice, data) for each in subjects
    }
    return filled.model_copy(update={"status": "done" if clear else "not identified"}).with_artefacts(
        directions if clear else {}
    )


def _find(subject: _Subject) -> _Found:
    reading = read(subject.model, subject.train, progress=f"reading requests in {subject.name}")
    refuses = _separates(
        {
            "harmful": subject.judge.verdicts(subject.val.harmful),
            "harmless": subject.judge.verdicts(subject.val.harmless),
        }
    )
    chosen = choose(
        subject.judge,
        subject.train,
        subject.val,
        refuses=refuses,
        words=subject.words,
        scores=subject.scores,
        reading=reading,
    )
    return _Found(reading, reading.differences(), chosen)


def _choose_strength(subjects: Sequence[_Subject], found: Mapping[str, _Found], amount: _Amount) -> float:
    """The smallest strength with the most coherent refusals of harmless validation prompts, over both models."""
    scores = []
    for strength in track(amount.strengths, "choosing the strength of addition"):
        shares = []
        for each in subjects:
            own = found[each.name]
            edit = Add(
                direction_at(each.model, own.unit * own.gap(own.choice.layer), own.choice.layer),
                strength=strength,
            )
            verdicts = each.judge.verdicts(each.val.harmless, [edit])
            shares.append(float((verdicts.refused & ~verdicts.gibberish).mean()))
        scores.append(np.mean(shares))
    return amount.strengths[int(np.argmax(scores))]


def _effects(
    target: _Subject,
    found: Mapping[str, _Found],
    sources: Sequence[str],
    plain: Mapping[str, Verdicts],
    strength: float,
    amount: _Amount,
    seed: int,
) -> list[Outcome]:
    """Ablation on harmful and addition on harmless prompts: every source's direction, then random ones."""
    own = found[target.name]

    def ablation(unit: Float[np.ndarray, " width"], layer: int) -> Edit:
        return removal(target.model, unit)

    def addition(unit: Float[np.ndarray, " width"], layer: int) -> Edit:
        return Add(direction_at(target.model, unit * own.gap(layer), layer), strength=strength)

    units = random_units(own.unit.shape[0], amount.randoms, seed)
    made: list[Outcome] = []
    kinds: tuple[tuple[Intervention, Callable[..., Edit], str], ...] = (
        ("ablation", ablation, "harmful"),
        ("addition", addition, "harmless"),
    )
    for name, edit, kind in kinds:
        prompts = target.test.harmful if kind == "harmful" else target.test.harmless
        for source in sources:
            chosen = found[source]
            after = target.judge.verdicts(prompts, [edit(chosen.unit, chosen.choice.layer)])
            made.append(outcome(target.name, kind, name, source, after, plain[kind], seed=seed))
        each = max(2, round(amount.random_share * len(prompts)))
        rows = [(np.arange(each) + draw * each) % len(prompts) for draw in range(len(units))]
        parts = [
            target.judge.verdicts([prompts[row] for row in some], [edit(unit, own.choice.layer)])
            for some, unit in track(
                list(zip(rows, units, strict=True)), f"random {name} in {target.name}", len(units)
            )
        ]
        made.append(
            outcome(
                target.name,
                kind,
                name,
                "random",
                joined(parts),
                picked(plain[kind], np.concatenate(rows)),
                clusters=np.repeat(np.arange(len(units)), each),
                seed=seed,
            )
        )
    return made


def _agreements(
    subjects: Sequence[_Subject], found: Mapping[str, _Found], seed: int
) -> tuple[tuple[Agreement, ...], tuple[Agreement, ...]]:
    """Cosines by layer: each model in its own template at its chosen position; both in the plain one, last token."""
    own, plain = [], []
    for each in subjects:
        one = found[each.name]
        own.append(one.reading.states[:, :, one.choice.position])
        plain.append(_plain_states(each, one))
    made = []
    for base, post in (own, plain):
        rows = base.shape[1]
        made.append(
            tuple(
                agreement_by_layer(
                    base,
                    post,
                    found["base"].reading.labels,
                    clusters=np.arange(rows),
                    strata=np.zeros(rows, dtype=np.int64),
                    layers=range(len(base)),
                    seed=seed,
                )
            )
        )
    return made[0], made[1]


def _plain_states(subject: _Subject, found: _Found) -> Float[np.ndarray, "layer prompt width"]:
    """States of the training requests in the plain rendering, last token (read before where that is the own one)."""
    if subject.train.harmful[0].template == "plain":
        return found.reading.states[:, :, -1]

    def plainly(prompts: Sequence[Prompt]) -> list[Prompt]:
        texts = (prompt.text[slice(*prompt.spans["instruction"])] for prompt in prompts)
        return [subject.model.instruction_prompt(text, template="plain") for text in texts]

    split = Split(plainly(subject.train.harmful), plainly(subject.train.harmless))
    return read(subject.model, split, Last()).states[:, :, -1]


def _direction(subject: _Subject, choice: Candidate, data: str) -> Direction:
    """The direction at every layer, at the chosen position."""
    sites, position = subject.model.sites("resid_post"), Index(choice.position)
    return fit_direction(
        DifferenceInMeans(),
        capture(subject.model, subject.train.prompts, sites, positions=position),
        subject.train.labels.tolist(),
        model=subject.model,
        dataset_hash=data,
        position=position,
    )
