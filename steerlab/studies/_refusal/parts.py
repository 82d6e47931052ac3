"""The parts of the refusal study: a model with its prompts, its direction, what the direction does and what it costs.

The presets differ in the rule and site of the choice, in how refusal is judged, and in where a direction is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float

from steerlab.activations import capture
from steerlab.datasets import StatementSet
from steerlab.directions import Direction, fit_direction
from steerlab.errors import SteerlabError
from steerlab.models import Edit, Index, LanguageModel, Prompt, Site
from steerlab.readouts.agreement import Agreement, Stack, agreement_by_layer, random_units
from steerlab.readouts.refusals import NEW_TOKENS, Judge, Phrases, Verdicts, tells_apart
from steerlab.readouts.requests import Reading, Split, direction_at, read
from steerlab.registry import Preset
from steerlab.selection.select import Candidate, Rule, Selection, choose
from steerlab.steering import Ablate, Add
from steerlab.studies._refusal.outcomes import joined, outcome, picked
from steerlab.studies._refusal.place import Cell, Projection, grid, projections
from steerlab.studies._refusal.price import InterventionPrice, prices
from steerlab.studies._refusal.result import Intervention, Outcome


@dataclass(frozen=True)
class Method:
    """What differs between the presets: the rule and site of the choice, how refusal is judged, where is added."""

    rule: Rule
    site: str
    phrases: Phrases
    new_tokens: int
    points: tuple[str, ...]


METHODS: dict[Preset, Method] = {
    "corrected": Method("corrected", "resid_post", "any", NEW_TOKENS, ("resid_post",)),
    "published": Method("published", "resid_pre", "start", 16, ("resid_pre", "resid_mid", "resid_post")),
}


@dataclass(frozen=True)
class Amount:
    """How much is asked: prompts of each kind and split, doses, random directions, texts and questions."""

    train: int
    val: int
    test: int
    strengths: tuple[float, ...]
    randoms: int
    random_share: float
    texts: int
    task: int
    priced_randoms: int
    scores: Literal["needed", "all"]


@dataclass(frozen=True)
class Subject:
    """One model with its rendered prompts, its judge, and after selection its directions."""

    name: str
    model: LanguageModel
    train: Split
    val: Split
    test: Split
    judge: Judge
    words: tuple[str, ...]
    method: Method


@dataclass(frozen=True)
class Found:
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
        direction = self.selection.direction
        vector = direction[direction.sites[0]].double().numpy()
        unit: Float[np.ndarray, " width"] = vector / np.linalg.norm(vector)
        return unit

    def gap(self, layer: int) -> float:
        """Distance of the class means at a layer, at the chosen position."""
        return float(np.linalg.norm(self.differences[layer, self.choice.position]))


def find(subject: Subject, scores: Literal["needed", "all"], missing: dict[str, str] | None) -> Found:
    """Read the training requests and choose the direction on the validation ones.

    Where the published rule has nothing to go by, the corrected one chooses and `missing` says why.

    Raises:
        SteerlabError: the published rule chooses nothing, and `missing` is None.
    """
    method = subject.method
    bar = f"reading requests in {subject.name}"
    reading = read(subject.model, subject.train, progress=bar, site=method.site)
    val = subject.val
    refuses = tells_apart(subject.judge.verdicts(val.harmful), subject.judge.verdicts(val.harmless))

    def chosen(rule: Rule) -> Selection:
        return choose(
            subject.judge,
            subject.train,
            subject.val,
            refuses=refuses,
            words=subject.words,
            rule=rule,
            site=method.site,
            scores=scores,
            reading=reading,
        )

    if method.rule == "published":
        # a model that does not refuse has no prompt on the side that the published filter keeps
        why = "the model does not refuse" if not refuses else ""
        try:
            if refuses:
                return Found(reading, reading.differences(), chosen("published"))
        except SteerlabError as error:
            if missing is None:
                raise
            why = str(error)
        if missing is None:
            raise SteerlabError(f"The published rule chooses nothing in the {subject.name} model: {why}.")
        missing[f"rule {subject.name}"] = (
            f"The published rule chooses nothing in the {subject.name} model, so the corrected one chose: {why}"
        ).rstrip(".") + "."
    return Found(reading, reading.differences(), chosen("corrected"))


def effects(
    target: Subject,
    directions: Mapping[str, Found],
    sources: Sequence[str],
    plain: Mapping[str, Verdicts],
    strength: float,
    amount: Amount,
    seed: int,
) -> list[Outcome]:
    """Ablation on harmful and addition on harmless prompts: every source's direction, then random ones."""
    own = directions[target.name]

    def ablation(unit: Float[np.ndarray, " width"], layer: int) -> Edit:
        return removed(own, unit)

    def addition(unit: Float[np.ndarray, " width"], layer: int) -> Edit:
        return added(target, unit * own.gap(layer), layer, strength)

    rows, judged = list[Outcome](), target.judge.decides is not None
    kinds: tuple[tuple[Intervention, Callable[..., Edit], str], ...] = (
        ("ablation", ablation, "harmful"),
        ("addition", addition, "harmless"),
    )
    for name, edit, kind in kinds:
        prompts = target.test.harmful if kind == "harmful" else target.test.harmless
        for source in sources:
            chosen = directions[source]
            after = target.judge.verdicts(prompts, [edit(chosen.unit, chosen.choice.layer)])
            rows.append(
                outcome(target.name, kind, name, source, after, plain[kind], judged=judged, seed=seed)
            )
        if name == "ablation":
            rows += _beside(target, own, plain, seed)
        # An added direction is as long as the gap at its layer, so its control is added at that layer as well.
        at = {
            random_name(name, directions, target.name, source): directions[source].choice.layer
            for source in sources
        }
        for control, layer in at.items():
            rows.append(_random(target, name, edit, kind, control, layer, plain[kind], amount, seed))
    return rows


