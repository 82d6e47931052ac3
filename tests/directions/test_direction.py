from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from steerlab.activations import Activations, Moments, capture
from steerlab.directions import (
    DifferenceInMeans,
    Direction,
    LogisticProbe,
    MassMean,
    ModelRef,
    _stored,
    fit_direction,
)
from steerlab.errors import DirectionError, SiteError
from steerlab.models import Index, LanguageModel, Last, Site
from steerlab.statistics import Estimate

A, B = Site("resid_post", 0), Site("resid_post", 1)


def states(n: int = 40, width: int = 6, seed: int = 0) -> tuple[Activations, np.ndarray]:
    """Rows of two classes at two sites, one row a prompt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    rows = {
        site: 1.0
        + torch.randn(n, width, generator=generator)
        + labels[:, None] * torch.arange(1.0, width + 1)
        for site in (A, B)
    }
    acts = Activations(rows, torch.arange(n), torch.zeros(n, dtype=torch.long), n, "tiny", "f00d")
    return acts, labels.numpy()


def fitted(seed: int = 0, estimator: Any = None) -> tuple[Direction, Activations, np.ndarray]:
    acts, labels = states(seed=seed)
    made = fit_direction(acts, labels, estimator or DifferenceInMeans(), dataset_hash="data", position=Last())
    return made, acts, labels


# ------------------------------------------------------------------------------------------------------- fitting


@pytest.mark.parametrize(
    "estimator", [DifferenceInMeans(), MassMean(tilt=True), LogisticProbe(C=0.3)], ids=str
)
def test_fitting_measures_the_scale_of_each_site(estimator: Any) -> None:
    made, acts, labels = fitted(estimator=estimator)
    for site in (A, B):
        x = acts[site].double()
        unit = made[site].double() / made[site].double().norm()
        high, low = (x[labels == 1] @ unit), (x[labels == 0] @ unit)
        assert made.class_gap[site] == pytest.approx(float(high.mean() - low.mean()), rel=1e-6)
        assert made.stream_norm[site] == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-6)
        known = made.statistics[site]
        assert known.sigma is not None
        assert known.sigma[0] ** 2 == pytest.approx(float((high.var() + low.var()) / 2), rel=1e-5)
        assert known.class_means["1"][0] == pytest.approx(float(high.mean()), rel=1e-6)
        scores = (
            type(estimator)(**estimator.get_params()).fit(acts[site], labels).decision_function(acts[site])
        )
        assert known.bias is not None
        np.testing.assert_allclose(x.numpy() @ made[site].double().numpy() + known.bias[0], scores, atol=1e-4)
        assert known.threshold is not None
        assert ((x @ unit).numpy() > known.threshold[0]).tolist() == (scores > 0).tolist()
    assert (made.estimator, made.dataset_hash, made.position) == (type(estimator).__name__, "data", "Last()")
    assert made.parameters == estimator.get_params()
    assert not hasattr(estimator, "direction_")


@pytest.mark.parametrize("estimator", [DifferenceInMeans(), MassMean(tilt=True)], ids=str)
def test_moments_give_the_direction_that_rows_give(estimator: Any) -> None:
    made, acts, labels = fitted(estimator=estimator)
    moments = Moments("scatter")
    moments.update(acts.states, labels)
    moments.model_name, moments.fingerprint = "tiny", "f00d"
    streamed = fit_direction(moments, estimator=estimator, dataset_hash="data", position=Last())
    for site in (A, B):
        torch.testing.assert_close(streamed[site], made[site], rtol=1e-5, atol=1e-5)
        assert streamed.class_gap[site] == pytest.approx(made.class_gap[site], rel=1e-5)
        assert streamed.stream_norm[site] == pytest.approx(made.stream_norm[site], rel=1e-5)
        assert streamed.statistics[site].sigma == pytest.approx(made.statistics[site].sigma, rel=1e-4)
    with pytest.raises(DirectionError, match="LogisticProbe needs the rows"):
        fit_direction(moments, estimator=LogisticProbe())


def test_words_as_labels_need_a_positive_class_and_rows_share_their_prompts_label() -> None:
    acts, labels = states()
    words = ["harmful" if label else "harmless" for label in labels]
    with pytest.raises(DirectionError, match="do not say which class is positive"):
        fit_direction(acts, words, DifferenceInMeans())
    made = fit_direction(acts, words, DifferenceInMeans(), positive="harmful")
    torch.testing.assert_close(made[A], fitted()[0][A])
    assert set(made.statistics[A].class_means) == {"harmful", "harmless"}

    twice = Activations(
        {site: rows.repeat_interleave(2, dim=0) for site, rows in acts.states.items()},
        acts.example.repeat_interleave(2),
        torch.arange(2).repeat(40),
        40,
        "tiny",
        "f00d",
    )
    torch.testing.assert_close(fit_direction(twice, labels, DifferenceInMeans())[A], made[A])


@pytest.mark.parametrize(
    ("labels", "positive", "sentence"),
    [
        (None, None, "needs labels"),
        ([0, 1], None, "40 prompts came with 2 labels"),
        ([0] * 40, None, r"two classes; the labels hold \[0\]"),
        ([0, 1, 2, 1] * 10, None, r"the labels hold \[0, 1, 2\]"),
        (["a", "b"] * 20, "c", "No label is 'c'"),
    ],
)
def test_labels_that_are_not_two_classes_are_named(labels: Any, positive: Any, sentence: str) -> None:
    with pytest.raises(DirectionError, match=sentence):
        fit_direction(states()[0], labels, DifferenceInMeans(), positive=positive)


# ---------------------------------------------------------------------------------------------------- arithmetic


@settings(deadline=None, max_examples=25)
@given(factor=st.floats(-5, 5).filter(lambda x: abs(x) > 1e-2), seed=st.integers(0, 50))
def test_statistics_follow_the_arithmetic(factor: float, seed: int) -> None:
    """Class means, bias and threshold of scaled and added vectors equal those measured on the states."""
    acts, labels = states(seed=seed)
    first = fit_direction(acts, labels, DifferenceInMeans(), dataset_hash="data")
    second = fit_direction(acts, labels, LogisticProbe(), dataset_hash="data")
    for made in (factor * first, -first, first + factor * second, first - second, first.unit(), first / 2):
        vector = made[A].double()
        projections = acts[A].double() @ (vector / vector.norm())
        known = made.statistics[A]
        for label in (0, 1):
            mean = float(projections[torch.from_numpy(labels == label)].mean())
            assert known.class_means[str(label)][0] == pytest.approx(mean, abs=1e-3)
        if known.positive is not None and made is not first:
            gap = known.class_means[known.positive][0] - known.class_means[str(known.negative)][0]
            assert made.class_gap[A] == pytest.approx(gap)
    scaled = factor * first
    assert scaled.class_gap[A] == pytest.approx(first.class_gap[A])
    bias, threshold = scaled.statistics[A].bias, scaled.statistics[A].threshold
    assert bias is not None
    assert threshold is not None
    assert threshold[0] == pytest.approx(-bias[0] / float(scaled[A].norm()), rel=1e-4)


def test_vectors_add_scale_negate_and_shorten() -> None:
    first, second = fitted(0)[0], fitted(1)[0]
    torch.testing.assert_close((first + second)[A], first[A] + second[A])
    torch.testing.assert_close((first - second)[B], first[B] - second[B])
    torch.testing.assert_close((-first)[A], -first[A])
    torch.testing.assert_close((3 * first)[A], 3 * first[A])
    assert float(first.unit()[A].norm()) == pytest.approx(1.0)
    assert first.cosine(-2 * first)[A] == pytest.approx(-1.0)
    cosine = torch.cosine_similarity(first[A], second[A], dim=0)
    assert first.cosine(second)[A] == pytest.approx(float(cosine), rel=1e-5)
    assert first.at(B).sites == (B,)


def test_a_sum_over_different_data_forgets_the_class_means() -> None:
    first, _, _ = fitted()
    acts, labels = states(seed=1)
    other = fit_direction(acts, labels, DifferenceInMeans(), dataset_hash="other data")
    with pytest.raises(DirectionError, match=r"class means at resid_post\.0 are not known"):
        _ = (first + other).class_gap
    with pytest.raises(DirectionError, match="stream norm"):
        _ = (first + other).stream_norm


def test_sums_across_models_sites_or_widths_are_refused() -> None:
    first, _, _ = fitted()
    with pytest.raises(DirectionError, match="cannot be added"):
        _ = first + first.at(A)
    with pytest.raises(DirectionError, match="cannot be added"):
        _ = first + Direction(first.vectors, "other", "beef")
    with pytest.raises(DirectionError, match=r"shapes \(1, 6\) and \(1, 2\)"):
        _ = first.at(A) + Direction({A: torch.ones(2)}, "tiny", "f00d")
    with pytest.raises(DirectionError, match="share no site"):
        first.at(A).cosine(first.at(B))
    with pytest.raises(DirectionError, match="points nowhere"):
        _ = first * 0.0


@pytest.mark.parametrize(
    ("vector", "sentence"),
    [
        (torch.zeros(4), "is zero"),
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.zeros(0), "need"),
        (torch.ones(2, 2, 2), "need"),
    ],
)
def test_vectors_that_point_nowhere_are_refused(vector: Tensor, sentence: str) -> None:
    with pytest.raises(DirectionError, match=sentence):
        Direction({A: vector}, "tiny", "f00d")


def test_subspaces_are_read_as_rows() -> None:
    plane = Direction({A: torch.eye(3)[:2]}, "tiny", "f00d")
    assert plane.vectors[A].shape == (2, 3)
    with pytest.raises(DirectionError, match="subspace of 2 vectors"):
        plane[A]
    with pytest.raises(DirectionError, match=r"no vector at resid_post\.1; it has resid_post\.0"):
        plane[B]


# --------------------------------------------------------------------------------------------------------- files


def test_a_file_gives_back_everything(tmp_path: Path) -> None:
    made = fitted(estimator=MassMean(tilt=True, shrinkage=0.25))[0]
    moved = Direction(**{**vars(made), "origin": (ModelRef(name="first", fingerprint="0"),)})
    moved.save(tmp_path / "d.safetensors")
    again = Direction.load(tmp_path / "d.safetensors")
    for site in (A, B):
        assert torch.equal(again[site], made[site])
    assert (again.statistics, again.parameters, again.origin) == (
        made.statistics,
        made.parameters,
        moved.origin,
    )
    for name in ("model_name", "fingerprint", "estimator", "dataset_hash", "position", "hash"):
        assert getattr(again, name) == getattr(made, name)
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_the_header_says_what_made_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    fitted()[0].save(tmp_path / "d.safetensors")
    with safe_open(str(tmp_path / "d.safetensors"), framework="pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["format"] == "steerlab.direction"
    assert header["version"] == 4
    assert header["model"] == {"name": "tiny", "fingerprint": "f00d"}
    assert {"steerlab", "torch", "transformers"} <= set(header["libraries"])
    assert set(header["sites"]) == {"resid_post.0", "resid_post.1"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 5}, "is of version 5, but this library reads versions 1 to 4"),
        ({"estimator": 3}, "estimator"),
        ({"surprise": 1}, "surprise"),
        ({"sites": {}}, "disagree about sites or shapes"),
        ({"model": {"name": "tiny"}}, r"model\.fingerprint"),
        ({"best": "resid_post.9"}, r"is damaged: The best site resid_post\.9"),
        ({"best": "nowhere"}, r"is damaged: .*nowhere"),
        (
            {"accuracy": {"resid_post.9": {"value": 0.5}}},
            r"is damaged: An accuracy is known at resid_post\.9",
        ),
        ({"accuracy": {"nowhere": {"value": 0.5}}}, r"is damaged: .*nowhere"),
    ],
)
def test_headers_that_do_not_hold_are_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    made = fitted()[0]
    header = {**json.loads(_stored.header(made).model_dump_json()), **change}
    path = tmp_path / "d.safetensors"
    save_file(
        _stored.tensors(made),
        str(path),
        metadata={"format": "steerlab.direction", "header": json.dumps(header)},
    )
    with pytest.raises(DirectionError, match=sentence):
        Direction.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"class_means": {"0": [1.0, 2.0], "1": [1.0]}}, "means of '0' at resid_post.0 has 2 numbers for 1 vectors"),
        ({"bias": [1.0, 2.0]}, "bias at resid_post.0 has 2 numbers"),
        ({"threshold": []}, "threshold at resid_post.0 has 0 numbers"),
        ({"sigma": [1.0, 2.0]}, "2 sigmas at resid_post.0 for 1"),
        ({"positive": "neither"}, "The class 'neither' at resid_post.0 has no mean"),
        ({"heads": [0]}, "heads live at z"),
    ],
)  # fmt: skip
def test_statistics_that_do_not_belong_to_the_vectors_are_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    made = fitted()[0]
    header = json.loads(_stored.header(made).model_dump_json())
    header["sites"]["resid_post.0"] |= change
    path = tmp_path / "d.safetensors"
    save_file(
        _stored.tensors(made),
        str(path),
        metadata={"format": "steerlab.direction", "header": json.dumps(header)},
    )
    with pytest.raises(
        DirectionError, match=rf"d\.safetensors is damaged: .*{sentence}.*; make the direction again"
    ):
        Direction.load(path)


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        ({"nowhere": torch.ones(1, 3)}, "nowhere"),
        ({"resid_post.0": torch.zeros(1, 3)}, "points nowhere"),
        ({"resid_post.0": torch.full((1, 3), torch.nan)}, "not finite"),
        ({"resid_post.0": torch.ones(1, 3), "blocks.0.hook_resid_post": torch.ones(1, 3)}, "under two names"),
    ],
)
def test_vectors_that_are_none_name_their_file(
    tmp_path: Path, vectors: dict[str, Tensor], sentence: str
) -> None:
    header = json.loads(_stored.header(Direction({A: torch.ones(3)}, "tiny", "f00d")).model_dump_json())
    header["sites"] = {name: {"k": 1, "width": 3} for name in vectors}
    path = tmp_path / "d.safetensors"
    save_file(vectors, str(path), metadata={"format": "steerlab.direction", "header": json.dumps(header)})
    with pytest.raises(DirectionError, match=rf"d\.safetensors is damaged: .*{sentence}"):
        Direction.load(path)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_copies_and_pickles_are_the_same_direction(copied: Callable[[Direction], Direction]) -> None:
    made = fitted(estimator=MassMean(tilt=True, shrinkage=0.25))[0]
    again = copied(made)
    assert (again.hash, again.statistics, again.parameters) == (made.hash, made.statistics, made.parameters)
    assert (again * 2)[A].equal(2 * made[A])


def test_no_length_of_the_header_looks_like_a_pickle(tmp_path: Path) -> None:
    """The file begins with the header's length, whose lowest byte takes every multiple of eight, 0x80 among them."""
    starts = set()
    for extra in range(0, 256, 8):
        path = tmp_path / f"{extra}.safetensors"
        Direction(
            {Site("resid_post", 0): torch.ones(1, 4)}, model_name="m" * (200 + extra), fingerprint="f"
        ).save(path)
        starts.add(path.read_bytes()[0])
        assert Direction.load(path).model_name == "m" * (200 + extra)
    assert 0x80 in starts


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    torch.save({"resid_post.0": torch.ones(3)}, path)
    with pytest.raises(DirectionError, match="is a pickle and is not opened"):
        Direction.load(path)
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DirectionError, match="is a pickle"):
        Direction.load(path)
    path.write_bytes(b"hello, this is no tensor file")
    with pytest.raises(DirectionError, match="cannot be read as a safetensors file"):
        Direction.load(path)
    save_file({"x": torch.ones(3)}, str(path))
    with pytest.raises(DirectionError, match="is not a direction file"):
        Direction.load(path)
    with pytest.raises(DirectionError, match="cannot be opened: No such file"):
        Direction.load(tmp_path / "missing.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectionError, match="cannot be written"):
        fitted()[0].save(tmp_path / "file" / "d.safetensors")
    fitted()[0].save(tmp_path / "new folder" / "d.safetensors")
    assert Direction.load(tmp_path / "new folder" / "d.safetensors").sites


# ---------------------------------------------------------------------------------------------- fitting to models

HALF = Estimate(value=0.5, low=0.1, high=0.9, n=5)


def of(model: LanguageModel, site: Site, width: int) -> Direction:
    return Direction({site: torch.ones(width)}, model.name, model.fingerprint)


def test_directions_belong_to_their_model(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    made = of(tiny_llama, A, tiny_llama.d_model)
    made.check(tiny_llama)
    with pytest.raises(DirectionError, match=r"was made in tiny-llama .* not in tiny-gpt2"):
        made.check(tiny_gpt2)
    with pytest.raises(DirectionError, match=r"width 5 but resid_post\.0 of tiny-llama has width 32"):
        of(tiny_llama, A, 5).check(tiny_llama)
    with pytest.raises(DirectionError, match=r"cannot be used at resid_post\.7\. .* layers 0 to 2"):
        of(tiny_llama, Site("resid_post", 7), 32).check(tiny_llama)


def test_moving_to_another_model_is_explicit_and_remembered(tiny_llama: LanguageModel) -> None:
    post = tiny("llama", seed=5)
    made = of(tiny_llama, A, 32)
    moved = made.moved_to(post)
    moved.check(post)
    assert torch.equal(moved[A], made[A])
    assert moved.origin == (ModelRef(name=tiny_llama.name, fingerprint=tiny_llama.fingerprint),)
    known = Direction(
        {A: made[A]}, "tiny", made.fingerprint, accuracy={"resid_post.0": HALF}, best="resid_post.0"
    )  # type: ignore[dict-item,arg-type]
    assert (dict(known.accuracy), known.best) == ({A: HALF}, A)
    assert (dict(known.moved_to(post).accuracy), known.moved_to(post).best) == ({}, A)
    with pytest.raises(DirectionError, match="has width 32"):
        made.moved_to(tiny("llama", hidden_size=16))


def test_sites_of_a_direction_as_they_are_typed() -> None:
    vectors = {Site("resid_post", layer): torch.randn(4) for layer in range(3)}
    made = Direction(vectors, "tiny", "f00d")
    assert torch.equal(made[1], vectors[Site("resid_post", 1)])
    assert torch.equal(made["resid_post.2"], made["blocks.2.hook_resid_post"])
    assert made.at(0, "resid_post.2").sites == (Site("resid_post", 0), Site("resid_post", 2))
    assert made.at("resid_post").sites == made.sites
    for wrong, words in [(9, "no vector at 9; it has resid_post.0"), ("resid_post", "name one of")]:
        with pytest.raises(DirectionError, match=words):
            made[wrong]  # type: ignore[index]
    both = Direction({**vectors, Site("mlp_out", 1): torch.randn(4)}, "tiny", "f00d")
    with pytest.raises(SiteError, match="Layer 1 alone"):
        both[1]


def test_states_say_where_a_direction_comes_from(tiny_llama: LanguageModel) -> None:
    prompts, labels = ["a cat", "a dog", "two cats", "two dogs"], [1, 0, 1, 0]
    states = capture(tiny_llama, prompts, "resid_post", positions=Index(-1))
    made = fit_direction(states, labels)
    assert (made.model_name, made.fingerprint) == (tiny_llama.name, tiny_llama.fingerprint)
    assert (made.position, made.estimator) == ("Index(index=-1)", "DifferenceInMeans")
    assert len(states.prompts_hash) == len(made.dataset_hash) == 16
    assert fit_direction(states, [0, 1, 1, 0]).dataset_hash != made.dataset_hash
    assert fit_direction(states, labels, dataset_hash="mine", position=Last()).dataset_hash == "mine"
    assert fit_direction(states, [True, False, True, False], "mass-mean").estimator == "MassMean"


def test_moments_know_their_prompts_however_they_came(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    prompts, labels = ["a cat", "a dog", "two cats", "two dogs"], [1, 0, 1, 0]

    def read(order: list[int]) -> Moments:
        texts, classes = [prompts[i] for i in order], [labels[i] for i in order]
        return capture(tiny_llama, texts, "resid_post", into=Moments(), labels=classes)

    whole = read([0, 1, 2, 3])
    merged = read([3, 0]) + read([2, 1])
    assert merged.prompts_hash == whole.prompts_hash != read([0, 1]).prompts_hash
    assert merged.positions == whole.positions == "Last()"
    merged.save(tmp_path / "moments.safetensors")
    again = Moments.load(tmp_path / "moments.safetensors")
    assert (again.prompts_hash, again.positions) == (whole.prompts_hash, "Last()")
    made = fit_direction(again)
    assert (made.dataset_hash, made.position) == (whole.prompts_hash, "Last()")


def test_folds_that_cannot_be_fitted_leave_the_accuracy_unknown() -> None:

    class Demanding(DifferenceInMeans):
        def fit(self, states: Any, labels: Any) -> Demanding:
            if len(states) < 10:
                raise DirectionError("Ten rows are needed.")
            super().fit(states, labels)
            return self

    rows, labels = states(10)
    made = fit_direction(rows, labels, Demanding())
    assert (made.accuracy, made.best) == ({}, None)


def test_the_order_of_before_still_works_and_says_so() -> None:
    acts, labels = states()
    new = fit_direction(acts, labels, MassMean())
    for call in (
        lambda: fit_direction(MassMean(), acts, labels),  # type: ignore[arg-type]
        lambda: fit_direction("mass-mean", acts, labels=labels),  # type: ignore[arg-type, misc]
        lambda: fit_direction(estimator=MassMean(), activations=acts, labels=labels),  # type: ignore[call-arg]
    ):
        with pytest.warns(DeprecationWarning, match=r"fit_direction\(states, labels, estimator\)"):
            assert torch.equal(call()[A], new[A])
