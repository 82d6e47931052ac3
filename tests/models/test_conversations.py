"""Conversations as prompts: rendered where the tokenizer is known, as transformers renders them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny
from transformers import AutoTokenizer

import steerlab as sl
from steerlab.errors import PromptError
from steerlab.extraction import own_prompts
from steerlab.models import LanguageModel
from steerlab.models.templates import render_conversation

ASKED = [
    {"role": "user", "content": "Is a cat an animal?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "a"},
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    made: LanguageModel = tiny("llama", chat=True)
    return made


@pytest.fixture(scope="module")
def real(shared: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared / "models/tokenizers/minimind3")


def theirs(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def test_a_conversation_is_one_prompt_wherever_prompts_are_taken(model: LanguageModel) -> None:
    prompt = model.conversation_prompt(ASKED)
    assert prompt.text == theirs(model.tokenizer, ASKED, add_generation_prompt=True)
    expected = model.generate(prompt, max_new_tokens=4)
    assert model.generate(ASKED, max_new_tokens=4) == expected
    assert model.generate([ASKED, "plain", ASKED[:1]], max_new_tokens=4)[0] == expected
    assert model.ask(ASKED, max_new_tokens=4) == expected.text.strip()
    assert "".join(model.stream(ASKED, max_new_tokens=4)) == expected.text
    torch.testing.assert_close(model.logits(ASKED), model.logits([prompt]))
    torch.testing.assert_close(model.logits([ASKED, ASKED[:1]])[:1], model.logits([prompt]))
    site = "resid_post.1"
    states = sl.capture(model, [ASKED, ASKED[:1]], site)
    torch.testing.assert_close(states[site][:1], sl.capture(model, prompt, site)[site])
    assert states.n_prompts == 2
    assert model.tokenize([ASKED, ASKED]).prompts == (prompt, prompt)


def test_the_last_users_text_is_the_instruction(model: LanguageModel, real: Any) -> None:
    """`a` also stands in the template's own words, so that it must be placed and not looked for."""
    for tokenizer in (model.tokenizer, real):
        prompt = render_conversation(tokenizer, ASKED)
        start, end = prompt.spans["instruction"]
        assert prompt.text[start:end] == "a"
        assert prompt.text[:start] == theirs(tokenizer, ASKED)[:start]
        assert "Yes." in prompt.text[:start]
        assert prompt.text[end:] == theirs(tokenizer, ASKED, add_generation_prompt=True)[end:]
        assert "response" not in prompt.spans


def test_system_tools_and_parts_are_handed_to_the_template(real: Any) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "sky", "arguments": {}}}],
        },
        {"role": "tool", "content": "sun"},
    ]
    tools = [{"type": "function", "function": {"name": "sky", "description": "The sky.", "parameters": {}}}]
    prompt = render_conversation(real, messages, options={"tools": tools})
    joined = [
        messages[0], {**messages[1], "content": "Weather in Rome?"}, {**messages[2], "content": ""}, messages[3]
    ]  # fmt: skip
    assert prompt.text == theirs(real, joined, tools=tools, add_generation_prompt=True)
    assert "<tool_response>\nsun" in prompt.text
    assert prompt.text[slice(*prompt.spans["instruction"])] == "Weather in Rome?"


def test_an_assistants_last_turn_is_continued(model: LanguageModel, real: Any) -> None:
    messages = [*ASKED, {"role": "assistant", "content": "Yes. A cat"}]
    for tokenizer in (model.tokenizer, real):
        prompt = render_conversation(tokenizer, messages)
        assert prompt.text == theirs(tokenizer, messages, continue_final_message=True)
        assert prompt.text.endswith("Yes. A cat")
        assert prompt.text[slice(*prompt.spans["response"])] == "Yes. A cat"
        assert prompt.text[slice(*prompt.spans["instruction"])] == "a"


def test_without_a_template_conversations_are_told_plainly() -> None:
    model = tiny("gpt2", bos=False)
    prompt = model.conversation_prompt([{"role": "system", "content": "Be kind."}, *ASKED])
    assert prompt.text == "Be kind.\n\nUser: Is a cat an animal?\nAssistant: Yes.\nUser: a\nAssistant:"
    assert prompt.text[slice(*prompt.spans["instruction"])] == "a"
    assert prompt.spans["instruction"][0] == prompt.text.rindex("a\nAssistant:")
    going = model.conversation_prompt(ASKED[:2])
    assert going.text == "User: Is a cat an animal?\nAssistant: Yes."
    assert going.text[slice(*going.spans["response"])] == "Yes."
    with pytest.raises(PromptError, match="no place for a 'tool' message"):
        model.conversation_prompt([*ASKED, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            "a part of the type 'image', and only texts",
        ),
        ([{"role": "user", "content": 3}], "content of message 0 is an int"),
        ([{"role": "user", "content": " "}], "last message of the conversation is empty"),
        (
            [*ASKED, {"role": "system", "content": "x"}],
            "ends with a message of user, tool or assistant, not of 'system'",
        ),
        ([{"role": "system", "content": "Be kind."}, *ASKED], "takes no system message"),
    ],
)
def test_what_cannot_be_rendered_is_a_sentence(model: LanguageModel, messages: Any, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        model.generate(messages, max_new_tokens=1)
    with pytest.raises(PromptError, match=sentence):
        model.logits(["plain", messages])


def test_the_texts_of_a_contrast_may_be_conversations(model: LanguageModel) -> None:
    def said(text: str, first: str = "Hello") -> list[dict[str, str]]:
        turns = zip(("user", "assistant", "user"), (first, "Yes.", text), strict=True)
        return [{"role": role, "content": content} for role, content in turns]

    words = ("a cat", "one two", "bread", "the mat", "Rome", "a dog ran")
    positive, negative = [said(f"happy {word}") for word in words], [said(f"sad {word}") for word in words]
    expected = [model.conversation_prompt(one) for one in (*positive, *negative)]
    assert own_prompts(model, positive, negative).prompts == expected
    pairs = own_prompts(model, list(zip(positive, negative, strict=True)))
    assert pairs.prompts == expected
    assert list(pairs.groups) == [*range(6), *range(6)]
    rows = [{"text": one, "label": label} for label, kind in ((1, positive), (0, negative)) for one in kind]
    assert own_prompts(model, rows).prompts == expected
    assert list(own_prompts(model, positive, negative).labels) == [1] * 6 + [0] * 6
    direction = sl.extract(model, positive, negative, layers=1)
    gap = sl.capture(model, expected, "resid_post.1")["resid_post.1"].double()
    difference = gap[:6].mean(0) - gap[6:].mean(0)
    torch.testing.assert_close(direction["resid_post.1"].double(), difference, rtol=1e-4, atol=1e-5)
