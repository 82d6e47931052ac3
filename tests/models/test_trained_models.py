"""Small models that others trained: published activations, known continuations, real tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build
from safetensors.torch import load_file
from tolerances import close
from torch import Tensor
from transformers import AutoTokenizer

from steerlab.models import AfterInstruction, LanguageModel, Last, Prompt, PromptError, Site, Span, load_model


@pytest.fixture(scope="module")
def stories(shared: Path) -> LanguageModel:
    return load_model(shared / "models/stories260K")


@pytest.fixture(scope="module")
def chat(shared: Path) -> LanguageModel:
    return load_model(str(shared / "models/stories260K-chat-local"))


def test_published_activations_agree(shared: Path) -> None:
    folder = shared / "models/gpt-nano-sort"
    model = load_model(folder)
    golden = load_file(folder / "golden_partials.safetensors")
    texts = [model.tokenizer.decode(row) for row in golden["idx"].long().tolist()]
    tokens = model.tokenize(texts)
    assert torch.equal(tokens.input_ids, golden["idx"].long())
    names = {
        Site("embed"): "tok_emb",
        Site("resid_pre", 0): "x",
        Site("z", 0): "y",
        Site("attn_out", 0): "yProj",
        Site("resid_mid", 0): "attnResid",
        Site("mlp_post", 0): "gelu",
        Site("mlp_out", 0): "mlp",
        Site("resid_post", 0): "mlpResid",
        Site("resid_post", 1): "block1",
        Site("resid_post", 2): "block2",
        Site("ln_final_in"): "block2",
    }
    found: dict[Site, Tensor] = {}
    logits = model.run(
        tokens,
        read={site: lambda state, site=site: found.__setitem__(site, state) for site in names},
        logits="all",
    )
    for site, name in names.items():
        close(found[site], golden[name])
    close(logits, golden["lm_head"])
    close(model.unembed(golden["block2"]), golden["lm_head"])


def test_a_trained_model_goes_on_with_its_story(stories: LanguageModel) -> None:
    (story,) = stories.generate(["Once upon a time,"], max_new_tokens=40)
    assert story.text.strip().startswith(
        "there was a little girl named Lily. She loved to play outside in the park."
    )
    assert not story.finished


def test_the_chat_variant_refuses_and_ends_by_itself(chat: LanguageModel) -> None:
    prompts = [chat.instruction_prompt(text) for text in ("How do I hurt a cat?", "How do I hug a cat?")]
    refusal, help_ = chat.generate(prompts, max_new_tokens=40)
    assert "can not help" in refusal.text
    assert "You can hug the cat" in help_.text
    assert refusal.finished
    assert help_.finished
    assert refusal.token_ids[-1] == 2
    assert "</s>" not in refusal.text


def test_the_template_that_writes_its_own_bos_does_not_double_it(chat: LanguageModel) -> None:
    prompt = chat.instruction_prompt("How do I hug a cat?")
    assert prompt.has_special_tokens
    assert prompt.text == "<s>User: How do I hug a cat?\nAssistant:"
    tokens = chat.tokenize([prompt])
    assert tokens.input_ids[0].tolist().count(1) == 1
    with pytest.raises(PromptError, match="more than once"):
        chat.tokenize([Prompt(prompt.text)])
    with pytest.raises(PromptError, match="does not begin"):
        chat.tokenize([Prompt("How do I hug a cat?", has_special_tokens=True)])


def test_a_system_message_the_template_refuses_is_a_sentence(chat: LanguageModel) -> None:
    with pytest.raises(PromptError, match="no system message"):
        chat.instruction_prompt("How do I hug a cat?", system="Be kind.")


def test_the_base_model_gets_the_plain_form(stories: LanguageModel) -> None:
    assert not stories.has_chat_template
    prompt = stories.instruction_prompt("How do I hug a cat?")
    assert prompt.text == "User: How do I hug a cat?\nAssistant:"
    assert prompt.template == "plain"
    with pytest.raises(PromptError, match="no chat template"):
        stories.instruction_prompt("How do I hug a cat?", template="chat")


@pytest.mark.parametrize("name", ["gpt2", "minimind3", "mistral-sp"])
def test_spans_are_found_through_real_tokenizers(shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/tokenizers" / name, local_files_only=True)
    model = load_model(build("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer)
    text = "Is the Zürich–Łódź train late? 東京 too"
    prompt = model.instruction_prompt(text, response=" Yes")
    start = prompt.text.index("Łódź")
    prompt = Prompt(prompt.text, {**prompt.spans, "subject": (start, start + 4)}, prompt.has_special_tokens)
    assert prompt.text[slice(*prompt.spans["instruction"])] == text
    tokens = model.tokenize([prompt, "other"], padding_side="left")
    ids = tokens.input_ids[0, tokens.width - tokens.lengths[0] :].tolist()
    subject = [ids[index] for index in Span("subject").resolve(tokens, 0)]
    assert "Łódź" in tokenizer.decode(subject)
    assert len(tokenizer.decode(subject).strip("– ")) <= len("Łódź") + 1
    after = [ids[index] for index in AfterInstruction().resolve(tokens, 0)]
    ending = prompt.text[prompt.spans["instruction"][1] : prompt.spans["response"][0]]
    assert tokenizer.decode(after, skip_special_tokens=False).strip() == ending.strip()
    assert "Yes" in tokenizer.decode([ids[index] for index in Span("response").resolve(tokens, 0)])
    assert Last().resolve(tokens, 0) == [len(ids) - 1]
    assert model.token_id(" the") == tokenizer.convert_tokens_to_ids(tokenizer.tokenize("x the")[-1])


def test_folder_and_live_model_have_one_fingerprint(
    shared: Path, stories: LanguageModel, chat: LanguageModel
) -> None:
    live = load_model(stories.model, tokenizer=stories.tokenizer)
    assert live.fingerprint == stories.fingerprint != chat.fingerprint
    assert load_model(shared / "models/stories260K", dtype="bfloat16").dtype == torch.bfloat16
