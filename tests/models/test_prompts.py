"""Prompts, batches and position selectors on tiny tokenizers, and their invariants."""

from __future__ import annotations

import pytest
import torch
from families import tiny, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlab.models import (
    AfterInstruction,
    All,
    Generated,
    Index,
    LanguageModel,
    Last,
    Prompt,
    PromptError,
    Span,
)
from steerlab.models.batches import batches_by_length
from steerlab.models.prompts import encode


def texts() -> st.SearchStrategy[str]:
    return st.text(
        st.characters(blacklist_categories=("Cs",), blacklist_characters="<\u2063"), min_size=1, max_size=20
    )


@settings(max_examples=40, deadline=None)
@given(batch=st.lists(texts(), min_size=1, max_size=4))
def test_either_padding_holds_the_same_tokens_at_the_same_positions(batch: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    left, right = (encode(tokenizer, batch, padding_side=side) for side in ("left", "right"))
    assert left.lengths == right.lengths
    for row, length in enumerate(left.lengths):
        assert left.column(row, length - 1) == left.width - 1
        for index in range(length):
            one, other = left.column(row, index), right.column(row, index)
            assert left.input_ids[row, one] == right.input_ids[row, other]
            assert left.position_ids[row, one] == right.position_ids[row, other] == index
            assert left.attention_mask[row, one] == right.attention_mask[row, other] == 1
        assert left.attention_mask[row].sum() == right.attention_mask[row].sum() == length
        assert left.input_ids[row].tolist().count(0) >= 1


@settings(max_examples=60, deadline=None)
@given(text=texts().filter(lambda text: text.strip()), chat=st.booleans())
def test_the_rendering_remembers_where_the_instruction_went(text: str, chat: bool) -> None:
    from steerlab.models.templates import render

    tokenizer = tiny_tokenizer(chat=chat)
    prompt = render(tokenizer, text, response="Sure")
    start, end = prompt.spans["instruction"]
    assert prompt.text[start:end].strip() == text.strip()
    assert prompt.text[slice(*prompt.spans["response"])] == "Sure"
    tokens = encode(tokenizer, [prompt])
    inside, after = Span("instruction").resolve(tokens, 0), AfterInstruction().resolve(tokens, 0)
    response = Span("response").resolve(tokens, 0)
    # Instruction, template ending and response follow each other and leave nothing out.
    assert [*inside, *after, *response] == list(range(inside[0], tokens.lengths[0]))


@settings(max_examples=60, deadline=None)
@given(text=texts(), data=st.data())
def test_a_span_is_covered_by_its_tokens(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    tokens = encode(tiny_tokenizer(), [Prompt(text, {"span": (start, end)})])
    assert tokens.offsets is not None
    chosen = [tokens.offsets[0][index] for index in Span("span").resolve(tokens, 0)]
    assert min(low for low, _ in chosen) <= start
    assert max(high for _, high in chosen) >= end
    assert all(low < end and high > start for low, high in chosen)


def test_selectors(tiny_llama: LanguageModel) -> None:
    prompt = tiny_llama.instruction_prompt("Is a cat an animal?")
    tokens = tiny_llama.tokenize([prompt, "Rome"])
    length = tokens.lengths[0]
    assert Last().resolve(tokens, 0) == [length - 1]
    assert Index(0).resolve(tokens, 0) == [0]
    assert Index(-2).resolve(tokens, 0) == [length - 2]
    assert All().resolve(tokens, 0) == list(range(length))
    assert Generated().resolve(tokens, 0) == []
    assert (Last() | Index(0)).resolve(tokens, 0) == [0, length - 1]
    ids = tokens.input_ids[0, -length:]
    after = tiny_llama.tokenizer.decode(ids[AfterInstruction().resolve(tokens, 0)])
    assert after.replace(" ", "") == "</s>\n<|assistant|>\n"
    selection = tokens.select(Last())
    assert selection.rows.tolist() == [0, 1]
    assert selection.columns.tolist() == [tokens.width - 1] * 2
    assert selection.indices.tolist() == [length - 1, tokens.lengths[1] - 1]
    assert torch.equal(tokens.input_ids[selection.rows, selection.columns], tokens.input_ids[:, -1])


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        (Index(99), "no token 99"),
        (Index(-99), "no token -99"),
        (Span("subject"), "no span called 'subject'"),
        (Span("empty"), "No token"),
        (AfterInstruction(), "no span called 'instruction'"),
    ],
)
def test_a_selector_that_matches_nothing_says_so(
    tiny_llama: LanguageModel, selector: object, words: str
) -> None:
    tokens = tiny_llama.tokenize([Prompt("The capital", {"empty": (3, 3)})])
    with pytest.raises(PromptError, match=words):
        selector.resolve(tokens, 0)  # type: ignore[attr-defined]


