"""Every way to run gives the same, whatever is combined: a pairwise matrix of interventions, places, times and engines.

Each case is checked against plain torch hooks on the transformers model, one prompt at a time, without padding, without
a cache, in whole passes. What an engine cannot do has to be refused; the rules for that are `impossible`, and nothing
else may be refused. All pairs of values of all factors occur, in a case that runs where there is one.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from families import build, tiny_tokenizer
from scipy import stats
from tolerances import close
from torch import Tensor
from transformers import DynamicCache

import steerlab as sl
from steerlab.directions import Direction
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Selector, Site
from steerlab.steering import (
    Ablate,
    Add,
    Affine,
    Clamp,
    Condition,
    Decay,
    Erase,
    Linear,
    LowRank,
    Patch,
    PerRow,
    Project,
    Rotate,
    Scale,
    Slots,
    bake,
    generate_batch,
)

PROMPTS = ["the cat sat on", "a dog is not red, is it", "Rome"]
STEPS = 4
DEPTH = 3

FACTORS: dict[str, tuple[str, ...]] = {
    "kind": (
        "add",
        "ablate",
        "subspace",
        "kept",
        "clamp",
        "project",
        "rotate",
        "affine",
        "low rank",
        "patch",
        "scale",
        "rows",
    ),
    "where": ("resid_pre", "resid_post", "mlp_out", "attn_out", "range", "every layer"),
    "tokens": ("all", "prompt", "last", "generated", "first two", "window", "all but last"),
    "schedule": ("none", "linear", "decay"),
    "condition": ("none", "prompt", "token"),
    "way": ("forward", "generate", "stream", "assisted", "chunks", "packed", "slots", "baked"),
    "padding": ("alone", "left", "right"),
    "family": ("llama", "gpt2", "qwen2", "mixtral", "gpt_neox", "gemma2", "olmo2"),
    "dtype": ("float32", "bfloat16"),
    "backend": ("transformers", "transformer_lens", "nnsight"),
}
#: Families that every backend wraps in these tests.
_WRAPPED = ("llama", "gpt2", "gemma2")


@dataclass(frozen=True)
class Case:
    """One value of every factor."""

    kind: str
    where: str
    tokens: str
    schedule: str
    condition: str
    way: str
    padding: str
    family: str
    dtype: str
    backend: str

    def __str__(self) -> str:
        return "-".join(getattr(self, one.name).replace(" ", "_") for one in fields(self))


def allowed(case: dict[str, str]) -> bool:
    """Combinations that can be set up at all."""
    if case.get("backend", "transformers") != "transformers" and case.get("family", "llama") not in _WRAPPED:
        return False
    # bfloat16 is rounding on top; wrapped engines are compared in float32.
    return case.get("dtype", "float32") == "float32" or case.get("backend", "transformers") == "transformers"


def all_pairs(seed: int = 0) -> list[Case]:
    """Cases in which every allowed pair of values occurs, in one that runs where there is one: greedily, at random."""
    rng, names = random.Random(seed), list(FACTORS)
    left = {
        frozenset(((one, x), (other, y)))
        for one, other in itertools.combinations(names, 2)
        for x in FACTORS[one]
        for y in FACTORS[other]
        if allowed({one: x, other: y})
    }
    cases = []
    for running in (True, False):
        waiting = sorted(map(sorted, left))
        while waiting:
            made = [one for _ in range(60) if (one := _completed(waiting[0], names, rng, running=running))]
            if not made:
                waiting.pop(0)  # such a pair is always refused
                continue
            best = max(made, key=lambda one: sum(pair <= frozenset(one.items()) for pair in left))
            cases.append(Case(**best))
            left = {pair for pair in left if not pair <= frozenset(best.items())}
            waiting = [pair for pair in waiting if frozenset(pair) in left]
    assert not left
    return cases


def _completed(
    pair: list[tuple[str, str]], names: list[str], rng: random.Random, *, running: bool
) -> dict[str, str] | None:
    made = dict(pair)
    for name in rng.sample(names, len(names)):
        if name not in made:
            made[name] = rng.choice([value for value in FACTORS[name] if allowed({**made, name: value})])
    if not allowed(made) or (running and impossible(Case(**made))):
        return None
    return made


def impossible(case: Case) -> bool:
    """What has to be refused, and nothing else."""
    if case.kind == "scale" and case.family == "mixtral":
        return True  # a mixture of experts has no neurons of one MLP to scale
    constant = (case.tokens, case.schedule, case.condition) == ("all", "none", "none")
    if case.way in ("packed", "slots") and case.backend != "transformers":
        return True
    if case.way == "baked":
        if case.backend != "transformers" or not constant:
            return True
        if case.family in ("gemma2", "olmo2"):
            return True  # a norm comes between what a part writes and the stream
        if case.family == "mixtral" and case.kind == "add":
            return case.where != "attn_out"  # experts without biases add no constant
        # One place of the stream alone cannot be ablated by weights.
        ablates = case.kind in ("ablate", "subspace", "kept") and case.where in ("mlp_out", "attn_out")
        return not (case.kind == "add" or ablates)
    if case.way == "packed" and case.family == "gemma2":
        return True  # transformers' packed attention leaves out the cap of attention scores
    if case.way in ("packed", "slots"):
        return not constant or case.kind in ("rotate", "rows")
    if case.way == "chunks":
        # The prompt's decision falls in its last chunk, too late for tokens of the first.
        return case.condition == "prompt" and case.tokens in ("all", "prompt", "window", "all but last")
    return False


CASES = all_pairs()


@pytest.mark.parametrize("case", CASES, ids=map(str, range(len(CASES))))
def test_every_way_to_run_gives_what_plain_hooks_give(case: Case) -> None:
    model, plain = (
        loaded(case.family, case.dtype, case.backend),
        loaded(case.family, case.dtype, "transformers"),
    )
    if impossible(case):
        with pytest.raises(SteerlabError):
            run(case, model)
        return
    reference = Reference(case, plain)
    rounding = 1e-3 if case.dtype == "float32" else 0.5
    for row, found in enumerate(run(case, model)):
        if isinstance(found, Tensor):
            expected = reference.logits(row, reference.ids(row))[-1]
            close(found.float(), expected, rtol=rounding)
            continue
        # Each token is the reference's own choice, given those before it (but for ties within the rounding).
        ids = reference.ids(row)
        assert len(found) == STEPS
        logits = reference.logits(row, torch.cat([ids, torch.tensor(found)]))[len(ids) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(found)[:, None])[:, 0]
        assert bool((logits.max(dim=1).values - chosen <= rounding).all()), (found, logits.argmax(dim=1))


def test_the_matrix_covers_all_pairs_and_most_of_it_runs() -> None:
    seen = {
        pair
        for case in CASES
        for pair in itertools.combinations(((one.name, getattr(case, one.name)) for one in fields(case)), 2)
    }
    for one, other in itertools.combinations(FACTORS, 2):
        for x, y in itertools.product(FACTORS[one], FACTORS[other]):
            assert ((one, x), (other, y)) in seen or not allowed({one: x, other: y})
    runs = [case for case in CASES if not impossible(case)]
    assert len(runs) > len(CASES) / 2
    assert {case.way for case in runs} == set(FACTORS["way"])
    assert {case.kind for case in runs} == set(FACTORS["kind"])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampling_follows_the_steered_law(temperature: float) -> None:
    """First tokens of 3,000 samples against the reference's law: chi-square over words expected five times or more."""
    case = Case(
        "add", "every layer", "all", "none", "none", "generate", "alone", "llama", "float32", "transformers"
    )
    model = loaded("llama", "float32", "transformers")
    reference = Reference(case, model)
    law = (reference.logits(0, reference.ids(0))[-1] / temperature).softmax(dim=-1).double()
    n = 3000
    with model.steering(*edits(case, model)[0]):
        found = model.generate(
            [PROMPTS[0]] * n,
            max_new_tokens=1,
            do_sample=True,
            temperature=temperature,
            seed=5,
            token_budget=20_000,
        )
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in found]), minlength=len(law)).double()
    often = law * n >= 5

    def p_value(of: Tensor) -> float:
        binned = torch.stack([*of[often], of[~often].sum()]).double()
        observed = torch.stack([*counts[often], counts[~often].sum()])
        return float(stats.chisquare(observed.numpy(), (binned / binned.sum() * n).numpy()).pvalue)

    assert p_value(law) > 1e-3
    assert p_value(model.logits([PROMPTS[0]])[0].div(temperature).softmax(dim=-1).double()) < 1e-6


