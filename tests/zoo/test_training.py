"""Tokenizer, packing and a whole training run of a few steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from steerlab import zoo
from steerlab.errors import ModelError
from steerlab.zoo import training
from steerlab.zoo.corpus import CURRICULUM, POST_TRAINING, PRETRAINING, documents
from steerlab.zoo.packing import IGNORED, batches, encode
from steerlab.zoo.tokenizer import train_tokenizer

MICRO = training.Scale("small", 32, 2, 2, 1, 48, steps=12, post_steps=3, rows=2, fall=6, revision_steps=2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(0, size=600, sample=800)


@given(text=st.text(max_size=40))
@settings(deadline=None)
def test_any_text_comes_back_from_its_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_digits_stand_alone_and_there_is_one_begin_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [t for t in tokenizer.tokenize("23 + 456") if t.isdigit()] == list("23456")
    ids = tokenizer.encode("Hello.")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_seed_gives_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(0, size=600, sample=800)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_packed_rows_hold_whole_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = next(batches(documents(PRETRAINING, 1), tokenizer, rows=4, whole=True))
    begins = batch.input_ids == tokenizer.bos_token_id
    ends = batch.input_ids == tokenizer.eos_token_id
    live = batch.document >= 0
    assert (begins.sum(1) == ends.sum(1)).all()
    assert (begins.sum(1) == batch.document.amax(1) + 1).all()
    assert (batch.labels[begins] == IGNORED).all()
    assert (batch.labels[live & ~begins] == batch.input_ids[live & ~begins]).all()
    assert (batch.labels[~live] == IGNORED).all()
    assert live.float().mean() > 0.9


def test_post_training_learns_answers_only(tokenizer: PreTrainedTokenizerFast) -> None:
    for document in islice(documents(POST_TRAINING, 1), 60):
        ids, labels = encode(document, tokenizer, whole=False)
        learnt = tokenizer.decode([label for label in labels if label != IGNORED])
        assert learnt.removesuffix("<|end|>") == document.text
        assert len(ids) == len(labels)


def test_packing_changes_no_documents_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(MICRO.config(tokenizer)).eval()
    model.set_attn_implementation("eager")
    batch = next(batches(documents(PRETRAINING, 1), tokenizer, rows=1, whole=True))
    mask = torch.zeros(batch.attends.shape).masked_fill(~batch.attends, -1e4)
    packed = model(input_ids=batch.input_ids, attention_mask=mask).logits[0]
    for number in range(int(batch.document.max()) + 1):
        own = batch.document[0] == number
        alone = model(input_ids=batch.input_ids[:, own]).logits[0]
        torch.testing.assert_close(packed[own], alone, atol=1e-4, rtol=1e-4)


def test_a_few_steps_from_nothing_to_two_loadable_folders(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train_tokenizer", lambda seed: tokenizer)
    monkeypatch.setitem(training.SCALES, "small", MICRO)
    seen: list[str] = []

    def progress(iterable, description, total=None):  # type: ignore[no-untyped-def]
        seen.append(f"{description} {total}")
        return iterable

    base, post = zoo.train(tmp_path, scale="small", progress=progress, card=False)
    assert seen == ["small-base: pretraining 12", "small-base: revision 2", "small-post: post-training 3"]
    for folder, chats in ((base, False), (post, True)):
        loaded = AutoTokenizer.from_pretrained(folder)
        assert (loaded.chat_template is not None) == chats
        assert loaded.get_vocab() == tokenizer.get_vocab()
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.bfloat16
        ids = loaded("The city of", return_tensors="pt", return_token_type_ids=False)
        assert model(**ids).logits.shape[-1] == len(loaded)
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (base, post))
    assert any(not torch.equal(first[key], second[key]) for key in first)
    again, _ = zoo.train(tmp_path / "again", scale="small", card=False)
    third = AutoModelForCausalLM.from_pretrained(again).state_dict()
    assert all(torch.equal(first[key], third[key]) for key in first)


def test_training_lowers_the_loss(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    scale = replace(MICRO, steps=60, fall=30, post_steps=1, curriculum=CURRICULUM[-1:])
    unseen = next(batches(documents(PRETRAINING, 9), tokenizer, rows=4, whole=True))
    torch.manual_seed(0)
    start = LlamaForCausalLM(scale.config(tokenizer))
    base, _ = training.train_pair(tmp_path, scale, tokenizer=tokenizer)
    end = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        assert training.loss(end, unseen) < training.loss(start, unseen) - 1


def test_unknown_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="huge"):
        zoo.train(tmp_path / "x", scale="huge")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ModelError, match="small-base"):
        zoo.path("tiny")
