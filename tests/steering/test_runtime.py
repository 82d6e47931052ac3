"""When and for whom: schedules, conditions, rows of a batch, ways to run, threads, and what is left behind."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny
from tolerances import close
from torch import Tensor
from transformers import DynamicCache

from steerlab.activations import capture
from steerlab.directions import DifferenceInMeans, Direction, fit_direction
from steerlab.errors import SteeringError
from steerlab.models import (
    All,
    Edit,
    FirstGenerated,
    Generated,
    Index,
    LanguageModel,
    Last,
    Selector,
    Site,
    WholePrompt,
    Window,
)
from steerlab.steering import (
    Ablate,
    Add,
    Clamp,
    Condition,
    Constant,
    Decay,
    Linear,
    Patch,
    PerRow,
    PerStep,
    Rotate,
    Scale,
)

PROMPTS = ["The capital of France is Paris.", "A cat", "Two plus two is four; three plus four is seven.", "x"]
EARLY, SITE, LATE = (Site("resid_post", layer) for layer in range(3))
families = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])


def direction(model: LanguageModel, *sites: Site, seed: int = 0) -> Direction:
    random = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(model.width(site), generator=random) for site in sites or (SITE,)}
    return Direction(vectors, model.name, model.fingerprint)


def endless(family: str) -> LanguageModel:
    model = tiny(family, bos=family != "gpt2")
    model.model.generation_config.eos_token_id = None
    model.model.config.eos_token_id = None
    return model


def hooks_left(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def recomputed(
    model: LanguageModel, prompt: str, steps: int, changes: dict[Site, Callable[[Tensor, int], Tensor]]
) -> list[int]:
    """Greedy tokens from whole passes without a cache; changes of block outputs get state [token, width] and length."""
    ids = model.tokenize([prompt]).input_ids
    length = ids.shape[1]
    handles = []
    for site, change in changes.items():

        def hook(module: Any, args: Any, output: Any, change: Any = change) -> Any:
            raw = output if isinstance(output, Tensor) else output[0]
            new = change(raw[0].clone(), length)[None]
            return new if isinstance(output, Tensor) else (new, *output[1:])

        handles.append(model.anatomy.blocks[site.layer].register_forward_hook(hook))
    try:
        for _ in range(steps):
            with torch.no_grad():
                logits = model.model(ids, use_cache=False).logits[0, -1]
            ids = torch.cat([ids, logits[: model.vocab_size].argmax()[None, None]], dim=1)
    finally:
        for handle in handles:
            handle.remove()
    return ids[0, length:].tolist()


def tokens_of(model: LanguageModel, prompts: list[str], steps: int, *edits: Any) -> list[list[int]]:
    with model.steering(*edits):
        return [list(g.token_ids) for g in model.generate(prompts, max_new_tokens=steps)]


# --------------------------------------------------------------------------------------------------------- schedules


@families
@pytest.mark.parametrize(
    "schedule",
    [
        Constant(0.5),
        Linear(2.0, -1.0, 4),
        Decay(0.5, start=3.0),
        PerStep([0.0, 2.0, 1.0]),
        lambda j: float(j % 2),
    ],
    ids=["constant", "linear", "decay", "per step", "function"],
)
def test_generated_token_j_gets_s_of_j_and_the_prompt_s_of_0(family: str, schedule: Any) -> None:
    model = endless(family)
    v = 4 * direction(model)

    def change(state: Tensor, length: int) -> Tensor:
        scale = torch.tensor([schedule(max(0, index - length)) for index in range(len(state))])
        return state + scale[:, None] * v[SITE]

    together = tokens_of(model, PROMPTS, 7, Add(v, schedule=schedule))
    assert together == [recomputed(model, prompt, 7, {SITE: change}) for prompt in PROMPTS]


def test_the_values_of_the_schedules() -> None:
    assert [Linear(1.0, 0.0, 4)(j) for j in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [Decay(0.5, 2.0, 1.0)(j) for j in range(4)] == [2.0, 1.5, 1.25, 1.125]
    assert [PerStep([3.0, 1.0])(j) for j in range(4)] == [3.0, 1.0, 1.0, 1.0]
    for wrong in (lambda: Linear(0, 1, 0), lambda: Decay(1.5), lambda: PerStep([])):
        with pytest.raises(SteeringError):
            wrong()


def test_a_schedule_scales_the_angle_of_a_rotation(tiny_llama: LanguageModel) -> None:
    v = direction(tiny_llama)
    plain = capture(tiny_llama, PROMPTS, [SITE], positions=All())[SITE]
    with tiny_llama.steering(Rotate(v, 40, "angle", schedule=Constant(0.25))):
        got = capture(tiny_llama, PROMPTS, [SITE], positions=All())[SITE]
    angle = torch.rad2deg(torch.acos(torch.cosine_similarity(plain.double(), got.double(), dim=1)))
    close(angle, torch.full_like(angle, 10.0), rtol=0.01)
    close(got.norm(dim=1), plain.norm(dim=1))


def test_a_schedule_must_give_numbers(tiny_llama: LanguageModel) -> None:
    for schedule in (lambda j: "strong", lambda j: float("nan")):
        with (
            pytest.raises(SteeringError, match="schedule gives"),
            tiny_llama.steering(Add(direction(tiny_llama), schedule=schedule)),
        ):
            tiny_llama.logits(PROMPTS)


# -------------------------------------------------------------------------------------------------------- conditions


@families
@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("positions", [Last(), Index(0) | Last(), WholePrompt()], ids=str)
def test_the_prompt_decides_for_its_row_and_all_it_generates(
    family: str, above: bool, positions: Selector
) -> None:
    model = endless(family)
    probe, v = direction(model, EARLY, seed=3), 5 * direction(model)
    read = capture(model, PROMPTS, [EARLY], positions=positions)
    scores = np.array(
        [
            (read[EARLY][read.example == row] @ (probe[EARLY] / probe[EARLY].norm())).mean().item()
            for row in range(4)
        ]
    )
    threshold = float(np.median(scores))
    condition = Condition(probe, threshold, positions=positions, above=above)
    with model.steering(Add(v, condition=condition)) as applied:
        got = [list(g.token_ids) for g in model.generate(PROMPTS, max_new_tokens=6)]
    plain = [list(g.token_ids) for g in model.generate(PROMPTS, max_new_tokens=6)]
    always = tokens_of(model, PROMPTS, 6, Add(v))
    open_ = scores > threshold if above else scores < threshold
    assert 0 < open_.sum() < 4
    assert got == [always[row] if open_[row] else plain[row] for row in range(4)]
    (count,) = applied.counts
    assert (count.seen, count.held, count.passes) == (4, int(open_.sum()), 6)
    assert "held for 2 of 4" in str(applied.counts[0])


@families
def test_every_token_decides_for_itself(family: str) -> None:
    model = endless(family)
    probe, v = direction(model, EARLY, seed=3), 5 * direction(model)
    unit = probe[EARLY] / probe[EARLY].norm()
    condition = Condition(probe, 0.1, positions=None)
    held: list[Tensor] = []

    def look(state: Tensor, length: int) -> Tensor:
        held[:] = [state @ unit > 0.1]
        return state

    def change(state: Tensor, length: int) -> Tensor:
        return state + held[0][:, None] * v[SITE]

    together = tokens_of(model, PROMPTS, 6, Add(v, condition=condition))
    assert together == [recomputed(model, p, 6, {EARLY: look, SITE: change}) for p in PROMPTS]
    assert together != [list(g.token_ids) for g in model.generate(PROMPTS, max_new_tokens=6)]
    with model.steering(Add(v, condition=condition)) as applied:
        model.logits(model.tokenize(PROMPTS))
    read = capture(model, PROMPTS, [EARLY], positions=All())[EARLY]
    assert applied.counts[0].seen == len(read)
    assert applied.counts[0].held == int((read @ unit > 0.1).sum())


def test_a_condition_reads_what_earlier_edits_made_of_the_state(tiny_llama: LanguageModel) -> None:
    probe, v = direction(tiny_llama, EARLY, seed=3), direction(tiny_llama)
    condition = Condition(probe, 100.0)
    push = Add(probe, 1000.0)
    with tiny_llama.steering(push, Add(v, condition=condition)) as applied:
        tiny_llama.logits(PROMPTS)
    # the push is at the condition's own site: the condition is read before it
    assert applied.counts[1].held == 0
    with tiny_llama.steering(push), tiny_llama.steering(Add(v, condition=condition)) as applied:
        tiny_llama.logits(PROMPTS)
    assert applied.counts[0].held == 4


def test_a_condition_that_never_holds_is_no_error_and_changes_no_bit(tiny_llama: LanguageModel) -> None:
    plain = tiny_llama.logits(PROMPTS)
    condition = Condition(direction(tiny_llama, EARLY), 1e6)
    with tiny_llama.steering(Add(direction(tiny_llama), condition=condition)) as applied:
        assert torch.equal(tiny_llama.logits(PROMPTS), plain)
    assert applied.counts[0].held == 0


def test_conditions_that_come_too_late_are_refused(tiny_llama: LanguageModel) -> None:
    late = Condition(direction(tiny_llama, LATE), 0.0)
    v = direction(tiny_llama)
    with (
        pytest.raises(SteeringError, match=r"acts at resid_post\.1 before its condition is known"),
        tiny_llama.steering(Add(v, condition=late)),
    ):
        pass
    each = Condition(direction(tiny_llama, LATE), 0.0, positions=None)
    with (
        pytest.raises(SteeringError, match="before its condition"),
        tiny_llama.steering(Add(v, condition=each, positions=Generated())),
    ):
        pass
    # what the prompt decides is known to every site when tokens are generated
    model = endless("llama")
    v, late = 5 * direction(model), Condition(direction(model, LATE), -1e6)
    got = tokens_of(model, PROMPTS, 5, Add(v, condition=late, positions=Generated()))
    assert got == tokens_of(model, PROMPTS, 5, Add(v, positions=Generated()))


def test_conditions_that_mean_nothing_are_refused(tiny_llama: LanguageModel) -> None:
    one, two = direction(tiny_llama), direction(tiny_llama, EARLY, SITE)
    for wrong, sentence in [
        (lambda: Condition(two, 0.0), "has 2 sites"),
        (lambda: Condition(one), "knows no threshold"),
        (lambda: Condition(one, float("inf")), "finite"),
        (lambda: Condition(one, 0.0, positions=Generated()), "no token of the prompt"),
        (lambda: Condition.fit(one, tiny_llama, PROMPTS, false_positives=0.05), "at least 19 quiet prompts"),
        (lambda: Condition.fit(one, tiny_llama, PROMPTS, false_positives=1.5), "between 0 and 1"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            wrong()


def test_a_fitted_direction_brings_its_threshold(tiny_llama: LanguageModel) -> None:
    states = capture(tiny_llama, PROMPTS, [SITE])
    made = fit_direction(states, [0, 1, 0, 1], DifferenceInMeans(), model=tiny_llama)
    condition = Condition(made)
    held = condition.holds(condition.score(states[SITE][None]))[0]
    assert held.tolist() == [
        float(x @ made[SITE]) + made.statistics[SITE].bias[0] > 0 for x in states[SITE].double().float()
    ]


def test_the_learnt_threshold_keeps_the_rate_of_false_positives(tiny_llama: LanguageModel) -> None:
    """Split conformal: over many draws of 39 quiet prompts the mean rate on new ones is at most the one asked for."""
    random = np.random.default_rng(0)
    words = ["cat", "dog", "Rome", "bread", "two", "four", "is", "a", "the", "bake", "?", "."]
    texts = [" ".join(random.choice(words, size=random.integers(2, 7))) for _ in range(300)]
    probe = direction(tiny_llama)
    unit = probe[SITE] / probe[SITE].norm()
    scores = (capture(tiny_llama, texts, [SITE])[SITE] @ unit).numpy()
    for alpha, above in ((0.1, True), (0.25, False)):
        condition = Condition.fit(probe, tiny_llama, texts[:39], false_positives=alpha, above=above)
        signed = scores if above else -scores
        ordered = np.sort(signed[:39])
        assert (1 if above else -1) * condition.limit == pytest.approx(
            ordered[int(np.ceil(40 * (1 - alpha))) - 1], abs=1e-5
        )
        rates = []
        for _ in range(200):
            order = random.permutation(300)
            limit = np.sort(signed[order[:39]])[int(np.ceil(40 * (1 - alpha))) - 1]
            rates.append((signed[order[39:]] > limit).mean())
        assert np.mean(rates) <= alpha + 0.01
        held = condition.rate(tiny_llama, texts)
        assert held.value == pytest.approx((signed > (1 if above else -1) * condition.limit).mean(), abs=0.01)
        assert held.n == 300


# -------------------------------------------------------------------------------------------------------- rows


def table(model: LanguageModel) -> list[list[Edit]]:
    a, b, c = (5 * direction(model, seed=seed) for seed in range(3))
    return [
        [Add(a), Clamp(b, 1.0), Rotate(c, 30, "angle"), Add(b, positions=Generated())],
        [],
        [Ablate(b, sites=[SITE, LATE]), Add(c, positions=Last(), schedule=Decay(0.5))],
        [Rotate(a, 0.5), Scale(0.5, coordinates=[1], sites=[SITE])],
    ]


@families
def test_every_row_has_its_own_interventions_whatever_the_batches(family: str) -> None:
    model = endless(family)
    rows = table(model)
    alone = [
        tokens_of(model, [prompt], 6, *edits)[0]
        if edits
        else list(model.generate([prompt], max_new_tokens=6)[0].token_ids)
        for prompt, edits in zip(PROMPTS, rows, strict=True)
    ]
    for budget in (8192, 40, 1):  # one batch, several, one prompt each: generate sorts prompts by length
        with model.steering(PerRow(*rows)) as applied:
            got = model.generate(PROMPTS, max_new_tokens=6, token_budget=budget)
        assert [list(g.token_ids) for g in got] == alone
        assert [count.row for count in applied.counts] == [0, 0, 0, 0, 2, 2, 3, 3]


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_interventions_keep_every_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny(family)
    model.model.to(dtype)
    rows = table(model)
    plain = model.logits(model.tokenize(PROMPTS), last_only=False)
    states = capture(model, PROMPTS, [LATE], positions=All())
    prefill = [[edit for edit in row if edit.positions != Generated()] for row in rows]
    with model.steering(PerRow(*prefill)):
        got = model.logits(model.tokenize(PROMPTS), last_only=False)
        read = capture(model, PROMPTS, [LATE], positions=All(), token_budget=64)
    assert torch.equal(got[1], plain[1])
    assert not torch.equal(got[0], plain[0])
    mine = states.example == 1
    if dtype == torch.float32:
        close(read[LATE][mine], states[LATE][mine])
    assert not torch.allclose(read[LATE][~mine], states[LATE][~mine], atol=1e-3)


def test_a_row_in_logits_and_capture_is_the_prompt_of_the_call(tiny_llama: LanguageModel) -> None:
    rows = [[Add(direction(tiny_llama, seed=seed), 3.0)] for seed in range(4)]
    with tiny_llama.steering(PerRow(*rows)):
        logits = tiny_llama.logits(PROMPTS, token_budget=40)
        states = capture(tiny_llama, PROMPTS, [SITE], token_budget=20)[SITE]
    for row, prompt in enumerate(PROMPTS):
        with tiny_llama.steering(*rows[row]):
            close(logits[row], tiny_llama.logits([prompt])[0])
            alone = capture(tiny_llama, [prompt], [SITE])[SITE][0]
        close(states[row], alone)


def test_tables_compose_with_whole_batches_and_conditions(tiny_llama: LanguageModel) -> None:
    a, b = direction(tiny_llama), direction(tiny_llama, seed=1)
    never, always = (Condition(direction(tiny_llama, EARLY), limit) for limit in (1e6, -1e6))
    rows = PerRow([Add(a, condition=never)], [Add(a, condition=always)], (), [Add(a)])
    with tiny_llama.steering(Add(b), rows, Scale(2.0, sites=[SITE])) as applied:
        got = capture(tiny_llama, PROMPTS, [SITE])[SITE]
    plain = capture(tiny_llama, PROMPTS, [SITE])[SITE]
    added = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None] * a[SITE]
    close(got, 2 * (plain + b[SITE] + added))
    assert [count.held for count in applied.counts] == [None, 0, 4, None, None]


def test_tables_that_do_not_fit_are_refused(tiny_llama: LanguageModel) -> None:
    add = Add(direction(tiny_llama))
    for wrong, sentence in [
        (lambda: PerRow(), "one row a prompt"),
        (lambda: PerRow([3]), "Row 0 cannot be used: 3 is no edit"),  # type: ignore[list-item]
        (lambda: tiny_llama.steering(PerRow((), ())).__enter__(), "No row of the table"),
    ]:
        with pytest.raises(SteeringError, match=sentence):
            wrong()
    with (
        pytest.raises(SteeringError, match="has 2 rows, but a prompt number 3"),
        tiny_llama.steering(PerRow([add], ())),
    ):
        tiny_llama.logits(PROMPTS)
    with (
        pytest.raises(SteeringError, match=r"Add at resid_post\.1 never acted"),
        tiny_llama.steering(PerRow([add], [Add(direction(tiny_llama))])),
    ):
        tiny_llama.logits(PROMPTS[:1])
    assert hooks_left(tiny_llama) == 0


# ------------------------------------------------------------------------------------------------ ways of running


@families
@pytest.mark.parametrize("positions", [All(), Last(), Index(2), Window(-3, None), WholePrompt()], ids=str)
def test_a_prompt_in_chunks_is_the_prompt_in_one_pass(family: str, positions: Selector) -> None:
    model = tiny(family)
    tokens = model.tokenize(PROMPTS[:3:2])
    edits = [
        Add(3 * direction(model), positions=positions),
        Rotate(direction(model, seed=1), 20, "angle", positions=positions),
    ]
    with model.steering(*edits):
        whole = model.logits(tokens)
        for size in (1, 5):
            cache = DynamicCache(config=model.model.config)
            with torch.no_grad(), model.prompted(tokens):
                for start in range(0, tokens.width, size):
                    chunk = slice(start, start + size)
                    options = {"position_ids": tokens.position_ids[:, chunk]} if family != "bloom" else {}
                    out = model.model(
                        tokens.input_ids[:, chunk],
                        attention_mask=tokens.attention_mask[:, : start + size],
                        past_key_values=cache,
                        **options,
                    )
            close(out.logits[:, -1, : model.vocab_size], whole)


def test_a_condition_over_chunks_waits_for_its_tokens(tiny_llama: LanguageModel) -> None:
    tokens = tiny_llama.tokenize(PROMPTS[:1])
    condition = Condition(direction(tiny_llama, EARLY), -1e6)

    def in_chunks(edit: Edit) -> Tensor:
        cache = DynamicCache(config=tiny_llama.model.config)
        with torch.no_grad(), tiny_llama.steering(edit), tiny_llama.prompted(tokens):
            for start in range(0, tokens.width, 4):
                out = tiny_llama.model(tokens.input_ids[:, start : start + 4], past_key_values=cache)
        return out.logits[:, -1, : tiny_llama.vocab_size]

    v = direction(tiny_llama)
    last = Add(v, condition=condition, positions=Last())
    with tiny_llama.steering(last):
        whole = tiny_llama.logits(tokens)
    close(in_chunks(last), whole)
    with pytest.raises(SteeringError, match="not decided yet"):
        in_chunks(Add(v, condition=condition))
    assert hooks_left(tiny_llama) == 0


def test_raw_generation_knows_rows_by_the_attention_mask() -> None:
    model = endless("llama")
    tokens = model.tokenize(PROMPTS)
    for positions in (Window(2, 9), Index(1), FirstGenerated(2), WholePrompt() | FirstGenerated(1)):
        edit = Add(5 * direction(model), positions=positions)
        with model.steering(edit):
            raw = model.model.generate(
                tokens.input_ids,
                attention_mask=tokens.attention_mask,
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
                suppress_tokens=list(range(300, 320)),
            )
        assert raw[:, tokens.width :].tolist() == tokens_of(model, PROMPTS, 6, edit)


def test_a_mask_that_hides_the_rows_is_refused(tiny_llama: LanguageModel) -> None:
    ids = tiny_llama.tokenize(PROMPTS[:1]).input_ids
    mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
    for positions in (Index(0), Window(1, 3)):
        with (
            pytest.raises(SteeringError, match="attention mask has 4 axes"),
            tiny_llama.steering(Add(direction(tiny_llama), positions=positions)),
        ):
            tiny_llama.model(ids, attention_mask=mask)


def test_positions_counted_from_the_start_work_in_raw_calls(tiny_llama: LanguageModel) -> None:
    """With the attention mask a raw call says where each row begins, on either side."""
    v = direction(tiny_llama)
    for side in ("left", "right"):
        tokens = tiny_llama.tokenize(PROMPTS, padding_side=side)
        for positions in (Index(0), Window(1, 4), WholePrompt()):
            edit = Add(v, positions=positions)
            with torch.no_grad(), tiny_llama.steering(edit):
                expected = tiny_llama.run(tokens, logits="all")
                raw = tiny_llama.model(
                    tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=tokens.position_ids
                ).logits[..., : tiny_llama.vocab_size]
            real = tokens.attention_mask.bool()
            close(raw[real], expected[real])


@pytest.mark.parametrize("positions", [Last(), FirstGenerated(2), Window(3, 12), All()], ids=str)
def test_beams_carry_their_prompts_positions(positions: Selector) -> None:
    """Under beam search every prompt runs as several rows: a batch gives what each prompt gives alone."""
    model = endless("llama")
    tokens = model.tokenize(PROMPTS[:3])
    edit = Add(4 * direction(model), positions=positions)

    def beams(batch: Any) -> list[list[int]]:
        with model.prompted(batch), model.steering(edit):
            out = model.model.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                num_beams=3,
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, batch.width :].tolist()

    assert beams(tokens) == [beams(model.tokenize([prompt]))[0] for prompt in PROMPTS[:3]]


def test_patched_states_and_tables_under_beams() -> None:
    model = endless("llama")
    donor = capture(model, PROMPTS[:2], [SITE])
    tokens = model.tokenize(PROMPTS[:2])
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    plain = model.model.generate(tokens.input_ids, attention_mask=tokens.attention_mask, **options)
    with model.prompted(tokens), model.steering(Patch(donor, positions=Last())):
        patched = model.model.generate(tokens.input_ids, attention_mask=tokens.attention_mask, **options)
    assert torch.equal(patched, plain)  # a run's own states change nothing
    with model.prompted(tokens), model.steering(PerRow([Add(9 * direction(model))], ())):
        rows = model.model.generate(tokens.input_ids, attention_mask=tokens.attention_mask, **options)
    assert torch.equal(rows[1], plain[1])
    assert not torch.equal(rows[0], plain[0])


def test_gradients_flow_through_edits(tiny_llama: LanguageModel) -> None:
    """A context used in inference mode first leaves nothing that autograd could not take."""
    tokens = tiny_llama.tokenize(PROMPTS[:1])
    edits = (
        Ablate(direction(tiny_llama)),
        Add(direction(tiny_llama)),
        Rotate(direction(tiny_llama)),
        PerRow([Clamp(direction(tiny_llama), 1.0)]),
        Clamp(direction(tiny_llama), 1.0, "floor"),
        Scale(0.5, sites=[SITE], condition=Condition(direction(tiny_llama, EARLY), 0.0, positions=None)),
    )
    with tiny_llama.steering(*edits):
        tiny_llama.logits(tokens)
        embedded = tiny_llama.anatomy.embed(tokens.input_ids).detach().requires_grad_()
        tiny_llama.model(inputs_embeds=embedded).logits.sum().backward()
    assert bool(embedded.grad.isfinite().all())
    assert float(embedded.grad.abs().max()) > 0


# --------------------------------------------------------------------------------------------- threads and leftovers


def test_an_intervention_belongs_to_the_thread_that_entered_it(tiny_llama: LanguageModel) -> None:
    plain = tiny_llama.logits(PROMPTS)
    vectors = [direction(tiny_llama, seed=seed) for seed in range(4)]
    expected = []
    for v in vectors:
        with tiny_llama.steering(Add(v, 5.0)):
            expected.append(tiny_llama.logits(PROMPTS))
    wrong: list[str] = []
    ready = threading.Barrier(5)

    def steered(number: int) -> None:
        ready.wait()
        for _ in range(8):
            with tiny_llama.steering(Add(vectors[number], 5.0)):
                if not torch.equal(tiny_llama.logits(PROMPTS), expected[number]):
                    wrong.append(f"steered {number}")

    def unsteered() -> None:
        ready.wait()
        for _ in range(8):
            if not torch.equal(tiny_llama.logits(PROMPTS), plain):
                wrong.append("unsteered")

    threads = [threading.Thread(target=steered, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=unsteered))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert hooks_left(tiny_llama) == 0


def test_ten_thousand_generated_tokens_leave_neither_hooks_nor_memory() -> None:
    """Contexts entered and left, nested, broken off; the first twelve warm up, what grows after that is a leak."""
    model = endless("llama")
    v, probe = direction(model), direction(model, EARLY)
    condition = Condition(probe, 0.0)

    def once(number: int) -> int:
        edits = (
            Add(v, schedule=Decay(0.5)),
            PerRow(*([Add(v)] for _ in range(128))),
            Rotate(v, condition=condition),
        )
        with model.steering(*edits), model.steering(Ablate(v)):
            written = model.generate(["a cat"] * 128, max_new_tokens=2)
        if number % 5 == 0:
            with pytest.raises(KeyError), model.steering(Add(v)):
                raise KeyError
        return sum(len(one.token_ids) for one in written)

    tokens = sum(once(number) for number in range(12))
    gc.collect()
    tracemalloc.start()
    try:
        before, objects = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
        tokens += sum(once(number) for number in range(30))
        gc.collect()
        grown, more = tracemalloc.get_traced_memory()[0] - before, len(gc.get_objects()) - objects
    finally:
        tracemalloc.stop()
    assert tokens >= 10_000
    assert hooks_left(model) == 0
    assert more < 500
    assert grown < 200_000
