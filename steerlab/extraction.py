"""From a labelled contrast to a direction file: what `steerlab extract` does, callable from Python as well."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from steerlab.activations import capture
from steerlab.directions import ESTIMATORS, Direction, LinearDirection, fit_direction
from steerlab.errors import DatasetError, DirectionError
from steerlab.models import Last, Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steerlab.datasets import StatementSet
    from steerlab.models import LanguageModel
    from steerlab.statistics import Estimate

_FOLDS = 5


@dataclass(frozen=True)
class Extraction:
    """A direction and, by site, the five-fold accuracy of the classifier it defines."""

    direction: Direction
    accuracy: dict[str, Estimate]


@dataclass(frozen=True)
class LabelledPrompts:
    """Prompts with one label each, 1 true or harmful.

    `pairs` gives a statement and its negation one number, None where the data do not come as such pairs; `polarity` is
    +1 or -1, None where nothing is negated.
    """

    prompts: list[Prompt]
    labels: list[int]
    hash: str
    pairs: list[int] | None = None
    polarity: list[int] | None = None


def labelled_prompts(
    model: LanguageModel,
    contrast: Literal["truth", "refusal"],
    path: Path | None = None,
    template: Literal["auto", "chat", "plain", "none"] = "auto",
) -> LabelledPrompts:
    """The prompts of a packaged contrast or of the user's file or folder.

    Statements are not rendered in a template; for a bundled model they are the packaged ones of the topics it knows.
    Requests are rendered in the model's template, equally many of each kind.

    Raises:
        DatasetError: for a bad file.
    """
    from steerlab import datasets, zoo

    if contrast == "truth":
        packaged = zoo.statements if model.name.startswith("zoo:") else datasets.statements
        statements = datasets.read_statements(path) if path else packaged()
        return LabelledPrompts(
            [Prompt(text) for text in statements.texts],
            [int(x) for x in statements.labels],
            statements.hash,
            negation_pairs(statements),
            statements.polarity if len(set(statements.polarity)) == 2 else None,
        )
    requests = (datasets.read_requests(path) if path else datasets.requests()).balanced()
    texts = [*requests.positive, *requests.negative]
    labels = [1] * len(requests.positive) + [0] * len(requests.negative)
    prompts = [model.instruction_prompt(text, template=template) for text in texts]
    return LabelledPrompts(prompts, labels, requests.hash)


def negation_pairs(statements: StatementSet) -> list[int] | None:
    """One number for a statement and its negation, or None unless every statement has exactly one such partner."""
    members: dict[tuple[str, ...], list[int]] = {}
    for i, item in enumerate(statements):
        named = [item.text[slice(*span)] for _, span in sorted(item.spans.items())]
        members.setdefault((item.topic, item.form, *named), []).append(i)
    pairs = [0] * len(statements)
    for number, group in enumerate(members.values()):
        two = [statements[i] for i in group]
        if {item.polarity for item in two} != {1, -1} or len(two) != 2 or two[0].label == two[1].label:
            return None
        for i in group:
            pairs[i] = number
    return pairs


def extract_direction(
    model: LanguageModel,
    prompts: Sequence[Prompt | str],
    labels: Sequence[int],
    *,
    estimator: LinearDirection | str = "difference-in-means",
    layers: str = "all",
    data_hash: str = "",
    pairs: Sequence[int] | None = None,
    polarity: Sequence[int] | None = None,
    seed: int = 0,
) -> Extraction:
    """Fit a direction at the last token of `prompts` at `resid_post` of `layers`.

    The estimator is an unfitted one or its name in `steerlab.directions.ESTIMATORS`. The accuracy is of held-out folds
    (stratified, `seed`; the prompts of a pair stay in one fold), with a Wilson interval.

    Raises:
        DirectionError: for an unknown estimator or layer.
        DatasetError: for fewer than five prompts of a kind, or when the estimator reads pairs (`pca`, `ccs`) and there
            are none.
    """
    fitted = ESTIMATORS[estimator]() if isinstance(estimator, str) else estimator
    if fitted.needs_pairs and pairs is None:
        name = estimator if isinstance(estimator, str) else type(estimator).__name__
        raise DatasetError(
            f"The estimator {name!r} reads pairs of a statement and its negation, and these prompts are not such "
            "pairs; give statements whose columns subject, object and polarity tell them, or choose another estimator."
        )
    counts = Counter(labels)
    if len(counts) != 2 or min(counts.values()) < _FOLDS:
        raise DatasetError(
            f"The prompts hold {' and '.join(map(str, counts.values()))} of their kinds; give two kinds with at least "
            f"{_FOLDS} prompts each, one for every fold of the accuracy."
        )
    sites = model.sites("resid_post", chosen_layers(layers, model.n_layers))
    activations = capture(model, prompts, sites, positions=Last(), progress="Reading states")
    y = np.asarray(labels)
    direction = fit_direction(
        activations,
        y,
        fitted,
        model=model,
        dataset_hash=data_hash,
        position=Last(),
        pairs=pairs,
        polarity=polarity,
    )
    held_out = {
        str(site): _held_out_accuracy(fitted, activations[site].numpy(), y, pairs, polarity, seed)
        for site in sites
    }
    return Extraction(direction, held_out)


def chosen_layers(text: str, n_layers: int) -> list[int]:
    """Layers named by `all`, `4`, `4-8` (both ends) or `2,5,7`.

    Raises `DirectionError` for anything else and for a layer the model does not have.
    """
    if text == "all":
        return list(range(n_layers))
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+))?\s*", part)
        if match is None:
            raise DirectionError(f"Layers {text!r} are not understood; write all, 4, 4-8 or 2,5,7.")
        first, last = int(match[1]), int(match[2] or match[1])
        layers += range(first, last + 1)
    missing = [layer for layer in layers if layer >= n_layers]
    if missing or not layers:
        raise DirectionError(f"Layers {text!r} name none of, or more than, the layers 0 to {n_layers - 1}.")
    return sorted(set(layers))


def require_place(path: Path) -> None:
    """Raise `DirectionError`, before any work is done, where a direction could not be written to `path`."""
    if path.suffix != ".safetensors" or path.is_dir():
        raise DirectionError(f"{path} is not a name for a direction file; let it end in .safetensors.")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise DirectionError(f"Nothing can be written below {existing}; choose another --out.")


def parse_steer(text: str) -> tuple[Path, float | None, str | None]:
    """File, strength and layers of `FILE[:STRENGTH[@LAYERS]]`. Raises `DirectionError` where it is malformed."""
    match = re.fullmatch(r"(?P<file>.+?\.safetensors)(?::(?P<strength>[^@]+))?(?:@(?P<layers>.+))?", text)
    if match is None:
        raise DirectionError(
            f"{text!r} is not understood; write FILE.safetensors, then :STRENGTH and @LAYERS if wanted."
        )
    return Path(match["file"]), _strength(text, match["strength"]), match["layers"]


def _strength(text: str, written: str | None) -> float | None:
    try:
        strength = None if written is None else float(written)
    except ValueError:
        strength = math.nan
    if strength is not None and not math.isfinite(strength):
        raise DirectionError(f"{text!r} has the strength {written!r}; write a number such as 1.5.")
    return strength


def read_direction(file: Path, layers: str | None, model: LanguageModel) -> Direction:
    """The direction in `file`, at the sites of `layers` only where some are named.

    Raises `DirectionError` for a bad file, or when the direction has no site at these layers.
    """
    direction = Direction.load(file)
    if layers is None:
        return direction
    wanted = chosen_layers(layers, model.n_layers)
    sites = [site for site in direction.sites if site.layer in wanted]
    if not sites:
        raise DirectionError(
            f"{file} has no vector at layer {layers}; its sites are {', '.join(map(str, direction.sites))}."
        )
    return direction.at(*sites)


def _held_out_accuracy(
    estimator: LinearDirection,
    rows: NDArray[np.float32],
    labels: NDArray[np.int64],
    pairs: Sequence[int] | None,
    polarity: Sequence[int] | None,
    seed: int,
) -> Estimate:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

    from steerlab.statistics import proportion

    folds = (StratifiedKFold if pairs is None else StratifiedGroupKFold)(
        _FOLDS, shuffle=True, random_state=seed
    )
    takes = signature(type(estimator).fit).parameters
    given = {"pairs": pairs, "polarity": polarity}
    extra = {name: np.asarray(x) for name, x in given.items() if x is not None and name in takes}
    predicted = cross_val_predict(estimator, rows, labels, groups=pairs, cv=folds, params=extra)
    return proportion(int((predicted == labels).sum()), len(labels))