def _beside(target: Subject, own: Found, plain: Mapping[str, Verdicts], seed: int) -> list[Outcome]:
    """What ablating its own direction leaves of harmless answers, and the published way where another was chosen."""
    edits = [("harmless", target.name, removed(own, own.unit))]
    if not own.choice.as_published:
        edits.append(("harmful", as_published(target.name), cast(Edit, Ablate(own.selection.direction))))
    prompts = dict(zip(("harmful", "harmless"), target.test.kinds, strict=True))
    judged = target.judge.decides is not None
    return [
        outcome(
            target.name,
            kind,
            "ablation",
            direction,
            target.judge.verdicts(prompts[kind], [edit]),
            plain[kind],
            judged=judged,
            seed=seed,
        )
        for kind, direction, edit in edits
    ]


def _random(
    target: Subject,
    name: Intervention,
    edit: Callable[..., Edit],
    kind: str,
    control: str,
    layer: int,
    plain: Verdicts,
    amount: Amount,
    seed: int,
) -> Outcome:
    """Random directions, each on some of the prompts in turn."""
    prompts = target.test.harmful if kind == "harmful" else target.test.harmless
    units = random_units(target.model.d_model, amount.randoms, seed)
    size = max(2, round(amount.random_share * len(prompts)))
    rows = [(np.arange(size) + draw * size) % len(prompts) for draw in range(len(units))]
    parts = target.judge.verdicts_of_each(
        [[prompts[row] for row in chosen] for chosen in rows], [edit(unit, layer) for unit in units]
    )
    return outcome(
        target.name,
        kind,
        name,
        control,
        joined(parts),
        picked(plain, np.concatenate(rows)),
        clusters=np.repeat(np.arange(len(units)), size),
        judged=target.judge.decides is not None,
        seed=seed,
    )


def random_name(name: str, directions: Mapping[str, Found], target: str, source: str) -> str:
    """Name of the random control of a source's direction in a target: it is added at the source's layer."""
    layers = directions[source].choice.layer, directions[target].choice.layer
    return "random" if name == "ablation" or layers[0] == layers[1] else f"random at layer {layers[0]}"


def as_published(name: str) -> str:
    """Name of a model's own direction removed everywhere toward 0 where another way was chosen."""
    return f"{name}, as published"


def removed(own: Found, unit: Float[np.ndarray, " width"]) -> Edit:
    """Ablation of a vector in the way that was chosen for a model, with that model's means."""
    direction = own.selection.direction
    return cast(
        Edit,
        own.selection.ablation(
            replace(direction, vectors={site: torch.from_numpy(unit) for site in direction.sites})
        ),
    )


def added(subject: Subject, vector: Float[np.ndarray, " width"], layer: int, strength: float) -> Edit:
    """Addition at the points of the preset: once at the layer's output, or at its three points as published."""
    sites = [
        Site(name, layer) for name in subject.method.points if subject.model.anatomy.has(Site(name, layer))
    ]
    return cast(
        Edit, Add(direction_at(subject.model, vector, layer), sites=sites, strength=strength, unit="raw")
    )


