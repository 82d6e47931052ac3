"""What a model answers about a statement, and whether a direction changes the answer.

PD = P(TRUE) - P(FALSE) after "... This statement is:". Steering adds +v (false statements) or -v (true ones) at the
statement's last word token and full stop, at every layer of a window. v has the length strength x class gap of the
model that is steered, whichever model the direction comes from, and so have the random directions of the control.

Two normalisations of the shift are in use, both given: "to certainty" divides by the way to PD = -1 or 1 (Du et al.,
2025), "to the other class" by the way to the mean PD of the unsteered statements of the other class (Marks and
Tegmark, 2023). 0 is no effect, 1 the whole way. The window and the strength are chosen on a training topic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from steerlab.directions import Direction
from steerlab.models import LanguageModel, Site, Span
from steerlab.progress import track
from steerlab.statistics import Estimate, bootstrap, proportion
from steerlab.steering import Add
from steerlab.studies._contrast import Stack, random_units
from steerlab.studies._probes import fit_probe
from steerlab.studies._prompts import ANSWER_SITE, Plan, question

Normalisation = Literal["to certainty", "to the other class"]
Vectors = Float[np.ndarray, "layer width"]


class Labels(BaseModel):
    """How well a model labels held-out statements itself. chance: always giving the more frequent answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    shots: int
    statements: str
    accuracy: Estimate
    chance: float

    @property
    def above_chance(self) -> bool:
        """True when the interval lies above the more frequent answer's share."""
        return self.accuracy.low > self.chance