def test_nothing_after_the_instruction_says_so(tiny_llama: LanguageModel) -> None:
    tokens = tiny_llama.tokenize([tiny_llama.instruction_prompt("Rome", template="none")])
    with pytest.raises(PromptError, match="no token after its instruction"):
        AfterInstruction().resolve(tokens, 0)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([""], "is empty"),
        ([], "at least one"),
        ({"text": ["Rome"]}, "one column"),
        (None, "not as None"),
        (["Rome", None], "Prompt 1 is None"),
        (["word " * 100], "context holds 64"),
        ([Prompt("<s>Rome")], "more than once"),
        ([Prompt("Rome", has_special_tokens=True)], "does not begin"),
    ],
)
def test_unusable_prompts_are_sentences(tiny_llama: LanguageModel, prompts: object, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        tiny_llama.tokenize(prompts)  # type: ignore[arg-type]


def test_templates(tiny_llama: LanguageModel, tiny_gpt2: LanguageModel) -> None:
    assert tiny_llama.instruction_prompt("Hi").text == "<s><|user|>\nHi</s>\n<|assistant|>\n"
    assert tiny_llama.instruction_prompt("Hi", template="plain").text == "User: Hi\nAssistant:"
    assert tiny_llama.instruction_prompt("Hi", template="none").text == "Hi"
    assert tiny_gpt2.instruction_prompt("Hi").text == "User: Hi\nAssistant:"
    plain = tiny_gpt2.instruction_prompt("Hi", system="Be brief.", response="Yes")
    assert plain.text == "Be brief.\n\nUser: Hi\nAssistant: Yes"
    with pytest.raises(PromptError, match="instruction is empty"):
        tiny_llama.instruction_prompt("  ")
    with pytest.raises(PromptError, match="no template called"):
        tiny_llama.instruction_prompt("Hi", template="fancy")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no system message"):
        tiny_llama.instruction_prompt("Hi", system="Be brief.")


def test_templates_that_lose_something_say_so() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    model = tiny("llama")
    model.tokenizer.chat_template = tokenizer.chat_template
    prompt = model.instruction_prompt("Hi")
    assert prompt.text == "[Hi]"
    assert not prompt.has_special_tokens  # the template writes no BOS, so the tokenizer adds it
    assert model.tokenize([prompt]).input_ids[0, 0] == 0
    with pytest.raises(PromptError, match="drops the system message"):
        model.instruction_prompt("Hi", system="Be brief.")
    model.tokenizer.chat_template = "nothing"
    with pytest.raises(PromptError, match="does not contain the user's text"):
        model.instruction_prompt("Hi")
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m.content | upper }}]{% endfor %}"
    with pytest.raises(PromptError, match="text"):
        model.instruction_prompt("hi there")


def test_token_id(tiny_llama: LanguageModel) -> None:
    ids = tiny_llama.tokenizer("a cat is an", add_special_tokens=False)["input_ids"]
    assert tiny_llama.token_id(" is") in ids
    for word in ("", " zebra crossing"):
        with pytest.raises(PromptError, match="tokens for this tokenizer"):
            tiny_llama.token_id(word)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(1, 200))
def test_batches_hold_everything_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = batches_by_length(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_an_end_mark_the_tokenizer_appends_is_left_out() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("Rome").input_ids[-1] == 1
    (tokens, plain) = (encode(one, ["Rome", "The capital"]) for one in (tokenizer, tiny_tokenizer()))
    assert torch.equal(tokens.input_ids, plain.input_ids)
    assert tokens.offsets == plain.offsets
