"""Can the two kinds of prompts be told apart by their form alone? Then a direction between them may be one of form.

`surface`: a logistic regression (scikit-learn, five folds, standardised) sees length in characters, length in words and
the final character, nothing else. In the published sets harmful requests end without a full stop and harmless ones with
one.

`shortcuts`: one such classifier for each cheap way to tell two classes of texts apart, with matched and reworded texts
held out together as `extract` does. `shortcuts_table` puts contrasts beside each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steerlab.datasets.labelled_texts import LabelledTexts, labelled_texts
from steerlab.datasets.similarity import similarity
from steerlab.errors import DatasetError
from steerlab.record import Record
from steerlab.statistics import Estimate, proportion

_FOLDS = 5
_ENDINGS = ".?!"


class Surface(Record):
    """accuracy: of the classifier of form, held out, on as many prompts of either kind. chance: one half.

    words: mean number of words of each kind. ends_in_punctuation: share of each kind that ends in one of ". ? !".
    """

    accuracy: Estimate
    chance: float
    words: tuple[float, float]
    ends_in_punctuation: tuple[float, float]

    @property
    def above_chance(self) -> bool:
        """Whether form alone tells the kinds apart."""
        return self.accuracy.low > self.chance


class Shortcuts(Record):
    """What tells the two classes of a contrast apart without reading it.

    texts: number in each class, the one that a direction points to first; words: their mean number. length, first_word,
    bag_of_words: held-out accuracy of a classifier that sees the number of words, the first word, or which words there
    are. chance: what each is where it tells nothing (below it, where the texts held out undo what was learnt).
    same_ending: share of pairs whose last characters are equal. shared_words: mean Jaccard similarity of the word sets
    of a pair; both None where the texts do not come as pairs.
    """

    names: tuple[str, str]
    texts: tuple[int, int]
    words: tuple[float, float]
    length: Estimate
    first_word: Estimate
    bag_of_words: Estimate
    chance: float
    same_ending: float | None
    shared_words: float | None


def shortcuts(given: Any, negative: Sequence[str] | None = None, *, seed: int = 0) -> Shortcuts:
    """What tells a contrast apart by its surface.

    Args:
        given: a contrast in any way that `datasets.labelled_texts` reads: a `ContrastSet`, pairs, a file, the positive
            texts where `negative` are given.
        negative: the other texts.
        seed: of the five folds.

    Raises:
        DatasetError: texts that are no contrast, or fewer than five groups of a class.
    """
    data = labelled_texts(given, negative)
    fewest = min(
        Counter(kind for _, kind in set(zip(data.groups.numbers, data.labels, strict=True))).values()
    )
    if fewest < _FOLDS:
        raise DatasetError(f"{fewest} groups of texts of a class are too few for {_FOLDS} folds; give more.")
    positive, other = _by_class(data)
    pairs = _pairs(data)
    return Shortcuts(
        names=data.names,
        texts=(len(positive), len(other)),
        words=(_words(positive), _words(other)),
        length=_told(data, [{"words": len(text.split())} for text in data.texts], seed),
        first_word=_told(data, [{word: 1 for word in _word_list(text)[:1]} for text in data.texts], seed),
        bag_of_words=_told(data, [dict.fromkeys(_word_list(text), 1) for text in data.texts], seed),
        chance=max(len(positive), len(other)) / len(data.texts),
        same_ending=float(np.mean([a[-1:] == b[-1:] for a, b in pairs])) if pairs else None,
        shared_words=float(np.mean([similarity([a], [b])[0, 0] for a, b in pairs])) if pairs else None,
    )


def shortcuts_table(contrasts: Mapping[str, Any], *, seed: int = 0) -> str:
    """The shortcuts of some contrasts by name as a table in Markdown: a row each, shares to two digits.

    Raises `DatasetError` as `shortcuts` does.
    """
    head = (
        "contrast",
        "other class",
        "texts",
        "words",
        "length",
        "first word",
        "bag of words",
        "shared words",
    )
    rows = [head, ("---",) * len(head)]
    for name, given in contrasts.items():
        found = shortcuts(given, seed=seed)
        rows.append(
            (
                f"`{name}`",
                found.names[1],
                " + ".join(map(str, found.texts)),
                " / ".join(f"{mean:.1f}" for mean in found.words),
                *(f"{share.value:.2f}" for share in (found.length, found.first_word, found.bag_of_words)),
                "–" if found.shared_words is None else f"{found.shared_words:.2f}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def surface(positive: Sequence[str], negative: Sequence[str], *, seed: int = 0) -> Surface | None:
    """Measure it; None with fewer than ten prompts of a kind.

    The longer list is drawn down to the shorter one: on unequal lists a classifier that names the more frequent kind
    hides what form tells.
    """
    n = min(len(positive), len(negative))
    if n < 2 * _FOLDS:
        return None
    rng = np.random.default_rng(seed)
    positive, negative = (
        [texts[i] for i in np.sort(rng.permutation(len(texts))[:n])] for texts in (positive, negative)
    )
    features = np.array([_form(text) for text in (*positive, *negative)])
    labels = np.array([1] * n + [0] * n)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    right = cross_val_predict(classifier, features, labels, cv=folds) == labels
    return Surface(
        accuracy=proportion(right),
        chance=0.5,
        words=(_words(positive), _words(negative)),
        ends_in_punctuation=(_punctuated(positive), _punctuated(negative)),
    )


# -- private --


def _told(data: LabelledTexts, features: list[dict[str, int]], seed: int) -> Estimate:
    """Share of texts whose class a logistic regression on their features names while their group is held out."""
    labels, groups = np.array(data.labels), np.array(data.groups.numbers)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    classifier = make_pipeline(DictVectorizer(), LogisticRegression(max_iter=1000))
    predicted: NDArray[np.int64] = cross_val_predict(classifier, features, labels, groups=groups, cv=folds)
    return proportion(predicted == labels, clusters=groups)


def _by_class(data: LabelledTexts) -> tuple[list[str], list[str]]:
    first, second = (
        [text for text, label in zip(data.texts, data.labels, strict=True) if label == kind]
        for kind in (1, 0)
    )
    return first, second


def _pairs(data: LabelledTexts) -> list[tuple[str, str]]:
    """The two texts of each group, where every group is one of each class."""
    members: dict[int, list[tuple[int, str]]] = {}
    for number, label, text in zip(data.groups.numbers, data.labels, data.texts, strict=True):
        members.setdefault(number, []).append((label, text))
    if any(sorted(label for label, _ in group) != [0, 1] for group in members.values()):
        return []
    return [(max(group)[1], min(group)[1]) for group in members.values()]


def _word_list(text: str) -> list[str]:
    return re.findall(r"[\w'’]+", text.lower())


def _form(text: str) -> Float[np.ndarray, " feature"]:
    last = text.rstrip()[-1:]
    return np.array([len(text), len(text.split()), *(last == mark for mark in _ENDINGS)], dtype=float)


def _words(texts: Sequence[str]) -> float:
    return float(np.mean([len(text.split()) for text in texts]))


def _punctuated(texts: Sequence[str]) -> float:
    return float(np.mean([text.rstrip()[-1:] in _ENDINGS and bool(text.strip()) for text in texts]))