class Steering(BaseModel):
    """The share of the way to the other answer that a direction moves a model, beside random directions.

    layers, strength: the window (first and last layer) and the dose in class gaps, one for each fold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    direction: str
    model: str
    normalisation: Normalisation
    layers: tuple[tuple[int, int], ...]
    strength: tuple[float, ...]
    true_to_false: Estimate
    false_to_true: Estimate
    mean: Estimate
    control: Estimate

    @property
    def above_control(self) -> bool:
        """True when the interval lies above zero and above the random directions."""
        return self.mean.low > max(0.0, self.control.high)


@dataclass(frozen=True)
class Dose:
    """Layers `first`..`last` (both included) and the strength in class gaps."""

    first: int
    last: int
    strength: float


@dataclass(frozen=True)
class Examinee:
    """A model with what its answers need: the name in the study, its answer tokens and its states."""

    name: str
    model: LanguageModel
    tokens: tuple[int, int]
    states: Stack

    def answers(
        self, plan: Plan, rows: NDArray[np.int64], shots: int, words: tuple[str, str]
    ) -> Float[np.ndarray, "row 2"]:
        """[row, (PD, log-odds of the true answer)] of some rows of the plan."""
        prompts = [
            question(
                plan.statements[row], plan.examples[str(plan.groups[row])][:shots], words, order=1 + int(row)
            )
            for row in rows.tolist()
        ]
        logits = self.model.logits(prompts).double()
        true, false = self.tokens
        chances = logits.softmax(dim=-1)
        both = torch.stack([chances[:, true] - chances[:, false], logits[:, true] - logits[:, false]], dim=1)
        found: Float[np.ndarray, "row 2"] = both.cpu().numpy()
        return found

    def steered(
        self,
        plan: Plan,
        rows: NDArray[np.int64],
        shots: int,
        words: tuple[str, str],
        vectors: Vectors,
        dose: Dose,
    ) -> Float[np.ndarray, " row"]:
        """PD with `vectors` subtracted from true statements and added to false ones."""
        pd = np.empty(len(rows))
        direction = Direction(
            vectors={
                Site("resid_post", layer): torch.from_numpy(vectors[layer]).float()
                for layer in range(dose.first, dose.last + 1)
            },
            model_name=self.model.name,
            fingerprint=self.model.fingerprint,
        )
        for label, sign in ((True, -1.0), (False, 1.0)):
            of_class = plan.labels[rows] == label
            edit = Add(direction, strength=sign * dose.strength, unit="raw", positions=Span(ANSWER_SITE))
            with self.model.steering(edit):
                pd[of_class] = self.answers(plan, rows[of_class], shots, words)[:, 0]
        return pd

    def directions(self, plan: Plan, groups: Sequence[str]) -> Vectors:
        """The truth direction of every layer, fitted on some groups; its length is the class gap."""
        rows = plan.rows(groups)
        return np.stack([fit_probe(states, plan, rows).directions[0] for states in self.states])


def choose_shots(
    examinees: Sequence[Examinee],
    plan: Plan,
    options: Sequence[int],
    words: tuple[str, str],
    n: int,
    seed: int,
) -> int:
    """The number of labelled lines with which the models label statements of training topics best."""
    rows = plan.balanced(plan.folds[0].train, n, seed)

    def accuracy(shots: int) -> float:
        right = [
            (each.answers(plan, rows, shots, words)[:, 1] > 0) == plan.labels[rows] for each in examinees
        ]
        return float(np.mean(right))

    return max(options, key=accuracy)


def label_accuracy(
    name: str, log_odds: Float[np.ndarray, " row"], plan: Plan, rows: NDArray[np.int64], shots: int
) -> list[Labels]:
    """`Labels` of all rows and, where there are both, of affirmed and of negated ones."""
    polarity = np.array(plan.statements.polarity)[rows]
    kinds = [
        ("all", np.ones(len(rows), dtype=bool)),
        ("affirmed", polarity == 1),
        ("negated", polarity == -1),
    ]
    if not 0 < int((polarity == 1).sum()) < len(rows):
        kinds = kinds[:1]
    right = (log_odds > 0) == plan.labels[rows]
    found = []
    for kind, chosen in kinds:
        share = float(plan.labels[rows][chosen].mean())
        found.append(
            Labels(
                model=name,
                shots=shots,
                statements=kind,
                accuracy=proportion(right[chosen], clusters=plan.clusters[rows][chosen]),
                chance=max(share, 1 - share),
            )
        )
    return found


@dataclass(frozen=True)
class SteeringSize:
    """How much steering is done: rows of the test and of the choice of dose, strengths, random directions."""

    rows: int
    choice_rows: int
    windows: int
    strengths: tuple[float, ...]
    randoms: int


def steer_all(
    examinees: Sequence[Examinee],
    plan: Plan,
    *,
    shots: int,
    words: tuple[str, str],
    size: SteeringSize,
    crossed: bool,
    seed: int,
) -> list[Steering]:
    """Every direction in every model (only its own without `crossed`), with the same window and strength for all."""
    doses = [
        _choose_dose(examinees, plan, number, shots, words, size, seed) for number in range(len(plan.folds))
    ]
    found: list[Steering] = []
    for target in examinees:
        sources = [each for each in examinees if crossed or each is target]
        found += _steer_one(target, sources, plan, doses, shots, words, size, seed)
    return found


# -- private, in the order they are called --


def _choose_dose(
    examinees: Sequence[Examinee],
    plan: Plan,
    fold: int,
    shots: int,
    words: tuple[str, str],
    size: SteeringSize,
    seed: int,
) -> Dose:
    """The window and strength with the largest mean effect of the models' own directions on one training topic."""
    topic, *rest = plan.folds[fold].train
    rows = plan.balanced([topic], size.choice_rows, seed)
    labels = plan.labels[rows]
    options = [
        Dose(first, last, strength)
        for (first, last), strength in product(
            _windows(min(len(each.states) for each in examinees), size.windows), size.strengths
        )
    ]
    effects = np.zeros(len(options))
    for each in examinees:
        before, vectors = each.answers(plan, rows, shots, words)[:, 0], each.directions(plan, rest)
        for number, dose in enumerate(track(options, f"choosing the truth dose in {each.name}")):
            after = each.steered(plan, rows, shots, words, vectors, dose)
            effects[number] += _effect("to certainty")(before, after, labels)
    return options[int(effects.argmax())]


def _windows(n_layers: int, n: int) -> list[tuple[int, int]]:
    """Windows of about a sixth of the depth that end between a sixth and three quarters of it."""
    length = max(1, round(n_layers / 6))
    ends = np.unique(np.linspace(length - 1, max(length - 1, int(0.75 * n_layers)), n).round().astype(int))
    return [(int(end) - length + 1, int(end)) for end in ends]


