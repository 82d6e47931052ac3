"""Every aligner against its closed form, scipy or scikit-learn, in float64, and what the method's own algebra says."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import sklearn.linear_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.model_selection import cross_val_score

from steerlab import alignment as al
from steerlab.errors import AlignmentError
from steerlab.files import read_tensors, write_tensors

EVERY: tuple[Any, ...] = (
    al.SvdRegression(8),
    al.SvdRegression(8, center=False),
    al.Ridge(0.1),
    al.Ridge(),
    al.ReducedRank(8, 0.1),
    al.Procrustes(8),
    al.Cca(8),
    al.AffineMap(epochs=20),
    al.Anchor(20),
    al.ZeroPad(),
    al.RandomOrthogonal(),
    al.ShuffledPairs(al.Ridge(0.1)),
    al.MeanOnly(),
)
STREAMED = tuple(one for one in EVERY if hasattr(one, "fit_moments"))


def rows(n: int = 60, d_x: int = 12, d_y: int = 17, noise: float = 0.1, seed: int = 0) -> tuple[Any, Any]:
    """Two models that see the same ten latents."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 10)) * np.linspace(3, 0.3, 10)
    x = (
        latent @ rng.standard_normal((10, d_x))
        + noise * rng.standard_normal((n, d_x))
        + rng.standard_normal(d_x)
    )
    y = (
        latent @ rng.standard_normal((10, d_y))
        + noise * rng.standard_normal((n, d_y))
        + rng.standard_normal(d_y)
    )
    return x, y


def named(aligner: Any) -> str:
    return repr(aligner)


@pytest.mark.parametrize(("n", "d_x"), [(60, 12), (20, 50)], ids=["primal", "dual"])
def test_ridge_is_scikit_learns(n: int, d_x: int) -> None:
    x, y = rows(n, d_x)
    ours = al.Ridge(0.03).fit(x, y)
    alpha = 0.03 * ((x - x.mean(0)) ** 2).sum() / n
    theirs = sklearn.linear_model.Ridge(alpha=alpha).fit(x, y)
    np.testing.assert_allclose(ours.transform_point(x), theirs.predict(x), atol=1e-6)
    np.testing.assert_allclose(ours.dense(), theirs.coef_.T, atol=1e-6)
    assert ours.score(x, y) == pytest.approx(theirs.score(x, y), abs=1e-9)


def test_procrustes_is_scipys() -> None:
    x, y = rows()
    ours = al.Procrustes(6).fit(x, y)
    (_, _, v_x), (_, _, v_y) = (scipy.linalg.svd(z - z.mean(0), full_matrices=False) for z in (x, y))
    p, q = (x - x.mean(0)) @ v_x[:6].T, (y - y.mean(0)) @ v_y[:6].T
    turn, size = scipy.linalg.orthogonal_procrustes(p, q)
    expected = size / (p**2).sum() * v_x[:6].T @ turn @ v_y[:6]
    np.testing.assert_allclose(ours.dense(), expected, atol=1e-6)
    unscaled = al.Procrustes(6, scale=False).fit(x, y)
    np.testing.assert_allclose(unscaled.dense(), v_x[:6].T @ turn @ v_y[:6], atol=1e-6)


def test_cca_is_whitening_and_svd_and_close_to_scikit_learns_iteration() -> None:
    x, y = rows(400, 6, 8, noise=1.0)
    ours = al.Cca(4, reg=0.0).fit(x, y)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    white = [scipy.linalg.inv(scipy.linalg.sqrtm(z.T @ z)) for z in (x0, y0)]
    left, values, right = scipy.linalg.svd(white[0] @ x0.T @ y0 @ white[1])
    np.testing.assert_allclose(ours.correlations_, values[:4], atol=1e-6)
    expected = white[0] @ left[:, :4] @ right[:4] @ scipy.linalg.sqrtm(y0.T @ y0)
    np.testing.assert_allclose(ours.dense(), expected, atol=1e-6)
    theirs = CCA(4, scale=False, max_iter=5000, tol=1e-10).fit(x, y)
    pairs = zip(*(z.T for z in theirs.transform(x, y)), strict=True)
    np.testing.assert_allclose(ours.correlations_, [np.corrcoef(a, b)[0, 1] for a, b in pairs], atol=1e-4)


