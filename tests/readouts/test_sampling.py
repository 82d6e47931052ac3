"""The sampler against known laws, a full forward pass and transformers' own sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MARKOV, NONE, Chain

from steerlab.directions import Direction
from steerlab.errors import PromptError
from steerlab.models import LanguageModel, Site
from steerlab.models.drawing import draw
from steerlab.models.generation import end_token_ids
from steerlab.readouts import laws
from steerlab.readouts.laws import SamplingLaw, StepLaw, draw_step, step_law
from steerlab.readouts.sampling import Trajectories, sample_tokens
from steerlab.steering import Add

TEXTS = ["The cat", "Once there was a very small dog who", "Why?", "A B C D"]
WORDS = st.lists(st.floats(-8, 8), min_size=2, max_size=40)


def law_of(probabilities: list[float], law: SamplingLaw) -> tuple[float, int, torch.Tensor]:
    found = step_law(torch.tensor([probabilities]).double().log().float(), law)
    return float(found.entropy), int(found.kept), dense(found, len(probabilities))[0]


def dense(law: StepLaw, vocab: int) -> torch.Tensor:
    """[row, vocab] the law over the whole vocabulary."""
    return torch.zeros(len(law.probs), vocab).scatter_(-1, law.tokens, law.probs)


@pytest.mark.parametrize(
    ("law", "kept", "entropy"),
    [
        (NONE, 4, 1.142120),
        (SamplingLaw(1, "top_p", 0.9), 3, 0.993268),
        (SamplingLaw(1, "top_p", 0.7), 2, 0.661563),
        (SamplingLaw(1, "min_p", 0.4), 2, 0.661563),
        (SamplingLaw(0, "none", 1), 1, 0.0),
    ],
)
def test_truncation_renormalises(law: SamplingLaw, kept: int, entropy: float) -> None:
    found = law_of([0.5, 0.3, 0.15, 0.05], law)
    assert found[0] == pytest.approx(entropy, abs=1e-6)
    assert found[1] == kept
    with_impossible = law_of([0.5, 0.0, 0.3, 0.15, 0.05], law)
    assert with_impossible[0] == pytest.approx(entropy, abs=1e-6)
    assert with_impossible[2][1] == 0


def test_temperature() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    assert float(step_law(logits, NONE).entropy) == pytest.approx(0.365334, abs=1e-6)
    cooler = step_law(logits, SamplingLaw(0.6, "none", 1.0))
    assert float(cooler.probs.max()) == pytest.approx(0.965555, abs=1e-6)
    assert float(cooler.entropy) == pytest.approx(0.149870, abs=1e-6)


def test_ties_keep_the_smaller_id() -> None:
    _, kept, law = law_of([0.1, 0.3, 0.3, 0.3], SamplingLaw(1, "top_p", 0.55))
    assert kept == 2
    assert law.nonzero().flatten().tolist() == [1, 2]


@given(WORDS, st.floats(0.05, 1.0), st.floats(0.2, 3.0))
@settings(max_examples=60, deadline=None)
def test_nucleus_is_the_shortest_prefix(logits: list[float], top_p: float, temperature: float) -> None:
    found = step_law(torch.tensor([logits]), SamplingLaw(temperature, "top_p", top_p))
    plain = torch.softmax(torch.tensor(logits).double() / temperature, -1)
    order = torch.argsort(-plain, stable=True)
    size = int(found.kept)
    mass = float(plain[order[:size]].sum())
    assert mass >= top_p - 1e-5
    assert size == 1 or float(plain[order[: size - 1]].sum()) < top_p + 1e-5
    law = dense(found, len(logits))[0].double()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    kept = law[law > 0]
    assert float(found.entropy) == pytest.approx(float(-(kept * kept.log()).sum()), abs=1e-4)
    assert float(found.entropy) <= math.log(size) + 1e-5
    assert float(found.entropy) <= float(found.untruncated) + 1e-5


def test_nucleus_wider_than_the_first_selection() -> None:
    """A flat law over 5,000 tokens needs more than the first 128 sorted ones."""
    logits = -1.2 * torch.arange(1, 5001).float().log()[None]
    found = step_law(logits, SamplingLaw(1, "top_p", 0.9))
    mass = torch.softmax(logits.double()[0], -1).cumsum(-1)
    assert int(found.kept) == int((mass < 0.9).sum()) + 1


def whole_law(logits: np.ndarray, law: SamplingLaw) -> np.ndarray:
    """[vocab] one row's law the long way, in float64: everything is sorted."""
    plain = np.exp((logits - logits.max()) / law.temperature)
    plain /= plain.sum()
    order = np.argsort(-plain, kind="stable")
    falling = plain[order]
    count = {
        "none": len(plain),
        "top_p": int((falling.cumsum() < law.value - 1e-6).sum()) + 1,
        "top_k": int(law.value),
        "min_p": int((falling >= law.value * falling[0]).sum()),
        "floor": max(1, int((falling >= law.value).sum())),
    }[law.rule]
    kept = np.zeros_like(plain)
    kept[order[:count]] = falling[:count]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("none", 1),
        ("top_p", 0.3),
        ("top_p", 0.9),
        ("top_p", 0.999),
        ("top_k", 5),
        ("top_k", 400),
        ("min_p", 0.05),
        ("min_p", 1e-4),
        ("floor", 1e-3),
        ("floor", 1e-5),
        ("floor", 0.9),
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_are_those_of_the_whole_law(
    monkeypatch: pytest.MonkeyPatch, rule: laws.Rule, value: float, temperature: float
) -> None:
    """Peaked, flat, tied and partly impossible laws over 5,000 tokens, some rows at a time: the first token, in token
    order, at which the whole law, cumulated in float64, exceeds the number."""
    monkeypatch.setattr(laws, "_CELLS", 3 * 5000)
    seed = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5000, generator=seed) * torch.tensor([0.0, 0.5, 2.0, 5.0]).repeat(10)[:, None]
    logits[10:20] = logits[10:20].round()
    logits[20:30, ::3] = -torch.inf
    uniform = torch.rand(40, dtype=torch.float64, generator=seed)
    law = SamplingLaw(temperature, rule, value)
    found = draw_step(logits, law, uniform)
    expected = [whole_law(row, law) for row in logits.double().numpy()]
    at_edge = 0
    for row, (whole, at) in enumerate(zip(expected, uniform.tolist(), strict=True)):
        if int(found.kept[row]) != (whole > 0).sum():  # the edge may move with the last bit, by a token
            at_edge += 1
            continue
        token = int(np.searchsorted(whole.cumsum() / whole.sum(), at, side="right"))
        assert int(found.token[row]) == token
        assert float(found.surprisal[row]) == pytest.approx(-math.log(whole[token]), abs=2e-5)
        entropy = -(whole[whole > 0] * np.log(whole[whole > 0])).sum()
        assert float(found.entropy[row]) == pytest.approx(entropy, abs=2e-5)
    assert at_edge <= 4


