"""A direction found by gradient: the closed form of a linear readout, the norm bound, and a model left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny

import steerlab as sl
from steerlab.errors import PromptError, SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.steering import token_log_odds
from steerlab.steering._trained import examples_of, frozen

PROMPTS = ["the cat sat on", "a dog", "Rome is", "one two three", "the dog ran to", "we like"]
LAST = "resid_post.2"


def linear_model() -> LanguageModel:
    """A tiny GPT-2 whose final norm is the identity, so that logits are linear in the last residual."""
    model = tiny("gpt2", bos=False)
    model.anatomy.ln_final.forward = lambda x: x
    return model


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def in_sample(direction: sl.Direction, part: str = "in_sample") -> float:
    found = direction.parameters[part]
    assert isinstance(found, dict)
    return float(found["value"])  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [0.5, 3.0, 40.0])
def test_a_linear_readout_has_its_optimum_along_the_gradient_at_the_bound(norm: float) -> None:
    model = linear_model()
    along = model.unembedding[5] - model.unembedding[9]
    found = sl.optimise_direction(model, LAST, PROMPTS, [5], [9], max_norm=norm, steps=4)
    assert cosine(found[LAST], along) > 0.999
    assert float(found[LAST].double().norm()) <= norm
    assert float(found[LAST].norm()) == pytest.approx(norm, rel=1e-5)
    # Cauchy-Schwarz: no vector of this norm does more, and what it does is known.
    expected = norm * float(along.double().norm())
    assert in_sample(found) == pytest.approx(expected, rel=1e-4)
    assert in_sample(found, "held_out") == pytest.approx(expected, rel=1e-4)
    with model.steering(sl.Add(found)):
        steered = np.asarray(token_log_odds([5], [9])(model, PROMPTS))
    plain = np.asarray(token_log_odds([5], [9])(model, PROMPTS))
    assert (steered - plain).mean() == pytest.approx(expected, rel=1e-4)


def test_a_metric_of_logits_is_maximised_alike() -> None:
    model = linear_model()

    def gap(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 5] - logits[:, 9]

    found = sl.optimise_direction(model, LAST, PROMPTS, gap, max_norm=2.0, steps=3)
    other = sl.optimise_direction(model, LAST, PROMPTS, [5], [9], max_norm=2.0, steps=3)
    assert cosine(found[LAST], other[LAST]) > 1 - 1e-6
    assert found.parameters["objective"] == "gap"
    assert in_sample(found) == pytest.approx(in_sample(other), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("site", ["resid_post.0", "mlp_out.1"])
def test_more_norm_is_never_less_effect_and_beats_random_vectors(family: str, site: str) -> None:
    model = tiny(family)
    effects = [0.0]
    for norm in (0.25, 1.0, 4.0):
        found = sl.optimise_direction(model, site, PROMPTS, " the cat", " a dog", max_norm=norm, steps=25)
        assert float(found[site].double().norm()) <= norm
        effects.append(in_sample(found))
        random = found.parameters["random"]
        assert isinstance(random, dict)
        assert in_sample(found) > random["high"]  # type: ignore[operator]
    assert effects == sorted(effects)


def test_the_gradient_is_that_of_differences() -> None:
    """A small norm: the effect is the norm times the gradient's, checked by finite differences along the direction."""
    model = tiny("llama")
    small = sl.optimise_direction(
        model, "resid_post.0", PROMPTS, " the cat", max_norm=1e-2, steps=1, held_out=0
    )

    def odds(vector: torch.Tensor) -> float:
        joined = [prompt + " the cat" for prompt in PROMPTS]
        with model.steering(sl.Add(vector, unit="raw", sites="resid_post.0")):
            total = 0.0
            for prompt, whole in zip(PROMPTS, joined, strict=True):
                ids = model.tokenize([whole]).input_ids
                start = model.tokenize([prompt]).input_ids.shape[1]
                law = model.logits(model.tokenize([whole]), last_only=False)[0].double().log_softmax(-1)
                total += sum(float(law[at - 1, ids[0, at]]) for at in range(start, ids.shape[1]))
        return total / len(PROMPTS)

    v = small["resid_post.0"]
    assert in_sample(small) == pytest.approx(odds(v) - odds(torch.zeros(32) + 1e-12), rel=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        other = torch.randn(32, generator=generator)
        other *= v.norm() / other.norm()
        assert odds(other) < odds(v)


def test_the_model_is_as_before_whatever_happens() -> None:
    model = tiny("llama")
    module = model.model
    module.train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("mlp" in name)
    weight = module.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    asks = [parameter.requires_grad for parameter in module.parameters()]

    def fails(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    sl.optimise_direction(model, "resid_post.1", PROMPTS, " cat", max_norm=1.0, steps=2)
    with pytest.raises(RuntimeError, match="no"):
        sl.optimise_direction(model, "resid_post.1", PROMPTS, fails, max_norm=1.0)
    with torch.inference_mode():  # some callers are inside it
        sl.optimise_direction(model, "resid_post.1", PROMPTS, " cat", max_norm=1.0, steps=1)
    assert [parameter.requires_grad for parameter in module.parameters()] == asks
    assert all(part.training for part in module.modules())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters() if parameter is not weight)


def test_whole_groups_are_held_out_and_the_result_is_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = tiny("llama")
    twice = [*PROMPTS, *PROMPTS]
    names = [*range(6), *range(6)]
    found = sl.optimise_direction(model, "resid_post.1", twice, " cat", max_norm=1.0, steps=2, groups=names)
    held, seen = found.parameters["held_out"], found.parameters["in_sample"]
    assert isinstance(held, dict)
    assert isinstance(seen, dict)
    assert (held["n"], seen["n"]) == (2, 4)
    found.save(tmp_path / "v.safetensors")
    read = sl.Direction.load(tmp_path / "v.safetensors")
    assert (read.estimator, read.parameters, read.best) == (
        "optimise_direction",
        found.parameters,
        Site("resid_post", 1),
    )
    again = sl.optimise_direction(model, "resid_post.1", twice, " cat", max_norm=1.0, steps=2, groups=names)
    assert again.hash == found.hash


def test_positions_say_where_it_is_added() -> None:
    model = tiny("llama")
    (example,) = examples_of(model, ["the cat"], [" sat on"], sl.Last())
    assert sum(example.acts) == 1
    assert example.acts.index(True) == example.start - 1
    (later,) = examples_of(model, ["the cat"], [" sat on"], sl.Generated())
    assert later.acts == tuple(at >= later.start for at in range(len(later.ids)))
    found = sl.optimise_direction(
        model, "resid_post.1", PROMPTS, " cat", max_norm=1.0, steps=3, positions=sl.Last(), held_out=0
    )
    with model.steering(sl.Add(found, positions=sl.Last())):
        steered = model.logits(PROMPTS).double().log_softmax(-1)
    first = [examples_of(model, [prompt], [" cat"], sl.All())[0] for prompt in PROMPTS]
    plain = model.logits(PROMPTS).double().log_softmax(-1)
    gain = np.mean(
        [float(steered[at, e.ids[e.start]] - plain[at, e.ids[e.start]]) for at, e in enumerate(first)]
    )
    assert gain > 0


def test_bad_input_is_a_sentence() -> None:
    model = tiny("llama")
    with pytest.raises(SteeringError, match="The norm bound is a number above 0, not 0"):
        sl.optimise_direction(model, LAST, PROMPTS, " cat", max_norm=0)
    with pytest.raises(SteeringError, match="At least one step is needed, not steps=0"):
        sl.optimise_direction(model, LAST, PROMPTS, " cat", max_norm=1.0, steps=0)
    with pytest.raises(PromptError, match="Answer 0 is empty"):
        sl.optimise_direction(model, LAST, PROMPTS, "", max_norm=1.0)
    with pytest.raises(PromptError, match="6 prompts came with 2 answers"):
        sl.optimise_direction(model, LAST, PROMPTS, [" cat", " dog"], max_norm=1.0)
    with pytest.raises(SteeringError, match="A metric says by itself what is to grow"):
        sl.optimise_direction(model, LAST, PROMPTS, lambda logits: logits[:, 0], " cat", max_norm=1.0)
    with pytest.raises(SteeringError, match="one number a row of the logits"):
        sl.optimise_direction(model, LAST, PROMPTS, lambda logits: logits.sum(), max_norm=1.0)
    with pytest.raises(SteeringError, match=r"has no gradient at resid_post\.2"):
        sl.optimise_direction(model, LAST, PROMPTS, lambda logits: 0 * logits[:, 0], max_norm=1.0)
    with pytest.raises(SteeringError, match="name no token of the examples"):
        examples_of(model, ["the cat"], [" sat"], sl.Index(0) - sl.All())
    with pytest.raises(SteeringError, match="The share held out"):
        sl.optimise_direction(model, LAST, PROMPTS, " cat", max_norm=1.0, held_out=1.0)
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.model.parameters())
