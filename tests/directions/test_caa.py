"""Contrastive activation addition: the letter's token, equal prompts, and letters that cannot leak in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from steerlab.activations import Moments, capture
from steerlab.datasets import ChoicePair
from steerlab.directions import Direction, caa, caa_direction, choice_prompts, equal_norms, swap_choices
from steerlab.errors import DatasetError, DirectionError, PromptError
from steerlab.models import LanguageModel, Prompt, Site, load_model

SITE = Site("resid_post", 1)
LETTERS = "ABCDEFGH"

# How the answers of the published survival-instinct set are lettered: (matching, other) → questions.
SURVIVAL = {
    ("A", "B"): 558,
    ("B", "A"): 257,
    ("C", "A"): 60,
    ("D", "A"): 15,
    ("E", "A"): 8,
    ("G", "A"): 3,
    ("F", "A"): 1,
    ("H", "A"): 1,
}


def pair(number: int, letter: str = "A", other: str = "B") -> ChoicePair:
    choices = "\n".join(
        f" ({x}) Answer {x.lower()}{number}" for x in LETTERS[: max(map(LETTERS.index, letter + other)) + 1]
    )
    return ChoicePair(f"Is {number} a cat?\n\nChoices:\n{choices}", f"({letter})", f"({other})")


def survival() -> list[ChoicePair]:
    lettered = [letters for letters, n in SURVIVAL.items() for _ in range(n)]
    return [pair(i, *letters) for i, letters in enumerate(lettered)]


# -------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("family", "chat", "template"),
    [("llama", True, "auto"), ("llama", True, "plain"), ("gpt2", False, "auto"), ("qwen2", True, "chat")],
)
def test_the_letter_is_found_in_any_template(family: str, chat: bool, template: Any) -> None:
    model = tiny(family, chat=chat, max_position_embeddings=256)
    matching, others = choice_prompts(model, [pair(1), pair(2, "B", "A")], template=template)
    tokens = model.tokenize([*matching, *others])
    for row, letter in enumerate("ABBA"):
        prompt = tokens.prompts[row]
        assert prompt.text.endswith(f"({letter})")
        start, end = prompt.spans["letter"]
        assert prompt.text[start:end] == letter
        (at,) = caa.LETTER.resolve(tokens, row)
        assert letter in model.tokenizer.decode(tokens.input_ids[row, tokens.column(row, at)])
    assert matching[0].template == ("chat" if chat and template != "plain" else "plain")
    if matching[0].template == "plain":
        assert matching[0].text == f"User: {pair(1).question}\nAssistant: (A)"


def merging(*words: str) -> LanguageModel:
    """A model whose tokenizer knows single characters and these words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return load_model(build("llama", max_position_embeddings=256), tokenizer=tokenizer)


def test_a_merged_letter_is_read_where_it_is() -> None:
    """One token holds bracket and letter, so "the token before the last" would be "s" of the question or "("."""
    model = merging("(A)", "(B)")
    matching, others = choice_prompts(model, [pair(1)])
    states = capture(model, [*matching, *others], SITE, positions=caa.LETTER)
    assert states.position.tolist() == [length - 1 for length in model.tokenize([*matching, *others]).lengths]
    made = caa_direction(model, [pair(1)], SITE, balance="none")
    torch.testing.assert_close(made[SITE], states[SITE][0] - states[SITE][1])


def test_answers_of_different_lengths_are_refused() -> None:
    with pytest.raises(
        PromptError, match=r"Question 0 has \d+ tokens with the answer \(A\) and \d+ with \(B\)"
    ):
        choice_prompts(merging("(A)"), [pair(1)])


# ------------------------------------------------------------------------------------------------------- swapping


def test_swapping_exchanges_the_texts_of_the_two_choices() -> None:
    question = "Which?\n\nChoices:\n (A) One\nmore line\n (B) Two \n (C) Three"
    made = swap_choices(ChoicePair(question, "(C)", "(A)"))
    assert made.question == "Which?\n\nChoices:\n (A) Three\n (B) Two \n (C) One\nmore line"
    assert (made.letter, made.other_letter) == ("A", "C")
    assert swap_choices(made) == ChoicePair(question, "(C)", "(A)")


def test_choices_that_are_not_listed_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"does not list \(A\) and \(B\) once each"):
        swap_choices(ChoicePair("Yes (A) or no (B)?", "(A)", "(B)"))


def test_every_published_question_can_be_swapped(shared: Path) -> None:
    files = sorted((shared / "data/contrast_pairs/CAA/datasets").glob("*/*/*_dataset.json")) + sorted(
        (shared / "data/contrast_pairs/CAA/datasets").glob("*/*/*_ab.json")
    )
    assert len(files) == 14
    for file in files:
        for item in json.loads(file.read_text("utf-8")):
            given = ChoicePair(
                item["question"],
                item["answer_matching_behavior"].strip(),
                item["answer_not_matching_behavior"].strip(),
            )
            turned = swap_choices(given)
            assert turned != given
            assert sorted(turned.question) == sorted(given.question)
            assert swap_choices(turned) == given


def test_the_published_letters_are_as_unbalanced_as_here(shared: Path) -> None:
    file = shared / "data/contrast_pairs/CAA/datasets/generate/survival-instinct/generate_dataset.json"
    items = json.loads(file.read_text("utf-8"))
    found = Counter((x["answer_matching_behavior"][1], x["answer_not_matching_behavior"][1]) for x in items)
    assert found == SURVIVAL