def agreements(
    subjects: Sequence[Subject], directions: Mapping[str, Found], seed: int
) -> tuple[tuple[Agreement, ...], tuple[Agreement, ...], tuple[Cell, ...]]:
    """Cosines by layer, each model in its own template at its chosen position and both in the plain one at the last
    token; and over all layers and positions, in both kinds of templates."""
    own = {subject.name: directions[subject.name].reading for subject in subjects}
    plain = {subject.name: _plain_reading(subject, own[subject.name]) for subject in subjects}
    rows = own["base"].states.shape[1]

    def cosines(base: Stack, post: Stack) -> tuple[Agreement, ...]:
        by_layer = agreement_by_layer(
            base,
            post,
            own["base"].labels,
            clusters=np.arange(rows),
            strata=np.zeros(rows, dtype=np.int64),
            layers=range(len(base)),
            seed=seed,
        )
        return tuple(by_layer)

    at = {name: reading.states[:, :, directions[name].choice.position] for name, reading in own.items()}
    last = {name: reading.states[:, :, -1] for name, reading in plain.items()}
    cells = grid("plain", plain, seed=seed)
    if any(subject.train.harmful[0].template != "plain" for subject in subjects):
        cells = (*grid("own", own, seed=seed), *cells)
    return cosines(at["base"], at["post"]), cosines(last["base"], last["post"]), cells


def _plain_reading(subject: Subject, own: Reading) -> Reading:
    """The training requests in the plain rendering (read before where that is the own one)."""
    if subject.train.harmful[0].template == "plain":
        return own

    def plainly(prompts: Sequence[Prompt]) -> list[Prompt]:
        texts = (prompt.text[slice(*prompt.spans["instruction"])] for prompt in prompts)
        return [subject.model.instruction_prompt(text, template="plain") for text in texts]

    split = Split(plainly(subject.train.harmful), plainly(subject.train.harmless))
    return read(subject.model, split, site=subject.method.site)


def points_of(subjects: Sequence[Subject], directions: Mapping[str, Found]) -> tuple[Projection, ...]:
    """Test prompts along each model's chosen direction."""
    along = {}
    for subject in subjects:
        direction, place = directions[subject.name], directions[subject.name].choice
        train = direction.reading.states[place.layer, :, place.position].astype(np.float64) @ direction.unit
        middle = (train[direction.reading.labels].mean() + train[~direction.reading.labels].mean()) / 2
        test = read(subject.model, subject.test, Index(place.position), site=subject.method.site).states[
            place.layer, :, -1
        ]
        along[subject.name] = (test.astype(np.float64) @ direction.unit - middle) / direction.gap(place.layer)
    return projections(along, subjects[0].test.labels.tolist())


def prices_of(
    subject: Subject,
    direction: Found,
    strength: float,
    amount: Amount,
    texts: Sequence[str],
    statements: StatementSet | None,
    seed: int,
    missing: dict[str, str],
) -> tuple[InterventionPrice, ...]:
    layer = direction.choice.layer
    units = random_units(len(direction.unit), amount.priced_randoms, seed)

    def edits(unit: Float[np.ndarray, " width"]) -> dict[str, Edit]:
        return {
            "ablation": removed(direction, unit),
            "addition": added(subject, unit * direction.gap(layer), layer, strength),
        }

    random = [edits(unit) for unit in units]
    return prices(
        subject.name,
        subject.model,
        edits(direction.unit),
        {kind: [draw[kind] for draw in random] for kind in ("ablation", "addition")},
        texts=texts[: amount.texts],
        harmless=subject.test.harmless,
        statements=statements,
        rows=amount.task,
        seed=seed,
        missing=missing,
    )


def direction_of(subject: Subject, chosen: Found, data: str) -> Direction:
    """The direction at every layer where the classes differ, at the chosen position."""
    place = chosen.choice.position
    sites = [
        site
        for layer, site in enumerate(subject.model.sites(subject.method.site))
        if np.linalg.norm(chosen.differences[layer, place])
        > 0  # template tokens are equal before the first block
    ]
    made = fit_direction(
        capture(subject.model, subject.train.prompts, sites, positions=Index(place)),
        subject.train.labels.tolist(),
        dataset_hash=data,
        hold_out=False,
    )
    return replace(made, best=subject.model.sites(subject.method.site)[chosen.choice.layer])
