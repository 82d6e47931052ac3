"""From a labelled contrast to a direction file: what `steerlab extract` does, callable from Python as well."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from steerlab.activations import capture
from steerlab.directions import DifferenceInMeans, Direction, LogisticProbe, MassMean, fit_direction
from steerlab.errors import DatasetError, DirectionError
from steerlab.models import Last, Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steerlab.models import LanguageModel
    from steerlab.statistics import Estimate

ESTIMATORS = {
    "difference-in-means": DifferenceInMeans,
    "mass-mean": MassMean,
    "logistic": LogisticProbe,
}
_FOLDS = 5


@dataclass(frozen=True)
class Extraction:
    """A direction and, by site, the five-fold accuracy of the classifier it defines."""

    direction: Direction
    accuracy: dict[str, Estimate]


def labelled_prompts(
    model: LanguageModel,
    contrast: Literal["truth", "refusal"],
    path: Path | None = None,
    template: Literal["auto", "chat", "plain", "none"] = "auto",
) -> tuple[list[Prompt], list[int], str]:
    """Prompts, labels (1 true or harmful) and data hash of a packaged contrast or of the user's file or folder.

    Statements are read as they stand (the packaged ones of the topics it knows for a bundled model); requests are
    rendered in the model's template, as many of either kind. Raises `DatasetError` for a bad file.
    """
    from steerlab import datasets, zoo

    if contrast == "truth":
        packaged = zoo.statements if model.name.startswith("zoo:") else datasets.statements
        statements = datasets.read_statements(path) if path else packaged()
        return (
            [Prompt(text) for text in statements.texts],
            [int(x) for x in statements.labels],
            statements.hash,
        )
    requests = (datasets.read_requests(path) if path else datasets.requests()).balanced()
    texts = [*requests.positive, *requests.negative]
    labels = [1] * len(requests.positive) + [0] * len(requests.negative)
    return [model.instruction_prompt(text, template=template) for text in texts], labels, requests.hash


def extract_direction(
    model: LanguageModel,
    prompts: Sequence[Prompt | str],
    labels: Sequence[int],
    *,
    estimator: Literal["difference-in-means", "mass-mean", "logistic"] = "difference-in-means",
    layers: str = "all",
    data_hash: str = "",
    seed: int = 0,
) -> Extraction:
    """Fit a direction at the last token of `prompts` at `resid_post` of `layers`.

    The accuracy is of held-out folds (stratified, `seed`), with a Wilson interval. Raises `DirectionError` for
    an unknown estimator or layer, `DatasetError` for fewer than five prompts of a kind.
    """
    if estimator not in ESTIMATORS:
        raise DirectionError(f"There is no estimator {estimator!r}; choose from {', '.join(ESTIMATORS)}.")
    counts = Counter(labels)
    if len(counts) != 2 or min(counts.values()) < _FOLDS:
        raise DatasetError(
            f"The prompts hold {' and '.join(map(str, counts.values()))} of their kinds; give two kinds with at least "
            f"{_FOLDS} prompts each, one for every fold of the accuracy."
        )
    sites = model.sites("resid_post", chosen_layers(layers, model.n_layers))
    activations = capture(model, prompts, sites, positions=Last(), progress="Reading states")
    fitted = ESTIMATORS[estimator]()
    direction = fit_direction(
        fitted, activations, np.asarray(labels), model=model, dataset_hash=data_hash, position=Last()
    )
    held_out = {
        str(site): _held_out_accuracy(estimator, activations[site].numpy(), np.asarray(labels), seed)
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
    estimator: str, rows: NDArray[np.float32], labels: NDArray[np.int64], seed: int
) -> Estimate:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    from steerlab.statistics import proportion

    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    predicted = cross_val_predict(ESTIMATORS[estimator](), rows, labels, cv=folds)
    return proportion(int((predicted == labels).sum()), len(labels))
