"""Estimators that read pairs and polarity: the PCA reader, CCS and TTPD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from steerlab.activations import DIFFERENCE, Activations, Moments, capture, capture_differences
from steerlab.directions import Ccs, DifferenceInMeans, MassMean, PcaReader, Ttpd, fit_direction
from steerlab.errors import DirectionError
from steerlab.models import Site

SITE = Site("resid_post", 0)


class PairedByOrder:
    """Scikit-learn's checks know no pairs: of the checked rows, the i-th positive goes with the i-th negative."""

    def fit(self, X: Any, y: Any) -> Any:
        return super().fit(X, y, pairs=Turns(self))  # type: ignore[misc]

    def _two_classes(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, positive = super()._two_classes(X, y)  # type: ignore[misc]
        turns = np.where(positive, np.cumsum(positive), np.cumsum(~positive))
        kept = turns <= min(positive.sum(), (~positive).sum())
        self.turns_ = turns[kept]
        return rows[kept], positive[kept]


class Turns:
    """Pair numbers that are known only once the rows have been checked."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.owner.turns_)


class PcaInOrder(PairedByOrder, PcaReader):
    pass


class CcsInOrder(PairedByOrder, Ccs):
    pass


# CCS never sees the labels, so nothing makes it tell the checks' blobs apart.
_UNSUPERVISED = {"check_classifiers_train": "finds its direction without labels"}


@parametrize_with_checks(
    [PcaInOrder(), PcaInOrder("shuffled"), CcsInOrder(restarts=2, steps=20), Ttpd()],
    expected_failed_checks=lambda estimator: _UNSUPERVISED if isinstance(estimator, Ccs) else {},
)
def test_scikit_learn_conformity(estimator: Any, check: Any) -> None:
    check(estimator)


@dataclass(frozen=True)
class Negations:
    """Statements and their negations: truth, polarity and their product each along an axis of their own."""

    rows: np.ndarray
    truth: np.ndarray
    polarity: np.ndarray
    pairs: np.ndarray
    general: np.ndarray
    sensitive: np.ndarray

    @property
    def y(self) -> np.ndarray:
        return self.truth > 0


def negations(n: int = 150, width: int = 32, seed: int = 0) -> Negations:
    random = np.random.default_rng(seed)
    general, sensitive, negated = np.linalg.qr(random.normal(size=(width, 3)))[0].T
    first = np.where(np.arange(n) % 2, 1, -1)
    truth, polarity = np.stack([first, -first], axis=1).ravel(), np.tile([1, -1], n)
    topic = np.repeat(random.normal(size=(n, width)), 2, axis=0)
    rows = topic + 0.5 * random.normal(size=(2 * n, width)) + 5.0
    for effect, axis in (
        (truth, 1.5 * general),
        (truth * polarity, 1.5 * sensitive),
        (polarity, 3.0 * negated),
    ):
        rows += effect[:, None] * axis
    order = random.permutation(2 * n)
    pairs = np.repeat(np.arange(n), 2)
    return Negations(rows[order], truth[order], polarity[order], pairs[order], general, sensitive)


def ordered_pairs(
    n: int = 256, width: int = 64, seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose members lie the same way apart but for noise: rows, labels, pairs and the unit of the gap."""
    random = np.random.default_rng(seed)
    gap = random.normal(size=width)
    gap /= np.linalg.norm(gap)
    rows = np.repeat(random.normal(size=(n, width)), 2, axis=0) + 0.5 * random.normal(size=(2 * n, width))
    y = np.tile([1, 0], n)
    return rows + 3.0 * y[:, None] * gap, y, np.repeat(np.arange(n), 2), gap


# ------------------------------------------------------------------------------------------------- the PCA reader


def test_centring_ordered_pairs_removes_what_the_reader_looks_for() -> None:
    rows, y, pairs, gap = ordered_pairs()
    found = {
        centring: abs(cosine(PcaReader(centring).fit(rows, y, pairs=pairs).direction_, gap))  # type: ignore[arg-type]
        for centring in ("none", "shuffled", "ordered")
    }
    assert found["ordered"] < 0.3
    assert found["shuffled"] > 0.98
    assert found["none"] > 0.98
    assert cosine(DifferenceInMeans().fit(rows, y).direction_, gap) > 0.98


def test_the_reader_is_scikit_learns_principal_component() -> None:
    rows, y, pairs, _ = ordered_pairs(40, 12)
    differences = rows[::2] - rows[1::2]
    around_zero = PCA(1, svd_solver="full").fit(np.concatenate([differences, -differences])).components_[0]
    around_mean = PCA(1, svd_solver="full").fit(differences).components_[0]
    assert abs(cosine(PcaReader().fit(rows, y, pairs=pairs).direction_, around_zero)) > 1 - 1e-12
    assert abs(cosine(PcaReader("ordered").fit(rows, y, pairs=pairs).direction_, around_mean)) > 1 - 1e-12
    wide = np.concatenate(
        [rows, np.random.default_rng(0).normal(size=(80, 200))], axis=1
    )  # fewer pairs than width
    wide_differences = wide[::2] - wide[1::2]
    expected = (
        PCA(1, svd_solver="full").fit(np.concatenate([wide_differences, -wide_differences])).components_[0]
    )
    assert abs(cosine(PcaReader().fit(wide, y, pairs=pairs).direction_, expected)) > 1 - 1e-12


@pytest.mark.parametrize("centring", ["none", "shuffled", "ordered"])
def test_labels_fix_the_sign(centring: Any) -> None:
    rows, y, pairs, _ = ordered_pairs(40, 8)
    one, other = (PcaReader(centring).fit(rows, labels, pairs=pairs) for labels in (y, 1 - y))
    np.testing.assert_allclose(one.direction_, -other.direction_, atol=1e-12)
    assert np.linalg.norm(one.direction_) == pytest.approx(1.0)
    high, low = rows[y == 1] @ one.direction_, rows[y == 0] @ one.direction_
    assert high.mean() >= low.mean()
    assert one.bias_ == pytest.approx(-(high.mean() + low.mean()) / 2)


def test_shuffling_is_seeded() -> None:
    rows, y, pairs, _ = ordered_pairs(40, 8)
    made = [
        PcaReader("shuffled", random_state=seed).fit(rows, y, pairs=pairs).direction_ for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_of_negations_the_reader_reads_polarity_unless_it_is_told() -> None:
    data = negations()
    blind = PcaReader().fit(data.rows, data.y, pairs=data.pairs).direction_
    told = PcaReader().fit(data.rows, data.y, pairs=data.pairs, polarity=data.polarity).direction_
    assert abs(cosine(blind, data.general)) < 0.3
    assert cosine(told, data.general) > 0.95


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "estimator", [PcaReader(), PcaReader("ordered"), DifferenceInMeans(), MassMean()], ids=str
)
def test_a_stream_of_differences_gives_what_rows_give(family: str, estimator: Any) -> None:
    model = tiny(family)
    positives = [f"The capital of France is Paris {n}." for n in "abcdefghij"]
    negatives = [f"A cat is {n}." for n in "qrstuvwxyz"]
    sites = model.sites("resid_post", [0, 2])
    moments = capture_differences(model, positives, negatives, sites)
    rows = capture(model, positives + negatives, sites)
    streamed = fit_direction(moments, estimator=estimator, model=model)
    direct = fit_direction(rows, [1] * 10 + [0] * 10, estimator, model=model, pairs=[*range(10)] * 2)
    for site in sites:
        size = float(direct[site].abs().max())
        np.testing.assert_allclose(streamed[site], direct[site], rtol=1e-5, atol=1e-5 * size)
        assert streamed.class_gap[site] == pytest.approx(direct.class_gap[site], rel=1e-5)
        assert streamed.stream_norm[site] == pytest.approx(direct.stream_norm[site], rel=1e-6)
        both = streamed.statistics[site].bias, direct.statistics[site].bias
        assert both[0] == pytest.approx(both[1], rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ CCS


@pytest.mark.parametrize("standardise", [True, False])
def test_ccs_is_the_best_of_its_starts(standardise: bool) -> None:
    """Against one plain loop a start, written here, from the same starting points."""
    data = negations(40, 6)
    made = Ccs(3, standardise=standardise, steps=60, learning_rate=0.05, random_state=4).fit(
        data.rows, data.y, pairs=data.pairs, polarity=data.polarity
    )
    affirmed = data.polarity > 0
    centred = data.rows - np.where(
        affirmed[:, None], data.rows[affirmed].mean(0), data.rows[~affirmed].mean(0)
    )
    scale = centred.std(0) if standardise else np.ones(6)
    order = np.argsort(data.pairs, kind="stable")
    order = np.stack([order[affirmed[order]], order[~affirmed[order]]])
    x, opposite = (torch.from_numpy(centred[rows] / scale) for rows in order)
    random = np.random.RandomState(4)
    starts = torch.from_numpy(random.uniform(-(6**-0.5), 6**-0.5, size=(6, 3)))
    intercepts = torch.from_numpy(random.uniform(-(6**-0.5), 6**-0.5, size=3))
    ends = []
    for start in range(3):
        probe = torch.nn.Linear(6, 1).double()
        probe.weight.data, probe.bias.data = (
            starts[:, start][None].clone(),
            intercepts[start : start + 1].clone(),
        )
        optimiser = torch.optim.AdamW(probe.parameters(), lr=0.05, weight_decay=0.01)
        for step in range(61):
            p, q = torch.sigmoid(probe(x)), torch.sigmoid(probe(opposite))
            loss = ((p - (1 - q)) ** 2 + torch.min(torch.cat([p, q], 1), 1, keepdim=True).values ** 2).mean()
            if step < 60:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        ends.append((loss.item(), probe.weight.detach().numpy()[0] / scale))
    loss, weights = min(ends, key=lambda end: end[0])
    assert made.loss_ == pytest.approx(loss, rel=1e-9)
    np.testing.assert_allclose(np.abs(made.direction_), np.abs(weights), rtol=1e-7)
    assert made.score(data.rows, data.y) > 0.5


def test_ccs_finds_truth_without_labels_and_takes_its_sign_from_them() -> None:
    data = negations()
    given: dict[str, Any] = {"pairs": data.pairs, "polarity": data.polarity}
    one, other = (Ccs(4, learning_rate=0.01).fit(data.rows, y, **given) for y in (data.y, ~data.y))
    assert one.score(data.rows, data.y) > 0.85
    np.testing.assert_allclose(one.direction_, -other.direction_)
    assert one.bias_ == pytest.approx(-other.bias_)
    np.testing.assert_allclose(one.predict_proba(data.rows).sum(1), 1.0)
    # With one mean for both kinds "is negated" is as consistent as truth, and larger here.
    blind = Ccs(4, learning_rate=0.01).fit(data.rows, data.y, pairs=data.pairs)
    assert blind.score(data.rows, data.y) < 0.7


def test_ccs_in_the_form_of_geometry_of_truth_has_no_bias() -> None:
    data = negations()
    made = Ccs(1, fit_intercept=False, standardise=False, weight_decay=0.1).fit(
        data.rows, data.y, pairs=data.pairs, polarity=data.polarity
    )
    affirmed = data.polarity > 0
    middle = (data.rows[affirmed].mean(0) + data.rows[~affirmed].mean(0)) / 2
    assert made.decision_function(middle[None])[0] == pytest.approx(0.0, abs=1e-9)


# ----------------------------------------------------------------------------------------------------------- TTPD


def test_ttpd_equals_the_published_least_squares_on_balanced_statements() -> None:
    data = negations()
    made = Ttpd().fit(data.rows, data.y, polarity=data.polarity)
    design = np.stack([data.truth, data.truth * data.polarity], axis=1).astype(float)
    centred = data.rows - data.rows.mean(0)
    general, sensitive = np.linalg.inv(design.T @ design) @ design.T @ centred
    np.testing.assert_allclose(made.direction_, general, atol=1e-12)
    np.testing.assert_allclose(made.polarity_sensitive_, sensitive, atol=1e-12)
    assert cosine(made.direction_, data.general) > 0.95
    assert cosine(made.polarity_sensitive_, data.sensitive) > 0.95


def test_ttpd_holds_on_negations_where_affirmations_alone_mislead() -> None:
    data = negations(300)
    affirmed, train = data.polarity > 0, data.pairs < 150
    naive = DifferenceInMeans().fit(data.rows[train & affirmed], data.y[train & affirmed])
    both = Ttpd().fit(data.rows[train], data.y[train], polarity=data.polarity[train])
    assert abs(cosine(naive.direction_, data.general)) < 0.85
    new_affirmed, new_negated = ~train & affirmed, ~train & ~affirmed
    assert naive.score(data.rows[new_affirmed], data.y[new_affirmed]) > 0.8
    assert naive.score(data.rows[new_negated], data.y[new_negated]) < 0.6
    for new in (new_affirmed, new_negated):
        assert both.score(data.rows[new], data.y[new]) > 0.85
    expected = data.rows @ both.weights_ + both.intercept_
    np.testing.assert_allclose(both.decision_function(data.rows), expected)


def test_an_unbalanced_set_does_not_pull_truth_towards_polarity() -> None:
    """Mostly true affirmations and mostly false negations; the four means give the effects exactly."""
    data = negations(400, 8)
    kept = np.random.default_rng(0).random(len(data.y)) < np.where(data.truth * data.polarity > 0, 1.0, 0.2)
    rows, truth, polarity = data.rows[kept], data.truth[kept], data.polarity[kept]
    mean = {(t, p): rows[(truth == t) & (polarity == p)].mean(0) for t in (1, -1) for p in (1, -1)}
    expected = sum(t * m for (t, _), m in mean.items()) / 4
    made = Ttpd().fit(rows, truth > 0, polarity=polarity)
    np.testing.assert_allclose(made.direction_, expected, atol=1e-10)
    without = LinearRegression().fit(np.stack([truth, truth * polarity], 1), rows).coef_[:, 0]
    assert cosine(made.direction_, data.general) > cosine(without, data.general) + 0.05


def test_without_polarity_ttpd_is_the_difference_in_means() -> None:
    data = negations()
    made = Ttpd().fit(data.rows, data.y)
    np.testing.assert_allclose(
        2 * made.direction_, DifferenceInMeans().fit(data.rows, data.y).direction_, atol=1e-12
    )
    assert made.polarity_direction_ is None


# ------------------------------------------------------------------------------------- scikit-learn and Direction


@pytest.mark.parametrize("estimator", [PcaReader(), Ccs(2, steps=200, learning_rate=0.02), Ttpd()], ids=str)
def test_pairs_and_polarity_go_through_model_selection(estimator: Any) -> None:
    data = negations(60, 8)
    given = {"pairs": data.pairs, "polarity": data.polarity}
    given = {name: x for name, x in given.items() if name == "polarity" or not isinstance(estimator, Ttpd)}
    scores = cross_val_score(estimator, data.rows, data.y, groups=data.pairs, cv=GroupKFold(3), params=given)
    assert scores.mean() > 0.75
    steps = make_pipeline(StandardScaler(), clone(estimator))
    name = type(estimator).__name__.lower()
    fitted = steps.fit(data.rows, data.y, **{f"{name}__{key}": x for key, x in given.items()})
    assert fitted.score(data.rows, data.y) > 0.75


def test_a_grid_chooses_the_centring() -> None:
    rows, y, pairs, _ = ordered_pairs(60, 16)
    grid = GridSearchCV(PcaReader(), {"centring": ["ordered", "none"]}, cv=GroupKFold(3))
    grid.fit(rows, y, groups=pairs, pairs=pairs)
    assert grid.best_params_ == {"centring": "none"}


def test_fit_direction_pairs_the_tokens_of_prompts_in_turn() -> None:
    """Two prompts a pair, three tokens a prompt: the k-th token of one against the k-th of the other."""
    random = torch.Generator().manual_seed(0)
    states = torch.randn(24, 5, generator=random)
    acts = Activations(
        {SITE: states}, torch.arange(8).repeat_interleave(3), torch.arange(3).repeat(8), 8, "tiny", "f00d"
    )
    labels, pairs = [1, 1, 0, 0, 1, 0, 0, 1], ["a", "b", "b", "a", "c", "c", "d", "d"]
    made = fit_direction(acts, labels, PcaReader(), pairs=pairs)
    at = {(pair, label): i for i, (pair, label) in enumerate(zip(pairs, labels, strict=True))}
    differences = torch.cat(
        [states[3 * at[pair, 1] :][:3] - states[3 * at[pair, 0] :][:3] for pair in "abcd"]
    ).double()
    expected = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    assert abs(cosine(made[SITE].double().numpy(), expected.numpy())) > 1 - 1e-9
    with_polarity = fit_direction(acts, labels, Ttpd(), pairs=pairs, polarity=[1, -1, 1, -1, 1, -1, 1, -1])
    assert with_polarity.estimator == "Ttpd"
    with pytest.raises(DirectionError, match="8 prompts came with 2 pairs"):
        fit_direction(acts, labels, PcaReader(), pairs=["a", "b"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x, y: PcaReader().fit(x, y), "PcaReader reads pairs; give one pair number a row"),
        (lambda x, y: Ccs().fit(x, y), "Ccs reads pairs"),
        (lambda x, y: PcaReader().fit(x, y, pairs=[0, 1]), "4 rows came with 2 pair numbers"),
        (lambda x, y: PcaReader().fit(x, y, pairs=[0, 1, 0, 1]), "Pair 0 has 2 positive and 0 negative rows"),
        (lambda x, y: PcaReader("middle").fit(x, y, pairs=[0, 0, 1, 1]), "'ordered', not 'middle'"),
        (lambda x, y: PcaReader().fit(0 * x, y, pairs=[0, 0, 1, 1]), "The pairs do not differ"),
        (lambda x, y: Ccs(0).fit(x, y, pairs=[0, 0, 1, 1]), "not restarts=0"),
        (
            lambda x, y: Ccs().fit(x, y, pairs=[0, 0, 1, 1], polarity=[1, 1, -1, -1]),
            "1. pair has two rows of one",
        ),
        (lambda x, y: Ttpd().fit(x, y, polarity=[1, 1, 1, 1]), r"both must occur; there are \[1.0\]"),
        (lambda x, y: Ttpd().fit(x, y, polarity=[1, -1]), "4 rows came with 2 polarities"),
        (lambda x, y: PcaReader().fit_moments(plain_moments(x, y), SITE), "needs moments of differences"),
        (lambda x, y: PcaReader("shuffled").fit_moments(of_differences(x), SITE), "needs their rows"),
    ],
)
def test_misuse_is_named(make: Any, sentence: str) -> None:
    with pytest.raises(DirectionError, match=sentence):
        make(np.eye(4), np.array([1, 0, 1, 0]))


def plain_moments(rows: np.ndarray, labels: np.ndarray) -> Moments:
    moments = Moments("scatter")
    moments.update({SITE: torch.from_numpy(rows)}, labels.tolist())
    return moments


def of_differences(rows: np.ndarray) -> Moments:
    moments = Moments("scatter", classes=[DIFFERENCE])
    moments.update({SITE: torch.from_numpy(rows)}, [1, 0, DIFFERENCE, DIFFERENCE])
    return moments


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
