"""Can the two kinds of prompts be told apart by their form or their words alone? Then a direction may be one of these.

A logistic regression (scikit-learn, five folds, standardised) sees length in characters, length in words and the final
character, nothing else. In the published sets harmful requests end without a full stop and harmless ones with one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steerlab.directions.held_out import held_out_folds
from steerlab.record import Record
from steerlab.statistics import Estimate, proportion

_FOLDS = 5
_ENDINGS = ".?!"
_WORD = r"(?u)\w+|[^\w\s]"  # a word, or a mark


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


def bag_of_words(
    texts: Sequence[str], labels: Sequence[int], groups: Sequence[int], *, seed: int = 0
) -> Estimate:
    """Share of held-out texts whose class a logistic regression on counts of words and marks calls right.

    labels: 0 or 1 a text. groups: what is held out together, one number a text. The five folds are those of a
    direction's held-out accuracy (`directions.held_out`), the interval is Wilson's, clustered by group.
    """
    truth = np.asarray(labels)
    words = make_pipeline(CountVectorizer(token_pattern=_WORD), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(words, list(texts), truth, cv=held_out_folds(truth, groups, seed=seed))
    return proportion(predicted == truth, clusters=groups)


def _form(text: str) -> Float[np.ndarray, " feature"]:
    last = text.rstrip()[-1:]
    return np.array([len(text), len(text.split()), *(last == mark for mark in _ENDINGS)], dtype=float)


def _words(texts: Sequence[str]) -> float:
    return float(np.mean([len(text.split()) for text in texts]))


def _punctuated(texts: Sequence[str]) -> float:
    return float(np.mean([text.rstrip()[-1:] in _ENDINGS and bool(text.strip()) for text in texts]))
