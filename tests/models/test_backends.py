"""Three ways in, one result: a plain model, a TransformerLens bridge and an nnsight model of the same checkpoint.

Values are compared with the plain model, with TransformerLens' own cache and with nnsight's own trace.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from families import FAMILIES, build, tiny_tokenizer
from tolerances import close
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import steerlab as sl
from steerlab.directions import Direction
from steerlab.errors import ModelError, SiteError, SteerlabError
from steerlab.models import LanguageModel, Site
from steerlab.models.backends import BACKENDS
from steerlab.steering import Ablate, Add

ENGINES = ("transformer_lens", "nnsight")
THREE = ("llama", "gpt2", "gemma2")
TEXTS = ["The capital of France is", "Is a cat an animal? Yes", "Rome"]
TOLERANCE = 1e-5
# What TransformerLens 4.3 itself cannot build, or builds otherwise than transformers computes.
BEYOND_BRIDGES = {"falcon": "cannot build a bridge", "falcon_alibi": "computes other logits"}


pytestmark = pytest.mark.filterwarnings("ignore")  # the engines warn of their own affairs


@pytest.fixture(scope="module", autouse=True)
def _no_chatter() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            build(family).save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
            made[family] = str(path)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def opened(checkpoint: Any) -> Any:
    made: dict[tuple[str, str], LanguageModel] = {}

    def model(family: str, backend: str = "transformers") -> LanguageModel:
        if (family, backend) not in made:
            source = checkpoint(family) if family in FAMILIES else sl.zoo.path(family)
            made[family, backend] = sl.load(source, backend=backend, device="cpu")
        return made[family, backend]

    return model


def every_site(model: LanguageModel) -> list[Site]:
    return [site for name in model.site_names() for site in model.sites(name)]


def distance(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


def random_direction(model: LanguageModel, sites: list[Site]) -> Direction:
    generator = torch.Generator().manual_seed(5)
    vectors = {site: torch.randn(1, model.width(site), generator=generator) for site in sites}
    return Direction(vectors, model.name, model.fingerprint)


# One result


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_logits_and_weights_of_every_family(opened: Any, family: str, backend: str) -> None:
    if backend == "transformer_lens" and family in BEYOND_BRIDGES:
        with pytest.raises(ModelError, match=BEYOND_BRIDGES[family]):
            opened(family, backend)
        return
    plain, other = opened(family), opened(family, backend)
    sites = every_site(plain)
    assert (other.backend, every_site(other)) == (backend, sites)
    assert [other.width(site) for site in sites] == [plain.width(site) for site in sites]
    expected = sl.capture(plain, TEXTS, sites, positions=sl.All())
    found = sl.capture(other, TEXTS, sites, positions=sl.All())
    assert found.fingerprint == expected.fingerprint
    for site in sites:
        assert distance(found[site], expected[site]) < TOLERANCE, site
    assert distance(other.logits(TEXTS), plain.logits(TEXTS)) < TOLERANCE
    assert torch.equal(other.final_norm_gain, plain.final_norm_gain)
    assert torch.equal(other.unembedding, plain.unembedding)
    for site in plain.sites("mlp_post") if "mlp_post" in plain.site_names() else []:
        assert torch.equal(other.w_out(site.layer or 0), plain.w_out(site.layer or 0))


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("family", [*THREE, "small-base", "small-post"])
def test_every_edit_at_every_site(opened: Any, family: str, backend: str) -> None:
    plain, other = opened(family), opened(family, backend)
    sites = every_site(plain)
    direction = random_direction(plain, sites)
    for edit in (Add, Ablate):
        for site in sites:
            expected, found = [], []
            for model, results in ((plain, expected), (other, found)):
                with model.steering(edit(direction, sites=[site])):
                    results.append(model.logits(TEXTS))
            assert distance(found[0], expected[0]) < TOLERANCE, (edit.__name__, site)
            assert distance(expected[0], plain.logits(TEXTS)) > 1e-4, site


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("family", [*THREE, "small-base", "small-post"])
def test_the_same_text_under_steering(opened: Any, family: str, backend: str) -> None:
    plain, other = opened(family), opened(family, backend)
    direction = random_direction(plain, plain.sites("resid_post", [1]))
    for positions in (sl.All(), sl.Last(), sl.Generated()):
        written = []
        for model in (plain, other):
            with model.steering(Add(direction, strength=2.0, positions=positions)):
                written.append([one.token_ids for one in model.generate(TEXTS, max_new_tokens=10)])
        assert written[0] == written[1], positions


@pytest.mark.usefixtures("smaller_studies")
def test_a_whole_study_finds_the_same_in_each_backend(opened: Any) -> None:
    found = [
        sl.studies.truthfulness(
            (opened("small-base", backend), opened("small-post", backend)), sl.zoo.known_statements()
        ).to_dict()
        for backend in ("transformers", *ENGINES)
    ]
    assert found[0]["status"] == "done"
    for other in found[1:]:
        compared = list(leaves(found[0], other))
        assert len(compared) > 100
        assert all(
            left == pytest.approx(right, abs=1e-4, nan_ok=True) if isinstance(left, float) else left == right
            for left, right in compared
        )


def leaves(left: Any, right: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        left, right = list(left.values()), list(right.values())
    if not isinstance(left, list | tuple):
        yield left, right
        return
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        yield from leaves(one, two)


# Live objects


def boot(folder: str) -> Any:
    return TransformerBridge.boot_transformers(folder, device="cpu")


def lazy_nnsight(folder: str) -> Any:
    return nnsight.TransformersModel(folder, task="text-generation", tokenizer=tiny_tokenizer())


def test_a_live_bridge_is_read_as_its_own_cache_has_it(checkpoint: Any, opened: Any) -> None:
    for family in THREE:
        bridge = boot(checkpoint(family))
        model = sl.load(bridge)
        assert (model.backend, model.source) == ("transformer_lens", bridge)
        assert model.fingerprint == opened(family).fingerprint
        sites = every_site(model)
        tokens = model.tokenize(TEXTS[:2], padding_side="right")
        states = sl.capture(model, TEXTS[:2], sites, positions=sl.All())
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(tokens.input_ids)
        for site in sites:
            theirs = cache[site.to_transformer_lens()].flatten(2)
            for row, length in enumerate(tokens.lengths):
                ours = states[site][states.example == row]
                close(ours, theirs[row, :length], rtol=TOLERANCE)


def test_steering_acts_when_the_bridge_runs_by_itself() -> None:
    bridge = boot(str(sl.zoo.path("small-post")))
    model = sl.load(bridge)
    site = Site("resid_post", 1)
    add = Add(random_direction(model, [site]), strength=2.0)
    tokens = model.tokenize(TEXTS[:1])
    expected = {}
    with model.steering(add):
        model.run(tokens, read={site: lambda state: expected.update(state=state)})
        _, cache = bridge.run_with_cache(tokens.input_ids)
        greedy = model.generate(TEXTS[:1], max_new_tokens=6)[0].token_ids
        theirs = bridge.generate(
            tokens.input_ids, max_new_tokens=6, do_sample=False, verbose=False, return_type="tokens"
        )
    # At the edited module itself the bridge looks before we edit; everything after is steered.
    assert torch.equal(cache["blocks.2.hook_resid_pre"], expected["state"])
    assert tuple(theirs[0, tokens.width :].tolist())[: len(greedy)] == greedy
    plain = bridge.generate(
        tokens.input_ids, max_new_tokens=6, do_sample=False, verbose=False, return_type="tokens"
    )
    assert not torch.equal(plain, theirs)


def test_hooks_of_the_bridge_act_in_our_runs(checkpoint: Any) -> None:
    bridge = boot(checkpoint("llama"))
    model = sl.load(bridge)
    site = Site("resid_post", 1)
    before = sl.capture(model, TEXTS, site)[site]
    bridge.add_hook(site.to_transformer_lens(), lambda value, hook: value + 1)
    try:
        after = sl.capture(model, TEXTS, site)[site]
    finally:
        bridge.reset_hooks()
    close(after, before + 1)


@pytest.mark.parametrize("kind", ["TransformersModel", "LanguageModel", "NNsight"])
def test_a_live_nnsight_model_is_read_as_its_own_trace_has_it(checkpoint: Any, kind: str) -> None:
    if kind == "NNsight":
        traced: Any = nnsight.NNsight(build("llama"))
        model = sl.load(traced, tokenizer=tiny_tokenizer())
    else:
        # Not dispatched: its weights are read when we need them.
        make = getattr(nnsight, kind)
        traced = make(checkpoint("llama"), task="text-generation", tokenizer=tiny_tokenizer())
        model = sl.load(traced)
    assert (model.backend, model.source) == ("nnsight", traced)
    sites = sorted(every_site(model))
    states = sl.capture(model, TEXTS[:1], sites, positions=sl.All())
    ids = model.tokenize(TEXTS[:1]).input_ids
    paths = [site.to_nnsight(model) for site in sites]
    with torch.inference_mode(), traced.trace(ids):
        theirs = list().save()
        for path in paths:
            theirs.append(traced.get(path))
    for site, value in zip(sites, theirs, strict=True):
        state = value if isinstance(value, Tensor) else value[0]
        close(states[site], state[0], rtol=TOLERANCE)


def test_steering_acts_in_traces_of_nnsight(checkpoint: Any) -> None:
    traced = lazy_nnsight(checkpoint("llama"))
    model = sl.load(traced)
    site = Site("resid_post", 1)
    tokens = model.tokenize(TEXTS[:1])
    with model.steering(Add(random_direction(model, [site]), strength=2.0)):
        expected = model.run(tokens, logits="all")
        with torch.inference_mode(), traced.trace(tokens.input_ids):
            logits = traced.lm_head.output.save()
    assert expected is not None
    assert torch.equal(logits[..., : model.vocab_size], expected)


def test_a_direction_goes_from_one_backend_to_the_other(opened: Any, tmp_path: Path) -> None:
    direction = random_direction(opened("gpt2"), [Site("resid_post", 1)])
    direction.save(tmp_path / "d.safetensors")
    loaded = Direction.load(tmp_path / "d.safetensors")
    for backend in ENGINES:
        loaded.check(opened("gpt2", backend))
    with pytest.raises(SteerlabError):
        loaded.check(opened("llama", "transformer_lens"))


# Names and caches


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "granite", "gpt_neo", "qwen3_moe"])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_names_go_there_and_back(opened: Any, family: str, backend: str) -> None:
    model = opened(family, backend)
    for site in every_site(model):
        assert Site.parse(site.to_transformer_lens()) == site
        assert Site.from_nnsight(site.to_nnsight(model), model) == site
        assert site.to_nnsight(model) == site.to_nnsight(opened(family))
    if family == "llama":
        assert Site("resid_post", 2).to_nnsight(model) == "model.layers.2.output"
        assert Site("z", 2).to_nnsight(model) == "model.layers.2.self_attn.o_proj.input"


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_post", Site("resid_post", 3)),
        ("blocks.12.mlp.hook_post", Site("mlp_post", 12)),
        ("blocks.0.attn.hook_z", Site("z", 0)),
        ("blocks.1.hook_in", Site("resid_pre", 1)),
        ("hook_embed", Site("embed")),
        ("ln_final.hook_in", Site("ln_final_in")),
    ],
)
def test_hook_names(hook: str, site: Site) -> None:
    assert Site.parse(hook) == site


@pytest.mark.parametrize(
    "text", ["blocks.1.attn.hook_q", "hook_resid_post", "blocks.0.hook_embed", "blocks.x.hook_in"]
)
def test_foreign_hook_names_are_refused(text: str) -> None:
    with pytest.raises(SiteError, match="not one of our sites"):
        Site.parse(text)


def test_foreign_nnsight_paths_are_refused(opened: Any) -> None:
    with pytest.raises(SiteError, match="none of the sites"):
        Site.from_nnsight("model.layers.0.self_attn.q_proj.output", opened("llama"))


@pytest.mark.parametrize("family", THREE)
def test_a_cache_becomes_activations_and_back(opened: Any, family: str) -> None:
    model = opened(family, "transformer_lens")
    sites = sorted(every_site(model))
    tokens = model.tokenize(TEXTS, padding_side="right")
    with torch.inference_mode():
        _, cache = model.source.run_with_cache(tokens.input_ids)
    for positions in (sl.All(), sl.Last()):
        states = sl.Activations.from_transformer_lens(cache, model, tokens, positions=positions)
        expected = sl.capture(model, TEXTS, sites, positions=positions)
        assert states.sites == tuple(sites)
        assert torch.equal(states.example, expected.example)
        assert torch.equal(states.position, expected.position)
        for site in sites:
            close(states[site], expected[site], rtol=TOLERANCE)
    again = states.to_transformer_lens(model)
    for site in sites:
        theirs = cache[site.to_transformer_lens()]
        last = torch.stack([theirs[row, length - 1] for row, length in enumerate(tokens.lengths)])
        assert torch.equal(again[site.to_transformer_lens()][:, 0], last), site


def test_caches_that_do_not_fit(opened: Any, checkpoint: Any) -> None:
    model = opened("llama", "transformer_lens")
    tokens = model.tokenize(TEXTS, padding_side="right")
    _, cache = model.source.run_with_cache(tokens.input_ids)
    read = sl.Activations.from_transformer_lens
    for words, arguments in {
        "another bridge": (cache, sl.load(boot(checkpoint("llama"))), tokens),
        "has the shape": (cache, model, model.tokenize(TEXTS[:2], padding_side="right")),
        "padded on the left": (cache, model, model.tokenize(TEXTS)),
    }.items():
        with pytest.raises(SteerlabError, match=words):
            read(*arguments)
    _, some = model.source.run_with_cache(tokens.input_ids, names_filter=["blocks.0.attn.q.hook_out"])
    with pytest.raises(SteerlabError, match="none of the model's sites"):
        read(some, model, tokens)
    with pytest.raises(SteerlabError, match="made from other texts; give the tokens"):
        read(cache, model, replace(tokens, input_ids=tokens.input_ids.roll(1, 0)))
    _, late = model.source.run_with_cache(tokens.input_ids, names_filter=["blocks.1.hook_out"])
    with pytest.raises(SteerlabError, match="add 'hook_embed' to the names_filter"):
        read(late, model, tokens)
    states = read(cache, model, tokens)
    with pytest.raises(SteerlabError, match="as many of each"):
        states.to_transformer_lens(model)
    with pytest.raises(SteerlabError, match="no TransformerBridge"):
        states.to_transformer_lens(opened("llama"))
    with pytest.raises(SteerlabError, match="not from"):
        states.to_transformer_lens(opened("gpt2", "transformer_lens"))


# Refusals


def test_processed_weights_are_refused_before_and_after_loading(checkpoint: Any) -> None:
    bridge = boot(checkpoint("gpt2"))
    model = sl.load(bridge)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert torch.equal(sl.load(bridge).logits(TEXTS), model.logits(TEXTS))
    bridge.process_weights()
    for run in (
        lambda: sl.load(bridge),
        lambda: model.logits(TEXTS),
        lambda: model.generate(TEXTS, max_new_tokens=1),
        lambda: sl.capture(model, TEXTS, Site("resid_post", 0)),
    ):
        with pytest.raises(ModelError, match="weights of this bridge were processed"):
            run()


def test_stored_edits_of_nnsight_are_refused(checkpoint: Any) -> None:
    traced: Any = lazy_nnsight(checkpoint("llama"))
    model = sl.load(traced)
    with traced.edit(inplace=True):
        traced.model.layers[0].output[:] += 1
    with pytest.raises(ModelError, match="stored edits"):
        model.logits(TEXTS)
    traced.clear_edits()
    model.logits(TEXTS)


def test_other_refusals(checkpoint: Any) -> None:
    folder = checkpoint("llama")
    bridge = boot(folder)
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        (
            "no backend 'vllm'; choose from transformers, nnsight, transformer_lens",
            folder,
            {"backend": "vllm"},
        ),
        ("runs in the backend 'transformer_lens'", bridge, {"backend": "nnsight"}),
        ("runs in the backend 'transformer_lens'", bridge, {"backend": "transformers"}),
        ("wrapped by a TransformerBridge; load the bridge", bridge.original_model, {}),
        ("holds no transformers model", bridge.blocks[0], {}),
        ("wraps a Linear, not a transformers model", nnsight.NNsight(torch.nn.Linear(2, 2)), {}),
        ("needs its tokenizer", nnsight.NNsight(build("llama")), {}),
        ("cannot be loaded from an object", object(), {}),
    ]
    for words, source, options in cases:
        with pytest.raises(ModelError, match=words):
            sl.load(source, **options)


@pytest.mark.parametrize("backend", ENGINES)
def test_a_live_model_is_wrapped_on_request(backend: str, checkpoint: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama"))
    plain = sl.load(build("llama"), tokenizer=tokenizer)
    model = sl.load(build("llama"), tokenizer=tokenizer, backend=backend)
    assert model.backend == backend
    assert distance(model.logits(TEXTS), plain.logits(TEXTS)) < TOLERANCE


def test_engines_are_imported_only_when_asked_for(checkpoint: Any) -> None:
    code = (
        "import sys, steerlab as sl; sl.capture; light = {'transformer_lens', 'nnsight'} & set(sys.modules);"
        f"sl.load({checkpoint('llama')!r}); sys.exit(bool(light) or 'nnsight' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
