"""Inference-time intervention: which attention heads tell truth, and how far to move each of them?

    z_h ← z_h + α σ_h θ_h    for the k heads with the best probes

Li et al. (2023). A probe is fitted on every head's part of `z` (the input of the attention's output projection) and
heads are ranked by its accuracy on held-out questions. θ_h is the shift between the class means at length one, σ_h the
standard deviation of the states along it. The direction's vector at a `z` site is σ_h θ_h in the parts of the chosen
heads and zero elsewhere, so ``Add(direction, strength=α, unit="raw", layers="all")`` is the intervention. Heads are
query heads, of the model's own head width: `z` has no key-value heads, and hidden size / heads is not the width in
every family.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from steerlab.activations import Activations
from steerlab.directions._header import SiteStatistics
from steerlab.directions._scale import site_statistics, unit_of
from steerlab.directions.difference_in_means import DifferenceInMeans
from steerlab.directions.direction import Direction
from steerlab.directions.fitting import by_row, classes_of
from steerlab.directions.linear import LinearDirection
from steerlab.directions.logistic_probe import LogisticProbe
from steerlab.errors import DirectionError
from steerlab.models import Selector, Site

if TYPE_CHECKING:
    from steerlab.models import LanguageModel

Labels: TypeAlias = Sequence[Hashable] | NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class HeadScores:
    """How well a probe on each head does on held-out rows.

    Attributes:
        accuracy: for each `z` site [head].
        auc: for each `z` site [head], the area under the ROC curve; it ranks heads of equal accuracy.
    """

    accuracy: dict[Site, Float[np.ndarray, " head"]]
    auc: dict[Site, Float[np.ndarray, " head"]]

    def top(self, k: int) -> dict[Site, tuple[int, ...]]:
        """The k best heads of all layers, ascending within each site.

        Raises:
            DirectionError: when there are fewer than k heads, or k is not positive.
        """
        ranked = sorted(
            ((site, head) for site, heads in self.accuracy.items() for head in range(len(heads))),
            key=lambda place: (-self.accuracy[place[0]][place[1]], -self.auc[place[0]][place[1]], *place),
        )
        if not 1 <= k <= len(ranked):
            raise DirectionError(f"There are {len(ranked)} heads; choose between 1 and all of them, not {k}.")
        chosen: dict[Site, tuple[int, ...]] = {}
        for site, head in sorted(ranked[:k]):
            chosen[site] = (*chosen.get(site, ()), head)
        return chosen


def score_heads(
    activations: Activations,
    labels: Labels,
    *,
    model: LanguageModel,
    probe: LinearDirection | None = None,
    groups: Sequence[Hashable] | None = None,
    validation: float = 0.2,
    seed: int = 0,
) -> HeadScores:
    """Probe every head and score it on rows it was not fitted on.

    Args:
        activations: states of `z` sites.
        labels: one 0/1 label a prompt.
        probe: an unfitted estimator; None is `LogisticProbe()`.
        groups: one name a prompt; prompts that share one (answers to a question) stay on one side of the split.
        validation: share of the prompts (of the groups) that heads are scored on.
        seed: of the split.

    Raises:
        DirectionError: for states of another site or model, labels that are not two classes, or a side of the split
            with one class only.
    """
    heads = _heads(activations, model)
    y = _is_positive(activations, labels)
    train, held_out = _split(activations, y, groups, validation, seed)
    accuracy: dict[Site, NDArray[np.float64]] = {}
    auc: dict[Site, NDArray[np.float64]] = {}
    for site, parts in heads.items():
        scores = [
            clone(probe or LogisticProbe()).fit(part[train], y[train]).decision_function(part[held_out])
            for part in parts
        ]
        accuracy[site] = np.array([((score > 0) == y[held_out]).mean() for score in scores])
        auc[site] = np.array([roc_auc_score(y[held_out], score) for score in scores])
    return HeadScores(accuracy, auc)


def head_direction(
    activations: Activations,
    labels: Labels,
    heads: dict[Site, tuple[int, ...]],
    *,
    model: LanguageModel,
    shift: LinearDirection | None = None,
    spread: Activations | None = None,
    ddof: int = 0,
    dataset_hash: str = "",
    position: Selector | str = "",
) -> Direction:
    """σ θ of some heads, as one vector a `z` site.

    Args:
        activations: states of the `z` sites, all the rows that θ is estimated from.
        labels: one 0/1 label a prompt.
        heads: the heads of each site, from `HeadScores.top`.
        shift: the estimator of θ: None is `DifferenceInMeans()`, the mass-mean shift; a `LogisticProbe()` gives the
            probe's weights.
        spread: states that σ is measured on, labels unused (the published code takes prompts of another form); None
            means the same ones.
        ddof: σ is the root of the squared deviations' sum over n − ddof.
        dataset_hash: of the data, kept in the header.
        position: the rule that picked the tokens, kept in the header.

    Raises:
        DirectionError: for states of another site or model, labels that are not two classes, or a head there is not.
    """
    parts = _heads(activations, model)
    spreads = parts if spread is None else _heads(spread, model)
    y = _is_positive(activations, labels)
    fitted: dict[Site, tuple[Tensor, SiteStatistics]] = {}
    for site, chosen in heads.items():
        if site not in parts or site not in spreads or not set(chosen) <= set(range(len(parts[site]))):
            raise DirectionError(f"There are no states of heads {chosen} of {site}; capture that site.")
        n_heads, _, width = parts[site].shape
        vector, sigmas = np.zeros((n_heads, width)), []
        for head in chosen:
            theta = clone(shift or DifferenceInMeans()).fit(parts[site][head], y).direction_
            unit = unit_of(theta, site)
            sigmas.append(float(np.std(spreads[site][head] @ unit, ddof=ddof)))
            vector[head] = sigmas[-1] * unit
        scale = _scale(vector.reshape(-1), activations[site], y)
        fitted[site] = (
            torch.from_numpy(vector.reshape(-1)),
            scale.model_copy(update={"heads": chosen, "sigma": tuple(sigmas)}),
        )
    return Direction(
        vectors={site: vector for site, (vector, _) in fitted.items()},
        model_name=model.name,
        fingerprint=model.fingerprint,
        estimator="ITI",
        parameters={"shift": type(shift or DifferenceInMeans()).__name__, "ddof": ddof},
        dataset_hash=dataset_hash,
        position=position if isinstance(position, str) else repr(position),
        statistics={site: statistics for site, (_, statistics) in fitted.items()},
    )


def _heads(activations: Activations, model: LanguageModel) -> dict[Site, Float[np.ndarray, "head row width"]]:
    """Every `z` site's states by head, in float64."""
    if activations.fingerprint != model.fingerprint:
        raise DirectionError(
            f"The states were read from {activations.model_name}, not from {model.name}; capture them again there."
        )
    if not activations.sites or any(site.name != "z" for site in activations.sites):
        raise DirectionError("Heads live at the sites called z; capture model.sites('z').")
    return {
        site: rearrange(
            activations[site].double().numpy(), "row (head width) -> head row width", width=model.head_dim
        )
        for site in activations.sites
    }


