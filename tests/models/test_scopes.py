"""Who is steered: the context that entered, its asyncio tasks and threads it hands itself to, and nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from families import tiny
from torch import Tensor

import steerlab as sl
from steerlab.models import LanguageModel
from steerlab.models.scopes import Scope

SITE = sl.Site("resid_post", 1)
TEXT = "The cat is"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    made: LanguageModel = tiny("llama")
    return made


@pytest.fixture(scope="module")
def edits(model: LanguageModel) -> list[sl.Add]:
    rng = torch.Generator().manual_seed(0)
    return [sl.Add(torch.randn(model.d_model, generator=rng), 3.0, sites=SITE) for _ in range(3)]


def logits(model: LanguageModel) -> Tensor:
    return model.logits(TEXT)


@pytest.fixture(scope="module")
def alone(model: LanguageModel, edits: list[sl.Add]) -> list[Tensor]:
    """The logits under each edit by itself; the last are the plain ones."""
    found = []
    for edit in edits:
        with model.steering(edit):
            found.append(logits(model))
    return [*found, logits(model)]


def test_asyncio_tasks_keep_their_own_vectors(
    model: LanguageModel, edits: list[sl.Add], alone: list[Tensor]
) -> None:
    async def chat(number: int) -> list[bool]:
        same = []
        with model.steering(edits[number]):
            for _ in range(5):
                await asyncio.sleep(0)
                same.append(torch.equal(logits(model), alone[number]))
        same.append(torch.equal(logits(model), alone[-1]))
        return same

    async def both() -> list[list[bool]]:
        return list(await asyncio.gather(*(chat(number) for number in range(3))))

    assert all(all(same) for same in asyncio.run(both()))


def test_to_thread_and_tasks_started_inside_are_steered_until_the_end(
    model: LanguageModel, edits: list[sl.Add], alone: list[Tensor]
) -> None:
    async def inside() -> tuple[Tensor, Tensor, Tensor]:
        go = asyncio.Event()

        async def later() -> Tensor:
            await go.wait()
            return logits(model)

        with model.steering(edits[0]):
            in_thread = await asyncio.to_thread(logits, model)
            task = await asyncio.create_task(asyncio.sleep(0, logits(model)))
            late = asyncio.create_task(later())
            await asyncio.sleep(0)
        go.set()
        return in_thread, task, await late

    in_thread, task, late = asyncio.run(inside())
    assert torch.equal(in_thread, alone[0])
    assert torch.equal(task, alone[0])
    assert torch.equal(late, alone[-1])


def test_plain_threads_start_unsteered_and_a_copied_context_does_not(
    model: LanguageModel, edits: list[sl.Add], alone: list[Tensor]
) -> None:
    with ThreadPoolExecutor(1) as pool, model.steering(edits[0]):
        assert torch.equal(pool.submit(logits, model).result(), alone[-1])
        copied = contextvars.copy_context()
        assert torch.equal(pool.submit(copied.run, logits, model).result(), alone[0])
        assert torch.equal(pool.submit(logits, model).result(), alone[-1])
        assert torch.equal(logits(model), alone[0])


def reader(model: LanguageModel, edit: sl.Add) -> Iterator[Tensor]:
    """A user's generator that yields inside the context."""
    with model.steering(edit):
        while True:
            yield logits(model)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_suspended_readers_are_closed_in_any_order_and_from_any_thread(
    model: LanguageModel, edits: list[sl.Add], alone: list[Tensor], order: tuple[int, int], elsewhere: bool
) -> None:
    readers = [reader(model, edits[number]) for number in (0, 1)]
    assert torch.equal(next(readers[0]), alone[0])
    both = next(readers[1])  # the first one steers its reader until it is closed
    assert not torch.equal(both, alone[1])
    for number in order:
        if elsewhere:
            thread = threading.Thread(target=readers[number].close)
            thread.start()
            thread.join()
        else:
            readers[number].close()
        left = 1 - number if number == order[0] else -1
        assert torch.equal(logits(model), alone[left])
    with model.steering(edits[2]):
        assert torch.equal(logits(model), alone[2])


def test_a_thread_that_inherits_a_number_inherits_nothing_else(
    model: LanguageModel, edits: list[sl.Add], alone: list[Tensor]
) -> None:
    """A thread dies inside its context (its generator is suspended); new threads reuse its number."""
    kept: list[Iterator[Tensor]] = []
    numbers: set[int] = set()

    def suspends() -> None:
        numbers.add(threading.get_ident())
        kept.append(reader(model, edits[0]))
        next(kept[-1])

    thread = threading.Thread(target=suspends)
    thread.start()
    thread.join()
    reused, wrong = 0, 0
    for _ in range(50):

        def looks() -> None:
            nonlocal reused, wrong
            reused += threading.get_ident() in numbers
            wrong += not torch.equal(logits(model), alone[-1])

        thread = threading.Thread(target=looks)
        thread.start()
        thread.join()
    assert wrong == 0
    kept[0].close()  # type: ignore[attr-defined]
    assert torch.equal(logits(model), alone[-1])


