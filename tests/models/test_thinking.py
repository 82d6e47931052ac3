"""Thinking blocks: where the answer begins, and prompts behind which it begins."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CHAT_TEMPLATE, build, tiny, tiny_tokenizer
from studies import planted_models as planted
from transformers import AutoTokenizer

from steerlab.models import Generation, LanguageModel, load_model
from steerlab.models.thinking import answer_in, behind_thinking, closed, thinking_before_answers, thinking_in
from steerlab.readouts.refusals import Judge, refusal_tokens
from steerlab.selection.race import expected
from steerlab.studies import branching_factor, refusal

QWEN = CHAT_TEMPLATE.replace(
    "<|assistant|>\n{% endif %}",
    "<|assistant|>\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
R1 = CHAT_TEMPLATE.replace("<|assistant|>\n{% endif %}", "<|assistant|><think>\n{% endif %}")
EMPTY = "<think>\n\n</think>\n\n"


def thinking(template: str, family: str = "llama") -> LanguageModel:
    tokenizer = copy.copy(tiny_tokenizer(chat=True))
    tokenizer.chat_template = template
    model: LanguageModel = load_model(build(family), tokenizer=tokenizer)
    return model


@pytest.mark.parametrize(
    ("prompt", "written", "answer"),
    [
        ("", "<think>\nHm.\n</think>\n\nNo.", "\n\nNo."),
        ("<think>\n", "Hm.\n</think>\n\nNo.", "\n\nNo."),
        ("<think>\n", "Hm. I cannot", None),
        ("", "  <think>\nHm. I cannot", None),
        (EMPTY, "No.", "No."),
        ("", "No. a < b <i> thinks", "No. a < b <i> thinks"),
        ("", "[THINK]Hm[/THINK]No.", "No."),
        ("", "<seed:think>Hm</seed:think>No.", "No."),
        ("<|START_THINKING|>", "Hm<|END_THINKING|>No.", "No."),
        ("", "<|begin_of_thought|>Hm<|end_of_thought|>No.", "No."),
        ("", "<reasoning>Hm", None),
        ("", "", ""),
    ],
)
def test_the_answer_begins_behind_the_block(prompt: str, written: str, answer: str | None) -> None:
    assert behind_thinking(prompt, written) == answer


@pytest.mark.parametrize(
    ("text", "state", "shut"),
    [
        ("assistant\n<think>\n", "open", "assistant\n<think>\n\n</think>\n\n"),
        ("assistant\n<think>", "open", "assistant\n<think>\n\n</think>\n\n"),
        ("[THINK]", "open", "[THINK]\n\n[/THINK]\n\n"),
        ("<|START_THINKING|>", "open", "<|START_THINKING|>\n\n<|END_THINKING|>\n\n"),
        ("<|begin_of_thought|>\n", "open", "<|begin_of_thought|>\n\n<|end_of_thought|>\n\n"),
        (EMPTY, "closed", EMPTY),
        ("<think>hm</think>Yes.<|user|>\n", "none", "<think>hm</think>Yes.<|user|>\n"),
        ("plain", "none", "plain"),
    ],
)
def test_an_open_block_is_closed(text: str, state: str, shut: str) -> None:
    assert thinking_in(text) == state
    assert closed(text) == shut
    assert thinking_in(closed(text)) in ("closed", "none")


def test_tags_that_are_special_tokens_are_seen() -> None:
    model = tiny("llama")
    tokenizer = model.tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})

    def written(text: str) -> Generation:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return Generation(tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), finished=True)

    prompt = model.instruction_prompt("Hi")
    whole = written("[THINK]a cat[/THINK]Rome" + tokenizer.eos_token)
    assert "THINK" not in whole.text
    answer = answer_in(model, prompt, whole)
    assert answer is not None
    assert answer.strip() == "Rome"
    assert answer_in(model, prompt, written("[THINK]a cat")) is None
    assert answer_in(model, prompt, written("a cat")) == written("a cat").text


def test_qwens_own_variable_closes_the_block() -> None:
    model = thinking(QWEN)
    prompt = model.instruction_prompt("Hi", think=False)
    asked = [{"role": "user", "content": "Hi"}]
    theirs = model.tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt.text == theirs
    assert prompt.text.endswith(EMPTY)
    assert prompt.text[slice(*prompt.spans["instruction"])] == "Hi"
    assert model.conversation_prompt(asked, think=False) == prompt
    assert not model.instruction_prompt("Hi").text.endswith(EMPTY)
    assert model.instruction_prompt("Hi", response="(A)").text == prompt.text + "(A)"
    model.chat_options["enable_thinking"] = True  # the user says so
    assert not model.instruction_prompt("Hi", think=False).text.endswith(EMPTY)


def test_a_block_that_the_template_opens_is_found_by_rendering() -> None:
    model = thinking(R1)
    prompt = model.instruction_prompt("Hi", think=False)
    assert model.instruction_prompt("Hi").text + "\n</think>\n\n" == prompt.text
    assert prompt.text[slice(*prompt.spans["instruction"])] == "Hi"
    assert model.conversation_prompt([("user", "Hi")], think=False) == prompt
    assert model.conversation_prompt([("user", "Hi")]).text == model.instruction_prompt("Hi").text
    assert thinking_before_answers(model) == "closed"
    assert thinking_before_answers(tiny("llama", chat=True)) == "none"
    found = branching_factor(model, ["Hi", "a cat"], samples=2, max_new_tokens=2)
    assert found.thinking == "closed"
    assert branching_factor(model, ["Hi"], template="plain", samples=2, max_new_tokens=2).thinking == "none"


def test_a_real_template(shared: Path) -> None:
    """minimind closes its block unless `open_thinking` is set."""
    model = tiny("llama", vocab_size=6400)
    model = load_model(
        model.model, tokenizer=AutoTokenizer.from_pretrained(shared / "models/tokenizers/minimind3")
    )
    plain = model.instruction_prompt("Hi")
    assert plain.text.endswith(EMPTY)
    assert thinking_before_answers(model) == "closed"
    opened = model.instruction_prompt("Hi", open_thinking=True)
    assert thinking_in(opened.text) == "open"
    assert model.instruction_prompt("Hi", think=False, open_thinking=True) == plain
    tokens = refusal_tokens(model, plain)
    assert {"I", "No", "Sorry"} & set(tokens.values())


class _Says:
    """A model whose answers are given, with the rest of a real one."""

    def __init__(self, model: LanguageModel, texts: list[str]) -> None:
        self._model, self._texts = model, texts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, prompts: Any, **options: Any) -> list[Generation]:
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in self._texts]
        texts = [self.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids]
        for step in range(options["max_new_tokens"]):
            options["watch"](list(range(len(ids))), step, torch.zeros(len(ids), self.vocab_size))
        return [Generation(text, tuple(row), True) for text, row in zip(texts, ids, strict=True)]


def test_refusals_are_judged_behind_the_block_and_unfinished_ones_are_neither() -> None:
    model = tiny("llama", bos=False)
    texts = [
        "<think>I cannot say no</think>Sure",
        "<think>Sure</think>I cannot do that",
        "<think>I cannot do that",
        "I cannot do that",
    ]
    prompts = [model.instruction_prompt(f"Question {n}") for n in range(4)]
    heard: list[str] = []

    def judge(prompt: str, answer: str) -> bool:
        heard.append(answer.strip())
        return "cannot" in answer

    for decides in (None, judge):
        found = Judge(_Says(model, texts), (), float("inf"), "any", 12, decides).verdicts(prompts)  # type: ignore[arg-type]
        assert found.refused.tolist() == found.phrases.tolist() == [False, True, False, True]
        assert found.unfinished.tolist() == [False, False, True, False]
        assert found.not_answered.tolist() == [False, True, True, True]
        assert found.coherent_refusal.tolist() == [False, True, False, True]
        assert expected(found, by_tokens=False, broken=True).tolist() == [False, True, True, True]
    assert heard == ["Sure", "I cannot do that", "I cannot do that"]


@pytest.mark.usefixtures("smaller_studies")
def test_the_refusal_study_closes_the_block_and_says_so() -> None:
    """The planted post-trained model answers behind its template's last token, so the block is put before that one."""
    base, post = planted.planted(refuses=False), planted.planted(refuses=True, chat=True, seed=1)
    result = refusal((base, post), planted.requests(), plain_text=())
    assert "thinking" not in result.setting.templates["post"]
    assert all(one.unfinished is None for one in result.outcomes)
    post.tokenizer = copy.copy(post.tokenizer)
    post.tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    text = post.instruction_prompt("How do I help1 a thing1 ?", think=False).text
    assert text.endswith(EMPTY)
    said = refusal((base, post), planted.requests(), plain_text=())
    assert said.setting.templates["post"] == "its chat template, its thinking block closed"


def test_the_first_token_is_read_behind_the_closed_block() -> None:
    model = thinking(R1)
    prompt = model.instruction_prompt("Hi", think=False)
    by_hand = model.instruction_prompt("Hi").text.removesuffix("\n") + "\n\n</think>\n\n"
    ids = model.tokenizer(by_hand, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model.model(ids).logits[0, -1, : model.vocab_size]
    np.testing.assert_allclose(model.logits(prompt)[0], logits, rtol=1e-4, atol=1e-5)
