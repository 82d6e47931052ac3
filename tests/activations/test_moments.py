from __future__ import annotations

import copy
import errno
import json
import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tolerances import close
from torch import Tensor

from steerlab.activations import Moments
from steerlab.activations import moments as room
from steerlab.errors import SteerlabError
from steerlab.files import read_tensors, write_tensors
from steerlab.models import Site

A, B = Site("resid_post", 0), Site("resid_post", 1)
WIDTHS = {A: 5, B: 3}


def rows_of(n: int, seed: int, offset: float = 0.0) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: offset + torch.randn(n, width, generator=generator) for site, width in WIDTHS.items()}


def sliced(rows: dict[Site, Tensor], part: slice) -> dict[Site, Tensor]:
    return {site: x[part] for site, x in rows.items()}


def expected(rows: dict[Site, Tensor], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and scatter of A and the cross moment of A and B, the plain way in float64."""
    a, b = (rows[site].double().numpy()[chosen] for site in (A, B))
    a_centred, b_centred = a - a.mean(0), b - b.mean(0)
    return a.mean(0), a_centred.T @ a_centred, a_centred.T @ b_centred


def filled(rows: dict[Site, Tensor], labels: list[int], cuts: list[int]) -> Moments:
    moments = Moments("cross", cross=[(A, B)])
    for start, end in zip([0, *cuts], [*cuts, len(labels)], strict=True):
        moments.update(sliced(rows, slice(start, end)), labels[start:end])
    return moments


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    block=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_batching_gives_the_statistics_of_the_stored_rows(
    labels: list[int], cuts: list[int], block: int, seed: int
) -> None:
    rows = rows_of(len(labels), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_BLOCK_ROWS", block)
        moments = filled(rows, labels, sorted(min(cut, len(labels)) for cut in cuts))
    for label in (None, *sorted(set(labels))):
        chosen = np.array([label is None or other == label for other in labels])
        mean, scatter, cross = expected(rows, chosen)
        assert moments.count(label) == chosen.sum()
        np.testing.assert_allclose(moments.mean(A, label), mean, atol=1e-12)
        np.testing.assert_allclose(moments.scatter(A, label), scatter, atol=1e-12)
        np.testing.assert_allclose(moments.cross(A, B, label), cross, atol=1e-12)
        norms = np.linalg.norm(rows[A].double().numpy()[chosen], axis=1)
        assert moments.norm(A, label) == pytest.approx(norms.mean(), rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    order=st.permutations(range(5)),
    seed=st.integers(0, 99),
)
def test_merging_in_any_order_is_exact(sizes: list[int], order: list[int], seed: int) -> None:
    n = sum(sizes)
    rows, labels = rows_of(n, seed), [i % 2 for i in range(n)]
    bounds = np.cumsum([0, *sizes])
    parts = [filled(sliced(rows, slice(lo, hi)), labels[lo:hi], []) for lo, hi in pairwise(bounds)]
    whole = filled(rows, labels, [])
    merged = Moments("cross", cross=[(A, B)])
    for i in order:
        if i < len(parts):
            merged.merge(parts[i])
    assert set(merged.labels) == set(whole.labels)
    for label in whole.labels:
        assert merged.count(label) == whole.count(label)
        torch.testing.assert_close(merged.scatter(A, label), whole.scatter(A, label), atol=1e-12, rtol=0)
        torch.testing.assert_close(merged.cross(A, B, label), whole.cross(A, B, label), atol=1e-12, rtol=0)
        assert merged.norm(A, label) == pytest.approx(whole.norm(A, label), rel=1e-12)


def test_merging_leaves_the_other_one_alone() -> None:
    first, second = filled(rows_of(6, 0), [0] * 6, []), filled(rows_of(4, 1), [0] * 4, [])
    before = second.scatter(A)
    total = first + second
    assert (total.count(), first.count(), second.count()) == (10, 6, 4)
    first.merge(second)
    first.update(rows_of(3, 2), [0] * 3)
    torch.testing.assert_close(second.scatter(A), before, atol=0, rtol=0)


def test_a_far_off_mean_costs_no_digits() -> None:
    rows = rows_of(600, 3, offset=1e4)
    moments = Moments("scatter")
    for start in range(0, 600, 7):
        moments.update(sliced(rows, slice(start, start + 7)))
    _, scatter, _ = expected(rows, np.ones(600, dtype=bool))
    close(moments.scatter(A), scatter, rtol=1e-09 * np.abs(scatter).max())


def test_within_scatter_and_covariance() -> None:
    rows, labels = rows_of(20, 4), [0, 1] * 10
    moments = filled(rows, labels, [])
    close(moments.within_scatter(A), moments.scatter(A, 0) + moments.scatter(A, 1))
    np.testing.assert_allclose(moments.covariance(A, 1), np.cov(rows[A][1::2].double().numpy().T), atol=1e-12)
    with pytest.raises(SteerlabError, match="more than 10 rows"):
        moments.covariance(A, 1, ddof=10)


def test_labels_may_be_anything_hashable_and_scalars_count_as_numbers() -> None:
    moments = Moments()
    moments.update(rows_of(6, 5), [np.int64(1), torch.tensor(True), 1.0, "kind", ("a", 2), np.str_("kind")])
    assert [moments.count(label) for label in (1, "kind", ("a", 2))] == [3, 2, 1]
    with pytest.raises(SteerlabError, match="No rows of class 'unkind'"):
        moments.mean(A, "unkind")


def test_half_precision_rows_accumulate_in_float64() -> None:
    rows = {site: x.bfloat16() for site, x in rows_of(50, 6, offset=3.0).items()}
    moments = Moments()
    moments.update(rows)
    torch.testing.assert_close(moments.mean(A), rows[A].double().mean(0), atol=1e-12, rtol=0)


def test_files_give_back_the_same_numbers(tmp_path: Path) -> None:
    moments = filled(rows_of(9, 7), [0, 1, 1] * 3, [4])
    moments.model_name, moments.fingerprint = "tiny", "abc"
    moments.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors")
    assert (again.order, again.pairs, again.sites, again.labels) == ("cross", ((A, B),), (A, B), (0, 1))
    assert (again.model_name, again.fingerprint) == ("tiny", "abc")
    for label in (0, 1):
        assert torch.equal(again.scatter(A, label), moments.scatter(A, label))
        assert torch.equal(again.cross(A, B, label), moments.cross(A, B, label))
        assert again.norm(B, label) == moments.norm(B, label)
    assert again.merge(moments).count() == 18


def test_wrong_files_and_unsaveable_labels_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, str(other))
    with pytest.raises(SteerlabError, match=r"other\.safetensors does not hold moments"):
        Moments.load(other)
    other.write_bytes(b"PK\x03\x04 not a tensor file")
    with pytest.raises(SteerlabError, match="cannot be read"):
        Moments.load(other)
    with pytest.raises(SteerlabError, match="cannot be read"):
        Moments.load(tmp_path / "missing.safetensors")
    moments = Moments()
    moments.update(rows_of(1, 0), [("a", 2)])
    with pytest.raises(SteerlabError, match="cannot be saved"):
        moments.save(tmp_path / "m.safetensors")


def stored(
    tmp_path: Path, moments: Moments, change: Callable[[dict[str, Any], dict[str, Tensor]], object]
) -> Path:
    """A file of moments in which header or tensors were changed."""
    path = tmp_path / "m.safetensors"
    moments.save(path)
    metadata, tensors = read_tensors(path)
    header = json.loads(metadata["header"])
    change(header, tensors)
    write_tensors(path, tensors, {**metadata, "header": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header, tensors: header.pop("order"), "order: Field required"),
        (lambda header, tensors: header.update(order="median"), "order: Input should be"),
        (lambda header, tensors: header.update(surprise=1), "surprise: Extra inputs"),
        (lambda header, tensors: header.update(sites=3), "sites: "),
        (lambda header, tensors: header.update(sites=[["nowhere.1", 3]]), "sites.0.0: .*nowhere"),
        (lambda header, tensors: header.update(sites=[["resid_post.0", -3]]), "sites.0.1: "),
        (lambda header, tensors: header["sites"].append(["blocks.0.hook_resid_post", 3]), "one of the sites twice"),
        (lambda header, tensors: header["classes"].append([0, 2]), "one of the classes twice"),
        (lambda header, tensors: header["classes"].append([5, 2]), "disagree about 2/cross"),
        (lambda header, tensors: header["classes"].pop(), "disagree about 1/cross"),
        (lambda header, tensors: header.update(classes=[[0, "three"], [1, 2]]), "classes.0.1: "),
        (lambda header, tensors: header.update(scatter_sites=["resid_post.9"]), "second moments at resid_post.9"),
        (lambda header, tensors: header.update(prompts_hash="no hash"), "prompts_hash: "),
        (lambda header, tensors: tensors.pop(f"0/mean/{A}"), "disagree about 0/mean"),
        (lambda header, tensors: tensors.update({f"0/mean/{A}": torch.zeros(99).double()}), "disagree about 0/mean"),
        (lambda header, tensors: tensors.update({f"0/norm/{A}": torch.zeros(())}), "disagree about 0/norm"),
        (lambda header, tensors: tensors.update({"0/surprise/x": torch.zeros(1)}), "disagree about 0/surprise"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_hold_together_is_a_sentence(
    change: Callable[[dict[str, Any], dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    moments = filled(rows_of(9, 7), [0, 1, 1] * 3, [4])
    with pytest.raises(
        SteerlabError, match=rf"m\.safetensors is damaged: .*{sentence}.*; save the moments again\.$"
    ):
        Moments.load(stored(tmp_path, moments, change))


def test_every_kind_of_moments_holds_together(tmp_path: Path) -> None:
    rows, labels = rows_of(9, 7), [0, 1, 1] * 3
    kinds = [
        Moments(),
        Moments("scatter"),
        Moments("scatter", sites=[B]),
        Moments("scatter", classes=[1]),
        Moments("cross", cross=[(A, B)]),
        Moments("cross", cross=[(A, B)], sites=[A], classes=[0]),
    ]
    for number, moments in enumerate(kinds):
        path = tmp_path / f"{number}.safetensors"
        moments.save(path)
        assert Moments.load(path).labels == ()
        moments.update(rows, labels)
        moments.save(path)
        assert Moments.load(path).count(1) == 6


def test_an_old_file_has_no_rule_and_no_hash(tmp_path: Path) -> None:
    def older(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in ("positions", "prompts_hash", "second_classes"):
            del header[name]

    assert Moments.load(stored(tmp_path, filled(rows_of(9, 7), [0, 1, 1] * 3, [4]), older)).count() == 9


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    moments = filled(rows_of(9, 7), [0, 1, 1] * 3, [4])
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        SteerlabError, match=r"cannot be written to .*m\.safetensors: No space left .*; choose another"
    ):
        moments.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_a_copy_takes_rows_of_its_own(copied: Callable[[Moments], Moments]) -> None:
    moments = filled(rows_of(9, 7), [0, 1, 1] * 3, [9])
    other = copied(moments)
    other.update(rows_of(3, 7), [0, 0, 0])
    assert (other.count(), moments.count()) == (12, 9)
    assert torch.equal(moments.mean(A), filled(rows_of(9, 7), [0, 1, 1] * 3, [9]).mean(A))


def test_second_moments_are_kept_where_they_were_asked_for() -> None:
    moments = Moments("scatter", sites=[B])
    moments.update(rows_of(4, 0))
    assert moments.has_scatter(B)
    assert not moments.has_scatter(A)
    assert moments.memory_needed(WIDTHS, classes=2) == 8 * 2 * 9
    with pytest.raises(SteerlabError, match=r"No scatter of resid_post\.0 is kept; there is resid_post\.1"):
        moments.scatter(A)
    with pytest.raises(SteerlabError, match=r"cross moment of|cross of"):
        moments.cross(A, B)


def test_second_moments_of_the_classes_that_were_asked_for(tmp_path: Path) -> None:
    rows, labels = rows_of(9, 0), ["kept", "left", "kept"] * 3
    moments, all_kept = Moments("scatter", classes=["kept"]), Moments("scatter")
    for made in (moments, all_kept):
        made.update(rows, labels)
    assert moments.memory_needed(WIDTHS, classes=2) == 8 * (25 + 9)
    assert moments.has_scatter(A, "kept")
    assert not moments.has_scatter(A, "left")
    assert not moments.has_scatter(A)
    moments.save(tmp_path / "m.safetensors")
    for made in (
        moments,
        moments + Moments("scatter", classes=["kept"]),
        Moments.load(tmp_path / "m.safetensors"),
    ):
        close(made.scatter(A, "kept"), all_kept.scatter(A, "kept"))
        close(made.mean(B, "left"), all_kept.mean(B, "left"))
        assert made.count("left") == 3
        with pytest.raises(SteerlabError, match="No scatter of"):
            made.scatter(A, "left")
    with pytest.raises(SteerlabError, match="different order, sites, pairs or classes"):
        moments.merge(all_kept)


def test_too_much_memory_is_refused_with_the_amount() -> None:
    moments = Moments("scatter", memory_budget=10 * 2**30)
    with pytest.raises(SteerlabError, match=r"need 12\.0 GiB, more than the budget of 10\.0 GiB"):
        moments.reserve({Site("resid_post", i): 8192 for i in range(12)}, classes=2)


def test_growing_classes_meet_the_budget_too() -> None:
    moments = Moments("scatter", memory_budget=8 * (25 + 9))
    moments.update(rows_of(2, 0), ["a", "a"])
    with pytest.raises(SteerlabError, match="2 classes need"):
        moments.update(rows_of(2, 0), ["a", "b"])
    assert moments.count() == 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Moments("variance"), "no order 'variance'"),  # type: ignore[arg-type]
        (lambda: Moments("mean", sites=[A]), "second moments"),
        (lambda: Moments("mean", classes=[1]), "second moments"),
        (lambda: Moments("cross"), "go together"),
        (lambda: Moments("scatter", cross=[(A, B)]), "go together"),
        (lambda: Moments().mean(A), "no rows yet"),
        (lambda: Moments().update({A: torch.zeros(2, 5), B: torch.zeros(3, 3)}), "same number of rows"),
        (lambda: Moments().update({A: torch.zeros(2, 5)}, [1]), "2 rows came with 1 labels"),
        (
            lambda: Moments("scatter", sites=[B]).update({A: torch.zeros(2, 5)}),
            r"resid_post\.1, which the states",
        ),
        (lambda: Moments("scatter").merge(Moments("mean")), "different order"),
    ],
)
def test_misuse_is_named(make: object, sentence: str) -> None:
    with pytest.raises(SteerlabError, match=sentence):
        make()  # type: ignore[operator]


def test_other_sites_and_other_models_are_refused() -> None:
    moments = filled(rows_of(2, 0), [0, 1], [])
    with pytest.raises(SteerlabError, match="cannot take"):
        moments.update({A: torch.zeros(1, 5)}, [0])
    other = filled(rows_of(2, 0), [0, 1], [])
    moments.model_name, moments.fingerprint = "one", "1"
    other.model_name, other.fingerprint = "two", "2"
    with pytest.raises(SteerlabError, match="one and of two"):
        moments.merge(other)