def test_streams_hold_nothing_between_two_pieces(model: LanguageModel, edits: list[sl.Add]) -> None:
    with model.steering(edits[0]):
        steered = "".join(model.stream(TEXT, max_new_tokens=6))
    plain = "".join(model.stream(TEXT, max_new_tokens=6))
    first, second = model.stream(TEXT, max_new_tokens=6), model.stream(TEXT, max_new_tokens=6)
    begun = [next(first), next(second)]
    with model.steering(edits[0]):
        assert "".join(model.stream(TEXT, max_new_tokens=6)) == steered
    assert begun[0] + "".join(first) == plain
    second.close()
    assert not model.frames.watched


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_raw_sequences_side_by_side_keep_their_own_prompt(family: str) -> None:
    """Two prompts of other lengths are read one after the other, then each goes on with its own cache."""
    model = tiny(family)
    edit = sl.Add(torch.ones(model.d_model), 3.0, sites=SITE, positions=sl.WholePrompt())
    rows = [model.tokenize(text).input_ids for text in (TEXT, "Is a cat an animal? Yes, a cat is an animal.")]
    name = "cache_params" if family == "mamba2" else "past_key_values"

    def follows(cache: object, output: object) -> Tensor:
        inputs = {name: cache, "use_cache": True}
        return model.model(input_ids=torch.tensor([[5]]), **inputs).logits[0, -1]  # type: ignore[no-any-return]

    def begun(ids: Tensor) -> object:
        return getattr(model.model(input_ids=ids, use_cache=True), name)

    with torch.no_grad(), model.steering(edit):
        alone = [follows(begun(ids), None) for ids in rows]
        caches = [begun(ids) for ids in rows]
        together = [follows(cache, None) for cache in caches]
    for right, found in zip(alone, together, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_a_model_that_runs_inside_an_edit_leaves_the_pass_around_it_alone(model: LanguageModel) -> None:
    other, last = tiny("gpt2"), sl.Add(torch.ones(model.d_model), 3.0, sites=SITE, positions=sl.Last())
    with model.steering(last):
        right = logits(model)
    for inner in (other, model):

        def asks(state: Tensor, inner: LanguageModel = inner) -> Tensor:
            inner.run(inner.tokenize("Is a cat an animal? Yes."), logits="last")
            return state

        with (
            model.edit("resid_post.0", asks) if inner is other else model.edit("resid_pre.0", once(asks)),
            model.steering(last),
        ):
            assert torch.equal(logits(model), right)


def once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function the first time it is called, nothing inside of itself."""
    running = []

    def called(state: Tensor) -> Tensor:
        if running:
            return state
        running.append(True)
        try:
            return function(state)
        finally:
            running.clear()

    return called


def test_sampling_refuses_what_goes_by_rows(model: LanguageModel, edits: list[sl.Add]) -> None:
    from steerlab.readouts.samples import rendered, sample

    prompts = rendered(model, [TEXT, "Is a cat"])
    probe = sl.Direction({sl.Site("resid_post", 0): torch.ones(model.d_model)}, model.name, model.fingerprint)
    by_prompt = sl.Add(edits[0].direction, 1.0, sites=SITE, unit="raw", condition=sl.Condition(probe, 0.0))
    for edit in (sl.PerRow([edits[0]], []), by_prompt):
        with (
            pytest.raises(sl.errors.SteeringError, match="goes by the rows of a batch"),
            model.steering(edit),
        ):
            sample(model, prompts, samples=2, max_new_tokens=2)
    with model.steering(edits[0]):
        assert len(sample(model, prompts, samples=2, max_new_tokens=2).tokens) == 4


def test_scopes_left_in_any_order_hold_exactly_what_is_open() -> None:
    """2,000 rounds of entering and leaving at random, in this context and from another thread."""
    rng = np.random.default_rng(0)
    scope: Scope[int] = Scope()
    other: Scope[int] = Scope()
    open_now = []
    with ThreadPoolExecutor(1) as pool:
        for number in range(2000):
            if open_now and rng.random() < 0.5:
                entry = open_now.pop(int(rng.integers(len(open_now))))
                if rng.random() < 0.1:
                    pool.submit(entry.close).result()
                else:
                    entry.close()
                entry.close()
                assert not entry.is_here
            else:
                open_now.append(scope.enter(number))
            assert [entry.value for entry in scope.here()] == [entry.value for entry in open_now]
            assert all(entry.is_here for entry in open_now)
            assert other.here() == []
        assert pool.submit(scope.here).result() == []
