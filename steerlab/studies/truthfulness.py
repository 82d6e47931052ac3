"""Do a base model and its post-trained version write truth in the same direction?

Each model reads bare statements (no template in either); at the last token of each, at every layer, the direction is
the difference between the mean states of true and of false statements, topics centred apart. Asked are: the cosine of
the two directions beside its ceiling, whether one model's probe reads the other's states on held-out topics, and
whether adding either direction turns the answer of either model after "This statement is:". Sources: Marks and Tegmark
(2023), "The geometry of truth"; Du et al. (2025), "How post-training reshapes LLMs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from steerlab.activations import Activations, capture
from steerlab.datasets import StatementSet
from steerlab.directions import DifferenceInMeans, Direction, fit_direction
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Last
from steerlab.studies._answers import (
    Examinee,
    Labels,
    Steering,
    SteeringSize,
    choose_shots,
    label_accuracy,
    steer_all,
)
from steerlab.studies._contrast import Agreement, Stack, agreement_by_layer, centre
from steerlab.studies._probes import accuracy_by_layer, choose_layer, held_out_projections, transfer
from steerlab.studies._prompts import Plan, answer_tokens, plan
from steerlab.studies._truthfulness_result import Point, Setting, TruthfulnessResult, headline, sentences

Size = Literal["quick", "full"]

__all__ = ["Setting", "TruthfulnessResult", "truthfulness"]


@dataclass(frozen=True)
class _Amount:
    per_topic: int
    held_out: int | None
    questions: int
    shots: tuple[int, ...]
    steering: SteeringSize


_AMOUNTS: dict[Size, _Amount] = {
    "quick": _Amount(64, 3, 96, (4, 0), SteeringSize(36, 16, windows=4, strengths=(1.0, 2.0), randoms=10)),
    "full": _Amount(
        400, None, 200, (4, 2, 0), SteeringSize(80, 48, windows=8, strengths=(0.5, 1.0, 2.0, 4.0), randoms=20)
    ),
}


def truthfulness(
    base: LanguageModel,
    post: LanguageModel,
    statements: StatementSet,
    *,
    size: Size = "quick",
    seed: int = 0,
    answers: tuple[str, str] = (" TRUE", " FALSE"),
) -> TruthfulnessResult:
    """Compare the truth directions of two models on labelled `statements`.

    Args:
        size: "quick" holds three topics out once, "full" every topic in turn and more of everything.
        answers: the words for true and false after the question, each a single token (with its space).

    Returns:
        The result; its `artefacts()` are the two `Direction`s (every layer, all statements). What this pair cannot
        take (other widths, answers of several tokens) is left out and said in `missing`.

    Raises:
        DatasetError: too few statements to hold any out.
    """
    models = {"base": base, "post": post}
    amount = _AMOUNTS[size]
    used = plan(statements, per_topic=amount.per_topic, held_out=amount.held_out, seed=seed)
    read = {name: _read(model, used, name) for name, model in models.items()}
    stacks = {name: np.stack([one[site].numpy() for site in one.sites]) for name, one in read.items()}
    missing: dict[str, str] = {}
    comparable = _comparable(models, missing)

    places = {
        name: [choose_layer(stack, used, fold) for fold in used.folds] for name, stack in stacks.items()
    }
    layers = {name: tuple(range(len(stack))) for name, stack in stacks.items()}
    own = {
        name: accuracy_by_layer(name, stack, used, layers=layers[name], seed=seed)
        for name, stack in stacks.items()
    }
    groups = [stacks] if comparable else [{name: stack} for name, stack in stacks.items()]
    cells = [
        cell
        for group in groups
        for cell in transfer(group, used, places, layers=layers[next(iter(group))], seed=seed)
    ]
    found = {
        cell.probe: cell.above_chance
        for cell in cells
        if cell.probe == cell.states and cell.recentred and cell.statements == "all"
    }
    labels, steering, shots = _answers(
        models, stacks, used, answers, found, comparable, amount, seed, missing
    )
    result = TruthfulnessResult(
        status="done" if any(found.values()) else "not identified",
        summary=[],
        setting=Setting(
            size=size,
            seed=seed,
            models={name: model.name for name, model in models.items()},
            statements=len(used.statements),
            topics=tuple(np.unique(used.groups).tolist()),
            held_out=tuple(fold.test for fold in used.folds),
            by_topic=used.by_topic,
            answers=answers,
            shots=shots,
        ),
        chosen={name: tuple(chosen) for name, chosen in places.items()},
        by_layer=tuple(row for rows in own.values() for row in rows),
        transfer=tuple(cell for cell in cells if cell.probe == cell.states or found[cell.probe]),
        agreement=_agreement(stacks, used, seed) if comparable and all(found.values()) else (),
        labels=labels,
        steering=steering,
        points=_points({name: stack for name, stack in stacks.items() if found[name]}, used, places),
        missing=missing,
    )
    result = result.model_copy(update={"summary": sentences(result), "headline": headline(result)})
    return result.with_artefacts(
        {f"truthfulness_{name}": _direction(read[name], models[name], used) for name in models if found[name]}
    )


# -- private, in the order they are called --


def _read(model: LanguageModel, used: Plan, name: str) -> Activations:
    """States of every statement's last token at every layer."""
    sites = model.sites("resid_post")
    return capture(
        model, used.statements.texts, sites, positions=Last(), progress=f"reading statements in {name}"
    )