# -- ours --


@cache
def loaded(family: str, dtype: str, backend: str) -> LanguageModel:
    if backend == "transformers":
        return _endless(
            sl.load(build(family).to(getattr(torch, dtype)), tokenizer=tiny_tokenizer(), dtype="auto")
        )
    with tempfile.TemporaryDirectory() as folder:
        build(family).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return _endless(sl.load(folder, backend=backend, device="cpu", dtype=torch.float32))


def _endless(model: LanguageModel) -> LanguageModel:
    """No token ends a text, so that all ways write equally many."""
    model.tokenizer.eos_token = None
    model.model.config.eos_token_id = model.model.generation_config.eos_token_id = None
    return model


def sites(case: Case) -> list[Site]:
    name = "mlp_post" if case.kind == "scale" else case.where
    if case.where == "range":
        return [Site("mlp_post" if case.kind == "scale" else "resid_post", layer) for layer in (1, 2)]
    if case.where == "every layer":
        return [Site("mlp_post" if case.kind == "scale" else "resid_post", layer) for layer in range(DEPTH)]
    return [Site(name, 1)]


def vectors(site: Site, width: int, n: int = 1, salt: int = 0) -> Tensor:
    seed = 100 * salt + 10 * (site.layer or 0) + len(site.name)
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def direction(case: Case, model: LanguageModel, n: int = 1, salt: int = 0) -> Direction:
    return Direction(
        {site: vectors(site, model.width(site), n, salt) for site in sites(case)},
        model.name,
        model.fingerprint,
    )