def test_cca_with_shrinkage_is_least_squares_at_full_rank() -> None:
    x, y = rows(400, 6, 8, noise=1.0)
    ours = al.Cca(6, reg=0.0, shrink=True).fit(x, y)
    np.testing.assert_allclose(
        ours.dense(), sklearn.linear_model.LinearRegression().fit(x, y).coef_.T, atol=1e-8
    )


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_the_published_aligner_is_pinv_of_truncated_times_truncated(k: int, center: bool) -> None:
    x, y = rows()
    ours = al.SvdRegression(k, center=center).fit(x, y)
    best = []
    for z in (x, y):
        left, values, right = np.linalg.svd(z - z.mean(0) * center, full_matrices=False)
        best.append((left[:, :k] * values[:k]) @ right[:k])
    np.testing.assert_allclose(ours.dense(), np.linalg.pinv(best[0], rcond=1e-12) @ best[1], atol=1e-10)


def test_rank_one_carries_no_direction() -> None:
    x, y = rows()
    one = al.SvdRegression(1).fit(x, y)
    moved = one.transform_direction(np.random.default_rng(1).standard_normal((20, 12)))
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(unit @ unit.T), 1.0, atol=1e-10)
    assert one.rank == 1


def test_as_many_axes_as_rows_interpolate_uncentred() -> None:
    x, y = rows(15, 40, 50)
    whole = al.SvdRegression(15, center=False).fit(x, y)
    np.testing.assert_allclose(whole.transform_point(x), y, atol=1e-8)


def test_source_as_target_gives_the_projector() -> None:
    x, _ = rows()
    same = al.SvdRegression(4).fit(x, x)
    _, _, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(same.dense(), right[:4].T @ right[:4], atol=1e-10)


def test_reduced_rank_is_the_best_fit_of_its_rank() -> None:
    """With no ridge: least squares followed by the principal axes of the fitted values (Izenman, 1975)."""
    x, y = rows(200, noise=1.0)
    ours = al.ReducedRank(3, 0.0).fit(x, y)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    full = np.linalg.lstsq(x0, y0, rcond=None)[0]
    _, _, right = np.linalg.svd(x0 @ full, full_matrices=False)
    np.testing.assert_allclose(ours.dense(), full @ right[:3].T @ right[:3], atol=1e-8)
    assert ours.rank == 3
    assert ((y0 - x0 @ ours.dense()) ** 2).sum() < (
        (y0 - x0 @ al.SvdRegression(3).fit(x, y).dense()) ** 2
    ).sum()