def test_a_law_takes_little_beside_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows: no second table of [row, vocab] exists at any time."""
    seen: list[int] = []
    whole = laws.step_law

    def counted(logits: torch.Tensor, law: SamplingLaw) -> StepLaw:
        seen.append(logits.numel())
        return whole(logits, law)

    monkeypatch.setattr(laws, "step_law", counted)
    draw_step(torch.zeros(30, 2**18), SamplingLaw(), torch.zeros(30, dtype=torch.float64))
    assert sum(seen) == 30 * 2**18
    assert max(seen) <= 2**20


@given(WORDS, st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_draws_are_possible_tokens(logits: list[float], uniform: float) -> None:
    law = dense(step_law(torch.tensor([logits]), SamplingLaw(1, "top_p", 0.8)), len(logits))
    for at in (uniform, 0.0, 1 - 2**-53):
        token = int(draw(law, torch.tensor([at], dtype=torch.float64)))
        assert law[0, token] > 0


def test_wrong_laws_are_refused() -> None:
    for arguments in (
        (-1, "none", 1),
        (1, "top_p", 0),
        (1, "top_p", 1.5),
        (1, "top_k", 0.5),
        (1, "floor", 2),
    ):
        with pytest.raises(ValueError, match=r"needs a value|temperature|whole number"):
            SamplingLaw(*arguments)  # type: ignore[arg-type]


def sampled(model: LanguageModel, prompts: list[list[int]], **kwargs) -> Trajectories:
    options = {"samples": 6, "max_new_tokens": 12, "seed": 4, "law": NONE} | kwargs
    return sample_tokens(
        model.model, prompts, vocab_size=model.vocab_size, stop_ids=end_token_ids(model), **options
    )


def prompt_ids(model: LanguageModel, texts: list[str]) -> list[list[int]]:
    tokens = model.tokenize(texts, padding_side="right")
    return [row[:length].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "opt", "mistral", "mixtral"])
def test_samples_do_not_depend_on_the_batch(family: str) -> None:
    model = tiny(family)
    prompts = prompt_ids(model, TEXTS)
    whole = sampled(model, prompts)
    parts = sampled(model, prompts, rows=5)
    assert np.array_equal(whole.tokens, parts.tokens)
    assert np.nanmax(np.abs(whole.entropy - parts.entropy)) < 1e-4
    alone = sampled(model, prompts[:1])
    assert np.array_equal(alone.tokens, whole.tokens[:6])
    longer = sampled(model, prompts, max_new_tokens=16)
    assert np.array_equal(longer.tokens[:, :12], whole.tokens)
    assert len(np.unique(whole.tokens[:6], axis=0)) > 1


def test_the_first_samples_are_what_fewer_would_have_been(tiny_llama: LanguageModel) -> None:
    prompts = prompt_ids(tiny_llama, TEXTS)
    first, alone = (
        sampled(tiny_llama, prompts).some(range(2), 3, 7),
        sampled(tiny_llama, prompts[:2], samples=3, max_new_tokens=7),
    )
    for name in ("prompt", "sample", "ended", "tokens", "kept"):
        np.testing.assert_array_equal(getattr(first, name), getattr(alone, name))
    for name in ("entropy", "surprisal", "untruncated"):
        np.testing.assert_allclose(getattr(first, name), getattr(alone, name), atol=1e-4)


def test_numbers_say_which_random_numbers_a_prompt_has(tiny_llama: LanguageModel) -> None:
    prompts = prompt_ids(tiny_llama, TEXTS)
    together = sampled(tiny_llama, prompts, numbers=[0, 1, 0, 1])
    alone = sampled(tiny_llama, prompts[2:])
    np.testing.assert_array_equal(together.some(range(2, 4), 6, 12).tokens, alone.tokens)
    np.testing.assert_array_equal(together.some(range(2, 4), 6, 12).prompt, alone.prompt)
    assert not np.array_equal(sampled(tiny_llama, prompts).tokens[12:], alone.tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_record_equals_a_full_forward(family: str) -> None:
    model = tiny(family)
    law = SamplingLaw(0.8, "top_p", 0.9)
    prompts = prompt_ids(model, TEXTS)
    runs = sampled(model, prompts, law=law, rows=9)
    for number in range(0, len(runs), 5):
        length = int(runs.lengths[number])
        drawn = runs.tokens[number, :length].tolist()
        prompt = prompts[int(runs.prompt[number])]
        with torch.inference_mode():
            logits = model.model(torch.tensor([prompt + drawn])).logits[
                0, len(prompt) - 1 : -1, : model.vocab_size
            ]
        again = step_law(logits, law)
        token = torch.tensor(drawn)[:, None]
        assert runs.untruncated[number, :length] == pytest.approx(again.untruncated.numpy(), abs=1e-4)
        same_set = (
            runs.kept[number, :length] == again.kept.numpy()
        )  # the nucleus' edge moves with the last bit
        assert same_set.mean() > 0.8
        assert runs.entropy[number, :length][same_set] == pytest.approx(
            again.entropy.numpy()[same_set], abs=1e-4
        )
        surprisal = -dense(again, model.vocab_size).gather(-1, token)[:, 0].log().numpy()
        assert runs.surprisal[number, :length][same_set] == pytest.approx(surprisal[same_set], abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_greedy_equals_generate(family: str) -> None:
    model = tiny(family)
    runs = sampled(model, prompt_ids(model, TEXTS), samples=1, law=SamplingLaw(0, "none", 1))
    expected = model.generate(TEXTS, max_new_tokens=12)
    for row, length, generation in zip(runs.tokens, runs.lengths, expected, strict=True):
        assert tuple(row[:length]) == generation.token_ids
    assert (runs.entropy[runs.tokens >= 0] == 0).all()


def test_distribution_equals_generate(tiny_llama: LanguageModel) -> None:
    """First tokens of 3,000 samples of ours and of transformers' own sampling, temperature and top-p."""
    prompts = prompt_ids(tiny_llama, ["The cat"])
    runs = sampled(
        tiny_llama, prompts, samples=3000, max_new_tokens=1, law=SamplingLaw(0.7, "top_p", 0.8), rows=3000
    )
    theirs = tiny_llama.generate(
        ["The cat"] * 3000, max_new_tokens=1, do_sample=True, temperature=0.7, top_p=0.8, seed=0
    )
    ours = np.bincount(runs.tokens[:, 0], minlength=tiny_llama.vocab_size) / 3000
    other = np.bincount([one.token_ids[0] for one in theirs], minlength=tiny_llama.vocab_size) / 3000
    support = max(int((ours > 0).sum()), 2)
    assert 0.5 * np.abs(ours - other).sum() < 2 * math.sqrt(support / (math.pi * 3000))


