"""Erasing a label from real states: what probes still read of held-out statements, and what it costs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _local_copies import data_files
from _script import named
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import steerlab as sl
from steerlab.activations import Activations
from steerlab.directions import erasing, fit_direction
from steerlab.models import Edit, LanguageModel, Site
from steerlab.statistics import paired_difference, proportion
from steerlab.steering import Intervention, side_effects

Row = dict[str, Any]
LABELS = ("truth", "negation")
ERASED, PROJECTED = "erased", "difference in means projected out"
FOLLOWED = (ERASED, PROJECTED)  # to the last layer


@dataclass(frozen=True)
class Statements:
    """Statements with both labels, and whose subjects each of three parts has: to fit the erasure on, to fit a probe
    on, to judge it on."""

    texts: list[str]
    labels: dict[str, np.ndarray]
    subjects: np.ndarray
    part: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """Rows of the statements that the erasure was not fitted on."""
        return np.flatnonzero(self.part > 0)


def statements_of(plan: Mapping[str, Any]) -> Statements:
    """Affirmed and negated statements of so many subjects; a subject is in one part alone."""
    table, amounts = data_files(plan["data"]["statements"]), plan["erasure"]
    rows: list[tuple[str, str, int, int]] = []
    for name, negated in ((amounts["affirmed"], 0), (amounts["negated"], 1)):
        with table[name].open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.append((row["statement"], row[amounts["subject"]], int(row["label"]), negated))
    texts, subjects, truth, negation = (list(column) for column in zip(*rows, strict=True))
    order = np.random.default_rng(plan["seed"]).permutation(sorted(set(subjects)))[: sum(amounts["subjects"])]
    ends = np.cumsum(amounts["subjects"])
    part_of = {name: int(np.searchsorted(ends, at, side="right")) for at, name in enumerate(order.tolist())}
    kept = [at for at, name in enumerate(subjects) if name in part_of]
    return Statements(
        [texts[at] for at in kept],
        {"truth": np.array(truth)[kept], "negation": np.array(negation)[kept]},
        np.array(subjects)[kept],
        np.array([part_of[subjects[at]] for at in kept]),
    )


def erasure_rows(model: LanguageModel, plan: Mapping[str, Any]) -> list[Row]:
    """A row a label and a way: nothing, erased, the difference in means projected out, a random direction."""
    data = statements_of(plan)
    site = Site("resid_post", round(plan["erasure"]["depth"] * (model.n_layers - 1)))
    last = Site("resid_post", model.n_layers - 1)
    fitted, judged = (
        sl.capture(model, [data.texts[at] for at in some], [site, last], positions=sl.Last())
        for some in (np.flatnonzero(data.part == 0), data.judged)
    )
    rows = list[Row]()
    for name in LABELS:
        labels = data.labels[name]
        edits = edits_of(fitted, labels[data.part == 0], site, plan["seed"])
        judge = Judge(
            labels[data.judged], data.part[data.judged] == 1, data.subjects[data.part == 2], plan["seed"]
        )
        prices = side_effects(
            model,
            list(sl.datasets.plain_text()[: plan["texts"]]),
            {way: [edit] for way, edit in edits.items()},
        )
        plain = judge.probes(judged[site])
        shared = {
            "label": name,
            "site": str(site),
            "fitted_on": int((data.part == 0).sum()),
            "width": model.d_model,
        }
        shared |= {"probe_on": int((data.part == 1).sum()), "n": int((data.part == 2).sum())}
        end = judge.linear(judged[last])
        rows.append(shared | {"way": "nothing"} | judge.columns(plain | {"linear_at_the_end": end}))
        for way, edit in edits.items():
            operator = edit.operator(site)
            assert operator is not None
            after = operator(judged[site].double())
            found = judge.probes(after)
            row = (
                shared
                | {"way": way, "moved": moved(judged[site].double(), after)}
                | named("kl", prices[way].kl)
            )
            if way in FOLLOWED:
                found["linear_at_the_end"] = judge.linear(later(model, data, edit, last))
            rows.append(row | judge.columns(found) | judge.columns(found, plain | {"linear_at_the_end": end}))
    return rows


def edits_of(fitted: Activations, labels: np.ndarray, site: Site, seed: int) -> dict[str, Intervention]:
    """The ways of taking a label out at a site, by name."""
    means = fit_direction(fitted, labels, hold_out=False).at(site)
    noise = torch.randn(means[site].shape, generator=torch.Generator().manual_seed(seed))
    random = sl.Direction({site: noise}, means.model_name, means.fingerprint, means=means.means)
    return {
        ERASED: sl.Erase(erasing(fitted, labels.tolist()).at(site), sites=site),
        PROJECTED: sl.Ablate(means, toward="mean", sites=site),
        "random direction": sl.Ablate(random, toward="mean", sites=site),
    }


def moved(before: torch.Tensor, after: torch.Tensor) -> float:
    """The mean squared change, as a share of the states' variance."""
    return float(((after - before) ** 2).sum() / ((before - before.mean(dim=0)) ** 2).sum())


def later(model: LanguageModel, data: Statements, edit: Edit, last: Site) -> torch.Tensor:
    """The last block's states [row, width] of the judged statements with an edit in force."""
    with model.steering(edit):
        read = sl.capture(model, [data.texts[at] for at in data.judged], last, positions=sl.Last())
    return read[last]


@dataclass(frozen=True)
class Judge:
    """Fits probes on the statements of `train` and judges them on the others, whose subjects are the clusters."""

    labels: np.ndarray
    train: np.ndarray
    clusters: np.ndarray
    seed: int

    def linear(self, states: torch.Tensor) -> np.ndarray:
        """By judged statement, whether a linear probe is right."""
        return self._right(states, LogisticRegression(C=0.01, max_iter=2000))

    def probes(self, states: torch.Tensor) -> dict[str, np.ndarray]:
        """The same of a linear probe, a network with one hidden layer, and the nearest neighbours."""
        network = MLPClassifier((64,), alpha=0.1, early_stopping=True, max_iter=200, random_state=self.seed)
        return {
            "linear": self.linear(states),
            "network": self._right(states, network),
            "neighbours": self._right(states, KNeighborsClassifier(15)),
        }

    def _right(self, states: torch.Tensor, classifier: Any) -> np.ndarray:
        rows = states.float().numpy()
        fitted = make_pipeline(StandardScaler(), classifier).fit(rows[self.train], self.labels[self.train])
        right: np.ndarray = fitted.predict(rows[~self.train]) == self.labels[~self.train]
        return right

    def columns(self, found: Mapping[str, np.ndarray], plain: Mapping[str, np.ndarray] | None = None) -> Row:
        """Accuracies with intervals over subjects, or what they are less those of untouched states."""
        row: Row = {}
        for name, right in found.items():
            if plain is None:
                row |= named(name, proportion(right, clusters=self.clusters))
            else:
                less = paired_difference(
                    right.astype(float), plain[name].astype(float), self.clusters, seed=self.seed
                )
                row |= named(f"{name}_less_none", less)
        return row