@pytest.mark.parametrize("aligner", STREAMED, ids=named)
def test_streamed_moments_give_the_map_of_the_rows(aligner: Any) -> None:
    x, y = rows(200)
    moments = al.CrossMoments(12, 17)
    for start in range(0, 200, 33):
        moments.update(x[start : start + 33], torch.from_numpy(y[start : start + 33]))
    streamed = clone(aligner).fit_moments(moments)
    fitted = clone(aligner)
    if getattr(streamed, "cv_scores_", None) is not None:
        fitted.set_params(
            strength=streamed.strength_
        )  # folds are other rows, so the choice is compared below
    fitted.fit(x, y)
    np.testing.assert_allclose(streamed.dense(), fitted.dense(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(streamed.transform_point(x), fitted.transform_point(x), atol=1e-6)


def test_cross_moments_merge_exactly_and_say_their_memory() -> None:
    x, y = rows(90)
    whole = al.CrossMoments(12, 17, folds=3).update(x, y)
    parts = al.CrossMoments(12, 17, folds=3).update(x[:30], y[:30])
    parts.merge(al.CrossMoments(12, 17, folds=3).update(x[30:], y[30:]))
    for name in ("xx", "yy", "xy", "mean_x"):
        np.testing.assert_allclose(getattr(whole.total(), name), getattr(parts.total(), name), atol=1e-9)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    np.testing.assert_allclose(whole.total().xy, x0.T @ y0, atol=1e-9)
    assert al.CrossMoments.memory_needed(4096, 5120, 1) == 8 * (4096**2 + 5120**2 + 4096 * 5120)
    with pytest.raises(AlignmentError, match=r"need 3\.5 GiB, more than the budget of 1\.0 GiB"):
        al.CrossMoments(4096, 8192, folds=4, memory_budget=2**30)


@pytest.mark.parametrize("n", [40, 400])
def test_the_strength_is_the_one_that_predicts_differences(n: int) -> None:
    """The dual choice equals refitting scikit-learn's ridge on each fold; the primal one equals it on its own folds."""
    x, y = rows(n, 30, 17, noise=2.0)
    ours = al.Ridge(folds=4, grid=(1e-4, 1e-2, 1e-1, 1.0, 10.0)).fit(x, y)
    deal = np.random.default_rng(0).permutation(n) % 4
    moments = al.CrossMoments(30, 17, folds=4).update(x, y)
    streamed = al.Ridge(folds=4, grid=ours.grid).fit_moments(moments)
    for found, fold_of in ((ours, deal), (streamed, np.arange(n) % 4)):
        expected = []
        for strength in ours.grid:
            scores = []
            for fold in range(4):
                train, test = fold_of != fold, fold_of == fold
                alpha = strength * ((x[train] - x[train].mean(0)) ** 2).sum() / train.sum()
                residual = y[test] - sklearn.linear_model.Ridge(alpha=alpha).fit(x[train], y[train]).predict(
                    x[test]
                )
                centred = residual - residual.mean(0)
                scores.append(1 - (centred**2).sum() / ((y[test] - y[test].mean(0)) ** 2).sum())
            expected.append(np.mean(scores))
        np.testing.assert_allclose(found.cv_scores_, expected, atol=1e-6)
        assert found.strength_ == ours.grid[int(np.argmax(expected))]


@pytest.mark.parametrize("aligner", EVERY, ids=named)
def test_points_directions_and_probes_agree(aligner: Any) -> None:
    """A direction moves as the difference of two points; a pulled-back readout reads what the readout reads."""
    x, y = rows()
    fitted = clone(aligner).fit(x, y)
    a, b = x[:5], x[5:10]
    np.testing.assert_allclose(
        fitted.transform_point(a) - fitted.transform_point(b), fitted.transform_direction(a - b), atol=1e-8
    )
    readout = np.random.default_rng(2).standard_normal(17)
    np.testing.assert_allclose(
        a @ fitted.pullback_probe(readout), fitted.transform_direction(a) @ readout, atol=1e-8
    )
    left, core, right = fitted.factors
    np.testing.assert_allclose(left @ core @ right.T, fitted.dense())
    expected = np.linalg.svd(fitted.dense(), compute_uv=False)
    np.testing.assert_allclose(fitted.spectrum, expected[: len(fitted.spectrum)], atol=1e-8)


@pytest.mark.parametrize("aligner", EVERY, ids=named)
def test_files_give_back_the_aligner(aligner: Any, tmp_path: Path) -> None:
    x, y = rows()
    fitted = clone(aligner).fit(x, y)
    fitted.save(tmp_path / "one.safetensors")
    again = al.Aligner.load(tmp_path / "one.safetensors")
    assert repr(again) == repr(fitted)
    assert again.n_rows_ == 60
    np.testing.assert_array_equal(again.transform_point(x), fitted.transform_point(x))


def test_files_of_before_the_affine_map_was_renamed_are_read(tmp_path: Path) -> None:
    x, y = rows()
    fitted = al.AffineMap(epochs=2).fit(x, y)
    fitted.save(tmp_path / "new.safetensors")
    raw = (tmp_path / "new.safetensors").read_bytes()
    assert raw.count(b"AffineMap") == 1
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b"AffineMap", b"Affine").ljust(length)
    (tmp_path / "old.safetensors").write_bytes(raw[:8] + header + raw[8 + length :])
    again = al.Aligner.load(tmp_path / "old.safetensors")
    assert isinstance(again, al.AffineMap)


@pytest.mark.parametrize("aligner", EVERY, ids=named)
def test_aligners_are_scikit_learn_estimators(aligner: Any) -> None:
    x, y = rows()
    assert repr(clone(aligner).get_params(deep=False)) == repr(aligner.get_params(deep=False))
    scores = cross_val_score(aligner, x, y, cv=3)
    assert np.isfinite(scores).all()


def test_energy_is_the_share_inside_the_kept_axes() -> None:
    x, y = rows()
    fitted = al.SvdRegression(4).fit(x, y)
    _, _, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    v = np.random.default_rng(3).standard_normal(12)
    assert fitted.energy_in(v) == pytest.approx(((right[:4] @ v) ** 2).sum() / (v @ v))
    assert fitted.energy_in(right[0]) == pytest.approx(1)
    assert fitted.energy_in(right[5]) == pytest.approx(0, abs=1e-12)
    assert al.MeanOnly().fit(x, y).energy_in(v) == 0


@pytest.mark.parametrize(
    "aligner",
    [al.Ridge(), al.ReducedRank(10), al.Cca(10), al.Procrustes(10), al.SvdRegression(10)],
    ids=named,
)
def test_shuffled_pairs_predict_nothing(aligner: Any) -> None:
    x, y = rows(300, seed=4)
    fitted = al.ShuffledPairs(aligner).fit(x[:200], y[:200])
    assert al.r2_diff(fitted, x[200:], y[200:]) < 0.05
    assert al.r2_diff(clone(aligner).fit(x[:200], y[:200]), x[200:], y[200:]) > 0.5


def test_the_cycle_penalty_returns_more_and_the_map_predicts() -> None:
    x, y = rows(300, seed=5)
    x0 = x - x.mean(0)
    returned = {}
    for cycle in (0.0, 1.0):
        fitted = al.AffineMap(cycle, epochs=200).fit(x, y)
        left, core, right = fitted.back_
        there = fitted.transform_point(x) - y.mean(0)
        back = there @ left @ core @ right.T
        returned[cycle] = ((back - x0) ** 2).sum() / (x0**2).sum()
        assert al.r2_point(fitted, x, y) > 0.9
    assert returned[1.0] < returned[0.0]


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 40), st.integers(2, 30), st.integers(2, 30), st.integers(0, 99))
def test_a_shift_moves_no_direction_and_a_rotation_moves_with_the_rows(
    n: int, d_x: int, d_y: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d_x)), rng.standard_normal((n, d_y))
    turn = np.linalg.qr(rng.standard_normal((d_x, d_x)))[0]
    v = rng.standard_normal(d_x)
    for aligner in (al.Ridge(0.1), al.ReducedRank(2, 0.1), al.Cca(2), al.SvdRegression(2), al.Procrustes(2)):
        plain = clone(aligner).fit(x, y).transform_direction(v)
        np.testing.assert_allclose(clone(aligner).fit(x + 3, y - 5).transform_direction(v), plain, atol=1e-6)
        np.testing.assert_allclose(
            clone(aligner).fit(x @ turn, y).transform_direction(v @ turn), plain, atol=1e-5
        )