def _steer_one(
    target: Examinee,
    sources: Sequence[Examinee],
    plan: Plan,
    doses: Sequence[Dose],
    shots: int,
    words: tuple[str, str],
    size: SteeringSize,
    seed: int,
) -> list[Steering]:
    before: list[NDArray[np.float64]] = []
    rows_of: list[NDArray[np.int64]] = []
    after: dict[str, list[NDArray[np.float64]]] = {source.name: [] for source in sources}
    randoms: list[list[NDArray[np.float64]]] = [[] for _ in range(size.randoms)]
    subset: list[NDArray[np.bool_]] = []
    for number, (fold, dose) in enumerate(zip(plan.folds, doses, strict=True)):
        rows = plan.balanced(fold.test, size.rows, seed)
        fewer = np.isin(rows, plan.balanced(fold.test, size.rows // 2, seed))
        own = target.directions(plan, fold.train)
        gaps = np.linalg.norm(own, axis=1, keepdims=True)
        rows_of.append(rows)
        subset.append(fewer)
        before.append(target.answers(plan, rows, shots, words)[:, 0])
        for source in sources:
            vectors = source.directions(plan, fold.train)
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * gaps
            after[source.name].append(target.steered(plan, rows, shots, words, vectors, dose))
        # one random vector for all layers of the window, as alike from layer to layer as a real direction is
        units = random_units(own.shape[1], size.randoms, seed + number)
        for draw, unit in enumerate(track(units, f"random directions in {target.name}", len(units))):
            randoms[draw].append(target.steered(plan, rows[fewer], shots, words, unit * gaps, dose))
    return _summarised(
        target.name,
        plan,
        doses,
        np.concatenate(rows_of),
        np.concatenate(subset),
        np.concatenate(before),
        {name: np.concatenate(parts) for name, parts in after.items()},
        [np.concatenate(parts) for parts in randoms],
        seed,
    )


def _summarised(
    model: str,
    plan: Plan,
    doses: Sequence[Dose],
    rows: NDArray[np.int64],
    fewer: NDArray[np.bool_],
    before: NDArray[np.float64],
    after: dict[str, NDArray[np.float64]],
    randoms: Sequence[NDArray[np.float64]],
    seed: int,
) -> list[Steering]:
    labels, clusters = plan.labels[rows], plan.clusters[rows]
    found = []
    kinds: tuple[Normalisation, ...] = ("to certainty", "to the other class")
    for (name, steered), kind in product(after.items(), kinds):
        parts = {
            part: bootstrap(
                _effect(kind, part), before, steered, labels, clusters=clusters, seed=seed, draws=500
            )
            for part in ("true", "false", "mean")
        }
        null = np.array([_effect(kind)(before[fewer], one, labels[fewer]) for one in randoms])
        found.append(
            Steering(
                direction=name,
                model=model,
                normalisation=kind,
                layers=tuple((dose.first, dose.last) for dose in doses),
                strength=tuple(dose.strength for dose in doses),
                true_to_false=parts["true"],
                false_to_true=parts["false"],
                mean=parts["mean"],
                control=Estimate(
                    value=float(null.mean()),
                    low=float(null.min()),
                    high=float(null.max()),
                    n=len(null),
                    method=f"mean, least and greatest of {len(null)} random directions of the same length",
                ),
            )
        )
    return found


def _effect(kind: Normalisation, part: str = "mean") -> Callable[..., float]:
    """The normalised shift of PD for true statements, for false ones, or the mean of both."""

    def effect(before: NDArray[np.float64], after: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
        true, false = labels.astype(bool), ~labels.astype(bool)
        if not true.any() or not false.any():
            return float("nan")
        start = before[true].mean(), before[false].mean()
        goal = (-1.0, 1.0) if kind == "to certainty" else (start[1], start[0])
        way = [to - at for to, at in zip(goal, start, strict=True)]
        if min(abs(step) for step in way) < 1e-9:
            return float("nan")
        shares = (after[true].mean() - start[0]) / way[0], (after[false].mean() - start[1]) / way[1]
        return float({"true": shares[0], "false": shares[1], "mean": np.mean(shares)}[part])

    return effect