def _knowing_classes(case: Case, model: LanguageModel) -> Direction:
    """With mean states at distance ½ u along another vector than the one that reads."""
    made = direction(case, model)
    means = {}
    for site in made.sites:
        gap = vectors(site, model.width(site), salt=4)[0]
        middle = vectors(site, model.width(site), salt=5)[0]
        means[site] = {"": middle, "a": middle - gap / 2, "b": middle + gap / 2}
    return replace(made, means=means)


EARLY = Site("resid_pre", 0)


def probe(model: LanguageModel) -> Tensor:
    return torch.nn.functional.normalize(vectors(EARLY, model.d_model, salt=9)[0], dim=0)


@cache
def threshold(family: str, dtype: str) -> float:
    """Between the prompts' scores, so that the condition holds for some and not for others."""
    model = loaded(family, dtype, "transformers")
    states = sl.capture(model, PROMPTS, EARLY, positions=sl.Last())[EARLY]
    scores = (states @ probe(model)).sort().values
    return float(scores[:2].mean())


def positions(case: Case) -> Selector:
    return {
        "all": sl.All(),
        "prompt": sl.WholePrompt(),
        "last": sl.Last(),
        "generated": sl.Generated(),
        "first two": sl.FirstGenerated(2),
        "window": sl.Window(1, 3),
        "all but last": sl.All() - sl.Last(),
    }[case.tokens]


