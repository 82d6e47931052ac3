"""What repeng and steering-vectors made of the bundled model, beside ours; see `peers/make_goldens.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from steerlab.activations import Activations, capture
from steerlab.directions import DifferenceInMeans, Direction, PcaReader, fit_direction
from steerlab.models import LanguageModel, Site, load_model

HERE = Path(__file__).parent / "peers"
PAIRS: list[tuple[str, str]] = json.loads((HERE / "prompts.json").read_text("utf-8"))
LABELS, NUMBERS = [1, 0] * len(PAIRS), [i for i in range(len(PAIRS)) for _ in range(2)]
LAST = 3


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    import steerlab

    folder = Path(steerlab.__file__).parent / "zoo" / "weights" / "small-post"
    return load_model(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def states(model: LanguageModel) -> Activations:
    return capture(model, [text for pair in PAIRS for text in pair], model.sites("resid_post"))


def test_the_mean_difference_is_that_of_steering_vectors(states: Activations) -> None:
    golden = load_file(HERE / "steering_vectors.safetensors")
    made = fit_direction(states, LABELS, DifferenceInMeans())
    for layer, site in enumerate(states.sites):
        for batching in ("mean", "mean_batched"):  # one at a time, and left-padded
            torch.testing.assert_close(made[site], golden[f"{batching}.{layer}"], rtol=1e-4, atol=1e-4)


def test_the_reader_is_the_principal_component_of_steering_vectors(states: Activations) -> None:
    golden = load_file(HERE / "steering_vectors.safetensors")
    made = fit_direction(states, LABELS, PcaReader(), pairs=NUMBERS)
    for layer, site in enumerate(states.sites):
        assert cosine(made[site], golden[f"pca.{layer}"]) > 0.99999


@pytest.mark.parametrize(("method", "centring"), [("pca_center", "none"), ("pca_diff", "ordered")])
def test_the_reader_is_that_of_repeng_below_the_last_layer(
    states: Activations, method: str, centring: str
) -> None:
    golden = load_file(HERE / "repeng.safetensors")
    made = reader(states, centring)
    for layer, site in enumerate(states.sites):
        if layer != LAST:
            assert cosine(made[site], golden[f"{method}.{layer}"]) > 0.99999


@pytest.mark.parametrize(("method", "centring"), [("pca_center", "none"), ("pca_diff", "ordered")])
def test_at_the_last_layer_repeng_reads_behind_the_final_norm(
    model: LanguageModel, states: Activations, method: str, centring: str
) -> None:
    """`hidden_states[-1]` is the final norm's output, while the vector is added in front of it."""
    golden = load_file(HERE / "repeng.safetensors")[f"{method}.{LAST}"]
    site = Site("resid_post", LAST)
    assert cosine(reader(states, centring)[site], golden) < 0.999
    with torch.inference_mode():
        normed = model.model.model.norm(states[site])
    behind = Activations(
        {site: normed.clone()},
        states.example,
        states.position,
        states.n_prompts,
        states.model_name,
        states.fingerprint,
    )
    assert cosine(reader(behind, centring)[site], golden) > 0.99999


def test_repengs_default_loses_signal_to_the_mean_it_subtracts(states: Activations) -> None:
    """`pca_diff` centres differences that all run one way: at every layer it lies farther from the class shift."""
    golden = load_file(HERE / "repeng.safetensors")
    shift = fit_direction(states, LABELS, DifferenceInMeans())
    for layer, site in enumerate(states.sites[:LAST]):
        centred, uncentred = (cosine(shift[site], golden[f"{m}.{layer}"]) for m in ("pca_diff", "pca_center"))
        assert centred < uncentred


def reader(states: Activations, centring: str) -> Direction:
    return fit_direction(states, LABELS, PcaReader(centring), pairs=NUMBERS)  # type: ignore[arg-type]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))