def test_wrong_rows_are_sentences() -> None:
    x, y = rows()
    broken = x.copy()
    broken[3, 4] = np.nan
    for given_x, given_y, aligner, match in (
        (x[:10], y[:11], al.Ridge(), "got 10 source and 11 target rows"),
        (x[:1], y[:1], al.Ridge(), "at least two rows"),
        (x[:3], y[:3], al.Ridge(), "needs at least four"),
        (x[0], y[0], al.Ridge(), r"as \[row, width\]"),
        (broken, y, al.Ridge(), "1 of the 60 source rows hold NaN"),
        (np.ones_like(x), y, al.Ridge(), "All 60 source rows are the same"),
        (x, y, al.SvdRegression(61), "cannot be fitted on 60 rows"),
        (x, y, al.Procrustes(0), "k goes from 1"),
        (x, y, al.Ridge(-1.0), "no strength"),
        (x, y, al.Cca(2, reg=-1.0), "no ridge"),
        (x, y, al.Anchor(100), "cannot be drawn from 60 rows"),
        (x, y, al.AffineMap(epochs=0), "at least one epoch"),
    ):
        with pytest.raises(AlignmentError, match=match):
            aligner.fit(given_x, given_y)
    fitted = al.Ridge(0.1).fit(x, y)
    with pytest.raises(AlignmentError, match="fitted between widths 12 and 17; it got 17"):
        fitted.transform_direction(y)
    with pytest.raises(AlignmentError, match="take rows of widths 12 and 17"):
        al.CrossMoments(12, 17).update(y, x)
    with pytest.raises(AlignmentError, match="0 rows cannot be aligned"):
        al.Ridge(0.1).fit_moments(al.CrossMoments(12, 17))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="cannot be read"):
        al.Aligner.load(tmp_path / "none.safetensors")
    x, y = rows()
    al.Ridge(0.1).fit(x, y).save(tmp_path / "aligner.safetensors")
    with pytest.raises(AlignmentError, match=r"no file of steerlab\.alignment"):
        al.Alignment.load(tmp_path / "aligner.safetensors")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header, stored: header.pop("aligner"), "'aligner'"),
        (lambda header, stored: header.update(aligner=3), "int"),
        (lambda header, stored: header["aligner"].pop("rows"), "'rows'"),
        (lambda header, stored: header["aligner"].update(rows="many"), "many"),
        (lambda header, stored: header["aligner"].update(options={"colour": 1}), "colour"),
        (lambda header, stored: header["aligner"].update(options=[1]), "list"),
        (lambda header, stored: stored.pop("core"), "there are left, mean_x, mean_y, right"),
        (lambda header, stored: stored.update(more=torch.zeros(1)), "more"),
        (lambda header, stored: stored.update(core=torch.zeros(3)), "zip"),
        (lambda header, stored: stored.update(mean_x=torch.zeros(3)), "do not fit each other"),
        (lambda header, stored: stored.update(left=torch.zeros(2, 2, 2)), "do not fit each other"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_hold_together_is_a_sentence(change: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    al.Ridge(0.1).fit(*rows()).save(path)
    metadata, stored = read_tensors(path)
    header = json.loads(metadata["header"])
    change(header, stored)
    write_tensors(path, stored, {**metadata, "header": json.dumps(header)})
    with pytest.raises(AlignmentError, match=rf"a\.safetensors is damaged: .*{sentence}.*; fit it again\.$"):
        al.Aligner.load(path)


def test_headers_that_are_no_table_and_full_disks_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    fitted = al.Ridge(0.1).fit(*rows())
    fitted.save(path)
    metadata, stored = read_tensors(path)
    for header in ("[]", "{", "[" * 100_000):
        write_tensors(path, stored, {**metadata, "header": header})
        with pytest.raises(AlignmentError, match=r"cannot be read as|its header is no table"):
            al.Aligner.load(path)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        AlignmentError, match=r"cannot be written: No space left on device; choose another place"
    ):
        fitted.save(path)