def _comparable(models: Mapping[str, LanguageModel], missing: dict[str, str]) -> bool:
    """Whether one model's directions fit the other; says why not in `missing`."""
    base, post = models["base"], models["post"]
    if (base.d_model, base.n_layers) == (post.d_model, post.n_layers):
        return True
    missing["comparison"] = (
        f"The models differ in shape (width {base.d_model} and {post.d_model}, {base.n_layers} and {post.n_layers} "
        "layers), so cosines and the transfer of probes and steering between them were not run; each was studied alone."
    )
    return False


def _answers(
    models: Mapping[str, LanguageModel],
    stacks: Mapping[str, Stack],
    used: Plan,
    words: tuple[str, str],
    found: Mapping[str, bool],
    comparable: bool,
    amount: _Amount,
    seed: int,
    missing: dict[str, str],
) -> tuple[tuple[Labels, ...], tuple[Steering, ...], int | None]:
    """The models' own labels, and the steering of those that label above chance and have a direction."""
    try:
        examinees = [
            Examinee(name, model, answer_tokens(model, words), stacks[name]) for name, model in models.items()
        ]
        shots = choose_shots(examinees, used, amount.shots, words, 24, seed)
        labels = []
        for each in examinees:
            rows = np.concatenate([used.balanced(fold.test, amount.questions, seed) for fold in used.folds])
            log_odds = each.answers(used, rows, shots, words)[:, 1]
            labels += label_accuracy(each.name, log_odds, used, rows, shots)
    except SteerlabError as error:
        missing["answers"] = f"The models were not asked for their own labels, and not steered: {error}"
        return (), (), None
    able = {one.model for one in labels if one.statements == "all" and one.above_chance}
    chosen = [each for each in examinees if each.name in able and found[each.name]]
    for name in found:
        if not found[name] or name not in able:
            why = (
                "its truth direction is not identified"
                if not found[name]
                else "it labels statements at chance"
            )
            missing[f"steering {name}"] = f"The {name} model's answers were not steered: {why}."
    if not chosen:
        return tuple(labels), (), shots
    steering = steer_all(
        chosen, used, shots=shots, words=words, size=amount.steering, crossed=comparable, seed=seed
    )
    return tuple(labels), tuple(steering), shots


def _agreement(stacks: Mapping[str, Stack], used: Plan, seed: int) -> tuple[Agreement, ...]:
    centred = {
        name: np.stack([centre(states, used.groups) for states in stack]) for name, stack in stacks.items()
    }
    return tuple(
        agreement_by_layer(
            centred["base"],
            centred["post"],
            used.labels,
            clusters=used.clusters,
            strata=used.groups,
            layers=range(len(centred["base"])),
            seed=seed,
        )
    )


def _points(stacks: Mapping[str, Stack], used: Plan, places: Mapping[str, list[int]]) -> tuple[Point, ...]:
    """Held-out statements along the directions of the models that have one."""
    lying = {name: held_out_projections(stack, used, places[name]) for name, stack in stacks.items()}
    if not lying:
        return ()
    rows = np.flatnonzero(~np.isnan(next(iter(lying.values()))))
    return tuple(
        Point(
            topic=str(used.groups[row]),
            true=bool(used.labels[row]),
            cluster=int(used.clusters[row]),
            places={name: round(float(along[row]), 4) for name, along in lying.items()},
        )
        for row in rows
    )


def _direction(read: Activations, model: LanguageModel, used: Plan) -> Direction:
    """The direction of all statements at every layer, topics moved onto their common mean."""
    states = {}
    for site, rows in read.states.items():
        raw = rows.numpy()
        states[site] = torch.from_numpy(centre(raw, used.groups) + raw.mean(axis=0, dtype=np.float64)).float()
    return fit_direction(
        DifferenceInMeans(),
        replace(read, states=states),
        used.labels.tolist(),
        model=model,
        dataset_hash=used.statements.hash,
        position=Last(),
    )