def edits(case: Case, model: LanguageModel) -> list[tuple[Any, ...]]:
    """For every prompt what it is steered with."""
    shared: dict[str, Any] = {
        "positions": positions(case),
        "schedule": {"none": None, "linear": Linear(1.0, 0.2, 3), "decay": Decay(0.5)}[case.schedule],
        "condition": None
        if case.condition == "none"
        else Condition(
            Direction({EARLY: probe(model)}, model.name, model.fingerprint),
            threshold=threshold(case.family, case.dtype) if case.condition == "prompt" else 0.0,
            positions=sl.Last() if case.condition == "prompt" else None,
        ),
    }
    one = direction(case, model)
    if case.kind == "rows":
        rows = [
            (Add(one, strength=1.5, layers="all", **shared),),
            (),
            (Clamp(one, value=0.7, layers="all", **shared), Ablate(one, sites=one.sites, **shared)),
        ]
        return rows
    made: dict[str, Callable[[], Any]] = {
        "add": lambda: Add(one, strength=1.5, layers="all", **shared),
        "ablate": lambda: Ablate(one, sites=one.sites, **shared),
        "subspace": lambda: Ablate(direction(case, model, 2), sites=one.sites, **shared),
        "kept": lambda: Ablate(
            direction(case, model, 2, salt=3), keep=[one], strength=0.7, sites=one.sites, **shared
        ),
        "clamp": lambda: Clamp(one, value=0.7, layers="all", **shared),
        "project": lambda: Project(one, layers="all", **shared),
        "rotate": lambda: Rotate(one, strength=0.3, layers="all", **shared),
        "affine": lambda: Affine(one, direction(case, model, salt=1), offset=0.2, layers="all", **shared),
        "erase": lambda: Erase(_knowing_classes(case, model), layers="all", **shared),
        "low rank": lambda: LowRank(
            replace(direction(case, model, 5, salt=3), estimator="low_rank"), 0.5, layers="all", **shared
        ),
        "patch": lambda: Patch(direction(case, model, salt=2), **shared),
        "scale": lambda: Scale(factor=0.5, coordinates=(0, 3), sites=sites(case), **shared),
    }
    return [(made[case.kind](),)] * len(PROMPTS)


def run(case: Case, model: LanguageModel) -> list[Any]:
    """Greedy tokens of every prompt, or logits after its last token."""
    rows = edits(case, model)
    prompts, batches = PROMPTS, [list(range(len(PROMPTS)))]
    if case.padding == "alone" or case.way in ("stream", "assisted"):
        batches = [[row] for row in batches[0]]
    found: dict[int, Any] = {}
    for batch in batches:
        mine = rows[batch[0]] if case.kind != "rows" else (PerRow(*(rows[row] for row in batch)),)
        if case.kind == "rows" and not any(rows[row] for row in batch):
            mine = ()
        found.update(zip(batch, ways(case, model, [prompts[row] for row in batch], mine), strict=True))
    return [found[row] for row in range(len(prompts))]


def ways(case: Case, model: LanguageModel, prompts: list[str], mine: tuple[Any, ...]) -> list[Any]:
    if case.way == "baked":
        return tokens(bake(model, *mine).generate(prompts, max_new_tokens=STEPS))
    if case.way in ("packed", "slots"):
        made = slots(case, model)
        with made.steering(*mine):
            if case.way == "packed":
                return tokens(generate_batch(made.model, prompts, max_new_tokens=STEPS))
            return tokens(made.model.generate(prompts, max_new_tokens=STEPS))
    with _steered(model, mine):
        if case.way == "forward":
            side = "right" if case.padding == "right" else "left"
            return list(model.run(model.tokenize(prompts, padding_side=side), logits="last"))  # type: ignore[arg-type]
        if case.way == "chunks":
            return chunks(model, prompts)
        if case.way == "stream":
            return [_streamed(model, prompts[0])]
        assistant = loaded(case.family, case.dtype, "transformers") if case.way == "assisted" else None
        return tokens(model.generate(prompts, max_new_tokens=STEPS, assistant=_other(assistant)))


@contextmanager
def _steered(model: LanguageModel, mine: tuple[Any, ...]) -> Iterator[None]:
    """A row's edits may pick no token of a short prompt, or their condition may never hold."""
    if not mine:
        yield
        return
    context = model.steering(*mine)
    context.__enter__()
    try:
        yield
    except BaseException as error:
        context.__exit__(type(error), error, error.__traceback__)
        raise
    try:
        context.__exit__(None, None, None)
    except SteerlabError as error:
        if "never acted" not in str(error):
            raise