def _is_positive(activations: Activations, labels: Labels) -> NDArray[np.bool_]:
    row_labels = by_row(activations, labels, "labels")
    _, positive = classes_of(row_labels, None)
    return np.array([label == positive for label in row_labels])


def _split(
    activations: Activations,
    y: NDArray[np.bool_],
    groups: Sequence[Hashable] | None,
    validation: float,
    seed: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to fit on and rows to score on; the rows of a prompt, and of a group, stay together."""
    names = by_row(activations, range(activations.n_prompts) if groups is None else groups, "groups")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    splitter = GroupShuffleSplit(1, test_size=validation, random_state=seed)
    train, held_out = next(splitter.split(y, groups=[number[name] for name in names]))
    if len({*y[train]}) < 2 or len({*y[held_out]}) < 2:
        raise DirectionError(
            "One side of the split has one class only; give more prompts, another share of validation or another seed."
        )
    return train, held_out


def _scale(vector: NDArray[np.float64], states: Tensor, y: NDArray[np.bool_]) -> SiteStatistics:
    rows = states.double().numpy()
    projections = rows @ vector / np.linalg.norm(vector)
    low, high = projections[~y].mean(keepdims=True), projections[y].mean(keepdims=True)
    return site_statistics(
        vector[None],
        biases=-float(np.linalg.norm(vector)) * (low + high) / 2,
        means={0: low, 1: high},
        stream_norm=float(np.linalg.norm(rows, axis=1).mean()),
        sigma=None,
    )