def test_a_prompt_is_read_once() -> None:
    network = Chain(MARKOV)
    sample_tokens(
        network, [[0, 1, 2, 1]], vocab_size=3, stop_ids=(), samples=10, max_new_tokens=3, law=NONE, rows=100
    )
    assert network.tokens_read == 4 + 2 * 10


def test_sampling_is_steered(tiny_llama: LanguageModel) -> None:
    """Inside `steering` prompt and sampled tokens alike are edited: what is recorded is the steered law."""
    prompts = prompt_ids(tiny_llama, TEXTS)
    plain = sampled(tiny_llama, prompts)
    site = Site("resid_post", 1)
    towards = Direction(
        {site: 100 * tiny_llama.unembedding[5].float()}, tiny_llama.name, tiny_llama.fingerprint
    )
    with tiny_llama.steering(Add(towards, strength=1.0, unit="raw")):
        steered = sampled(tiny_llama, prompts)
    assert not np.array_equal(plain.tokens, steered.tokens)
    assert np.nanmean(steered.entropy) < np.nanmean(plain.entropy)
    assert np.array_equal(sampled(tiny_llama, prompts).tokens, plain.tokens)


def test_defined_ends(tiny_llama: LanguageModel) -> None:
    with pytest.raises(PromptError, match="at least one token"):
        sampled(tiny_llama, [[]])
    with pytest.raises(PromptError, match="at most 4 new tokens"):
        sampled(tiny_llama, [[5] * 60])
    with pytest.raises(PromptError, match="samples and new tokens"):
        sampled(tiny_llama, [[5]], samples=0)
    assert sampled(tiny_llama, [[5]], max_new_tokens=1).tokens.shape == (6, 1)