def _other(model: LanguageModel | None) -> LanguageModel | None:
    return None if model is None else loaded_other(model.model.config.model_type)


@cache
def loaded_other(model_type: str) -> LanguageModel:
    """A smaller mind that proposes tokens: the same family from another seed."""
    return _endless(sl.load(build(model_type, seed=7), tokenizer=tiny_tokenizer()))


def slots(case: Case, model: LanguageModel) -> Slots:
    """Slots go into a model of their own; other tests use this one with hooks."""
    source = build(case.family).to(getattr(torch, case.dtype))
    if case.backend != "transformers":
        return Slots(model, sites(case), rank=2)
    own = _endless(sl.load(source, tokenizer=tiny_tokenizer(), dtype="auto"))
    return Slots(own, sites(case), rank=_rank(case, model))


def _rank(case: Case, model: LanguageModel) -> int:
    return model.d_model if case.kind == "project" else 2


def tokens(written: Sequence[Any]) -> list[list[int]]:
    return [list(one.token_ids) for one in written]


def _streamed(model: LanguageModel, prompt: str) -> list[int]:
    stream = model.stream(prompt, max_new_tokens=STEPS)
    while True:
        try:
            next(stream)
        except StopIteration as stopped:
            return list(stopped.value.token_ids)


def chunks(model: LanguageModel, prompts: list[str]) -> list[Tensor]:
    """A raw prefill in two chunks, the second of one token at least."""
    batch = model.tokenize(prompts)
    cut = max(1, batch.width - 2)
    cache_ = DynamicCache()
    with torch.inference_mode(), model.prompted(batch):
        for start, stop in ((0, cut), (cut, batch.width)):
            if start < stop:
                positions_ = batch.position_ids[:, start:stop]
                output = model.anatomy.base(
                    input_ids=batch.input_ids[:, start:stop],
                    attention_mask=batch.attention_mask[:, :stop],
                    past_key_values=cache_,
                    use_cache=True,
                    **({"position_ids": positions_} if model.takes_positions else {}),
                )
        logits = model.anatomy.logits_of(output.last_hidden_state[:, -1])
    return list(logits[:, : model.vocab_size].float())


# -- the reference: plain hooks, whole passes, one prompt --

_MODULES: dict[str, dict[str, str]] = {
    "llama": {"mlp_out": "mlp", "attn_out": "self_attn", "mlp_post": "mlp.down_proj"},
    "gpt2": {"mlp_out": "mlp", "attn_out": "attn", "mlp_post": "mlp.c_proj"},
    "gpt_neox": {"mlp_out": "mlp", "attn_out": "attention", "mlp_post": "mlp.dense_4h_to_h"},
    "gemma2": {
        "mlp_out": "post_feedforward_layernorm",
        "attn_out": "post_attention_layernorm",
        "mlp_post": "mlp.down_proj",
    },
}
_MODULES["qwen2"] = _MODULES["mixtral"] = _MODULES["llama"]
_MODULES["olmo2"] = _MODULES["gemma2"]
_STACKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


