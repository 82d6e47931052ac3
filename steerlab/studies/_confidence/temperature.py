"""How much of a model's miscalibration is a matter of scale? One temperature, fitted on other subjects.

The law of a question's answers is softmax(scores / T). T is the one under which the right answers are likeliest, fitted
on half of the subjects and used on the other half, both ways round. Source: Guo et al. (2017), "On calibration of
modern neural networks".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

TEMPERATURES = (0.05, 20.0)


def law_at(
    scores: Float[np.ndarray, "question choice"], temperature: float = 1.0
) -> Float[np.ndarray, "question choice"]:
    """Probabilities of the answers from their log-probabilities up to a constant (-inf: no such answer)."""
    return np.asarray(softmax(scores / temperature, axis=1))


def fit_temperature(
    scores: Float[np.ndarray, "question choice"], right: Int[np.ndarray, " question"]
) -> float:
    """The temperature with the least log loss of the right answers, within `TEMPERATURES`; 1 without questions."""
    if len(scores) == 0:
        return 1.0

    def loss(log_temperature: float) -> float:
        law = log_softmax(scores / np.exp(log_temperature), axis=1)
        return -float(law[np.arange(len(law)), right].mean())

    fitted = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(fitted.x))


def tempered_law(
    scores: Float[np.ndarray, "question choice"],
    right: Int[np.ndarray, " question"],
    subject: Int[np.ndarray, " question"],
    *,
    seed: int,
) -> tuple[Float[np.ndarray, "question choice"], float]:
    """Laws of both halves of the subjects, each with the temperature of the other, and the mean temperature."""
    subjects = np.random.default_rng(seed).permutation(np.unique(subject))
    half = np.isin(subject, subjects[: len(subjects) // 2])
    law, temperatures = np.empty_like(scores), []
    for fitted, used in ((half, ~half), (~half, half)):
        temperature = fit_temperature(scores[fitted], right[fitted])
        law[used] = law_at(scores[used], temperature)
        temperatures.append(temperature)
    return law, float(np.mean(temperatures))