# -------------------------------------------------------------------------------------------------- planted letters


class PlantedLetters:
    """Stands in for reading a model: a behaviour, a letter, and each question's own state, added up."""

    def __init__(self, width: int = 32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.behaviour = torch.randn(width, generator=generator)
        self.letters = {letter: 5.0 * torch.randn(width, generator=generator) for letter in LETTERS}
        self.noise = generator

    def capture(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sites: Any,
        *,
        into: Moments,
        labels: Any,
        **_: Any,
    ) -> Moments:
        rows: list[Tensor] = []
        for prompt, (kind, matching, other) in zip(prompts, labels, strict=True):
            letter = prompt.text[slice(*prompt.spans["letter"])]
            assert letter == (matching if kind else other)
            own = torch.randn(len(self.behaviour), generator=self.noise)
            rows.append((self.behaviour if kind else -self.behaviour) + self.letters[letter] + 0.1 * own)
        into.update({SITE: torch.stack(rows)}, labels)
        return into

    @property
    def letter_axis(self) -> Tensor:
        axis = self.letters["A"] - self.letters["B"]
        return axis / axis.norm()


@pytest.mark.parametrize(("balance", "used"), [("swap", 2 * 903), ("weights", 815), ("none", 903)])
def test_an_unbalanced_letter_cannot_enter_the_direction(
    balance: Any, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, model = PlantedLetters(), tiny("llama", chat=True, max_position_embeddings=512)
    monkeypatch.setattr(caa, "capture", planted.capture)
    made = caa_direction(model, survival(), SITE, balance=balance)
    assert made.parameters["used"] == used
    cosine = float(torch.cosine_similarity(made[SITE], planted.behaviour, dim=0))
    leaked = abs(float((made[SITE] - 2 * planted.behaviour) @ planted.letter_axis))
    gap = float((planted.letters["A"] - planted.letters["B"]).norm())
    if balance == "none":
        assert cosine < 0.8
        assert (
            leaked > 0.25 * gap
        )  # (558 − 257) / 903 of the way from B to A, and more from the other letters
    else:
        assert cosine > 0.999
        assert leaked < 1e-3 * gap
    known = made.statistics[SITE]
    assert made.class_gap[SITE] == pytest.approx(float(made[SITE].norm()), rel=1e-5)
    assert (known.positive, known.negative) == ("1", "0")


def test_at_the_embedding_only_the_letter_differs_and_nothing_is_left(tiny_llama: LanguageModel) -> None:
    questions = [pair(0), pair(1), pair(2, "B", "A")]
    assert caa_direction(tiny_llama, questions, Site("embed"), balance="none")[Site("embed")].norm() > 0.1
    for balance in ("swap", "weights"):
        with pytest.raises(DirectionError, match="is zero and points nowhere"):
            caa_direction(tiny_llama, questions, Site("embed"), balance=balance)  # type: ignore[arg-type]


def test_the_plain_direction_is_the_mean_difference_at_the_letters(tiny_gpt2: LanguageModel) -> None:
    questions = [pair(0), pair(1, "B", "A"), pair(2)]
    model = tiny("gpt2", bos=False, n_positions=256)
    sites = model.sites("resid_post")
    made = caa_direction(model, questions, sites, balance="none", token_budget=100)
    matching, others = choice_prompts(model, questions)
    high, low = (capture(model, prompts, sites, positions=caa.LETTER) for prompts in (matching, others))
    for site in sites:
        np.testing.assert_allclose(made[site], (high[site] - low[site]).mean(0), atol=1e-5)
    assert made.position == "Span(name='letter')"
    assert made.parameters == {"balance": "none", "template": "plain", "asked": 3, "used": 3}


def test_lengths_are_made_equal_across_behaviours(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    sites = tiny_llama.sites("resid_post")
    one = caa_direction(tiny_llama, [pair(0), pair(1)], sites)
    two = 3.0 * caa_direction(tiny_llama, [pair(5), pair(6, "B", "A")], sites)
    made = equal_norms({"one": one, "two": two})
    for site in sites:
        expected = (float(one[site].norm()) + float(two[site].norm())) / 2
        for name, before in (("one", one), ("two", two)):
            after = made[name]
            assert float(after[site].norm()) == pytest.approx(expected, rel=1e-5)
            assert float(torch.cosine_similarity(after[site], before[site], dim=0)) == pytest.approx(
                1.0, abs=1e-6
            )
            assert after.class_gap[site] == pytest.approx(before.class_gap[site])
    made["one"].save(tmp_path / "one.safetensors")
    assert Direction.load(tmp_path / "one.safetensors").hash == made["one"].hash
    with pytest.raises(DirectionError, match="different sites"):
        equal_norms({"one": one, "two": two.at(sites[0])})


@pytest.mark.parametrize(
    ("questions", "balance", "sentence"),
    [
        ([], "swap", "There are no questions"),
        ([pair(0)], "weights", "use balance='swap'"),
        ([pair(0)], "drop", "not 'drop'"),
    ],
)
def test_misuse_is_named(tiny_llama: LanguageModel, questions: Any, balance: Any, sentence: str) -> None:
    with pytest.raises((DirectionError, PromptError), match=sentence):
        caa_direction(tiny_llama, questions, SITE, balance=balance)