@dataclass
class Reference:
    """One case by plain hooks."""

    case: Case
    model: LanguageModel
    held: list[bool] = field(default_factory=list)

    def ids(self, row: int) -> Tensor:
        return self.model.tokenize([PROMPTS[row]]).input_ids[0]

    def logits(self, row: int, ids: Tensor) -> Tensor:
        """[token, word], float32."""
        length = len(self.ids(row))
        blocks = self.model.model.get_submodule(_STACKS.get(self.case.family, "model.layers"))
        scores: list[Tensor] = []
        handles = [
            blocks[0].register_forward_pre_hook(
                lambda module, args, kwargs: scores.append(
                    _first(args, kwargs)[0].float() @ probe(self.model)
                ),
                with_kwargs=True,
            )
        ]
        for site in sites(self.case):
            for kind in self._kinds(row):
                handles.append(self._hook(blocks, site, kind, scores, length))
        try:
            with torch.inference_mode():
                logits: Tensor = self.model.model(ids[None], use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits[:, : self.model.vocab_size].float()

    def _kinds(self, row: int) -> list[str]:
        if self.case.kind != "rows":
            return [self.case.kind]
        return [["add"], [], ["clamp", "ablate"]][row]

    def _hook(self, blocks: Any, site: Site, kind: str, scores: list[Tensor], length: int) -> Any:
        block = blocks[site.layer]

        def changed(state: Tensor) -> Tensor:
            x = state[0].float()
            share = self._shares(len(x), length, scores)[:, None]
            return self._change(kind, site, x, share).to(state.dtype)[None]

        if site.name == "resid_post":
            return block.register_forward_hook(_on_output(changed))
        if site.name == "resid_pre":
            return block.register_forward_pre_hook(_on_input(changed), with_kwargs=True)
        module = block.get_submodule(_MODULES[self.case.family][site.name])
        if site.name == "mlp_post":
            return module.register_forward_pre_hook(_on_input(changed), with_kwargs=True)
        return module.register_forward_hook(_on_output(changed))

    def _shares(self, n: int, length: int, scores: list[Tensor]) -> Tensor:
        """How much of the change each token gets."""
        picked = {
            "all": lambda t: True,
            "prompt": lambda t: t < length,
            "last": lambda t: t == length - 1,
            "generated": lambda t: t >= length,
            "first two": lambda t: length <= t < length + 2,
            "window": lambda t: 1 <= t < 3,
            "all but last": lambda t: t != length - 1,
        }[self.case.tokens]
        timed = {
            "none": lambda j: 1.0,
            "linear": lambda j: 1.0 + (0.2 - 1.0) * min(j, 3) / 3,
            "decay": lambda j: 0.5**j,
        }[self.case.schedule]
        holds: Callable[[int], bool] = {
            "none": lambda t: True,
            "prompt": lambda t: bool(scores[-1][length - 1] > threshold(self.case.family, self.case.dtype)),
            "token": lambda t: bool(scores[-1][t] > 0),
        }[self.case.condition]
        return torch.tensor([timed(max(0, t - length)) if picked(t) and holds(t) else 0.0 for t in range(n)])

    def _change(self, kind: str, site: Site, x: Tensor, s: Tensor) -> Tensor:
        width = x.shape[1]
        v = vectors(site, width)[0]
        u = v / v.norm()
        along = (x @ u)[:, None]
        if kind == "add":
            return x + s * 1.5 * v
        if kind == "ablate":
            return x - s * along * u
        if kind == "subspace":
            basis = torch.linalg.qr(vectors(site, width, 2).T).Q
            return x - s * (x @ basis) @ basis.T
        if kind == "kept":
            both = torch.linalg.qr(torch.cat([v[None], vectors(site, width, 2, salt=3)]).T).Q
            return x - 0.7 * s * (x @ both[:, 1:]) @ both[:, 1:].T
        if kind == "clamp":
            return x + s * (0.7 - along) * u
        if kind == "project":
            return x + s * (along * u - x)
        if kind == "rotate":
            norm = x.norm(dim=1, keepdim=True)
            turned = x + 0.3 * s * norm * u
            return turned * norm / turned.norm(dim=1, keepdim=True)
        if kind == "affine":
            return x + s * ((x @ v)[:, None] + 0.2) * vectors(site, width, salt=1)[0]
        if kind == "erase":
            gap, middle = vectors(site, width, salt=4)[0], vectors(site, width, salt=5)[0]
            return x - s * ((x - middle) @ v)[:, None] * gap / (v @ gap)
        if kind == "low rank":
            rows = vectors(site, width, 5, salt=3)
            return x + s * 0.5 * ((x @ rows[:2].T) @ rows[2:4] + rows[4])
        if kind == "patch":
            return x + s * (vectors(site, width, salt=2)[0] - x)
        keep = torch.ones(width)
        keep[[0, 3]] = 0.5
        return x + s * (x * keep - x)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _on_output(changed: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: object, args: object, output: Any) -> Any:
        return changed(output) if isinstance(output, Tensor) else (changed(output[0]), *output[1:])

    return hook


def _on_input(changed: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    return hook
