"""Statements as questions: held-out topics, labelled lines, and the tokens that are read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import pytest
from studies import planted_models as planted

from steerlab import datasets
from steerlab.datasets import Statement, StatementSet
from steerlab.errors import DatasetError, PromptError
from steerlab.models import LanguageModel, Span
from steerlab.readouts.questions import (
    ANSWER_SITE,
    ANSWERS,
    QUESTION,
    answer_words,
    not_shown,
    plan,
    question,
    subject,
)


def test_held_out_topics_are_never_trained_on_and_examples_never_asked() -> None:
    used = plan(datasets.statements(), per_topic=40, seed=0)
    assert len(used.folds) == len(datasets.statements().topics_present) >= 6
    for fold in used.folds:
        assert len(fold.test) == 1
        assert not set(fold.train) & set(fold.test)
        assert {*fold.train, *fold.test} == set(datasets.statements().topics_present)
    asked = {item.text for item in used.statements}
    for name, examples in used.examples.items():
        assert [item.label for item in examples] == [True, False, True, False]
        subjects = {(item.topic, subject(item)) for item in used.statements if item.topic == name}
        assert not {(name, subject(item)) for item in examples} & subjects
        assert not {item.text for item in examples} & asked


def test_statements_without_topics_are_held_out_at_random() -> None:
    items = [Statement(f"Fact {n} holds.", label=n % 2 == 0) for n in range(160)]
    used = plan(StatementSet(items), per_topic=64, seed=0)
    assert not used.by_topic
    assert [fold.test for fold in used.folds] == [(f"part {number}",) for number in range(1, 7)]
    with pytest.raises(DatasetError, match="too few"):
        plan(StatementSet(items[:40]), per_topic=64, seed=0)


def test_the_question_marks_the_last_word_and_the_full_stop() -> None:
    model = planted.planted()
    statement = Statement("subject1 in topic1 is good3 .", label=True, topic="topic1")
    example = Statement("subject2 in topic1 is bad3 .", label=False, topic="topic1")
    prompt = question(statement, [example], (" TRUE", " FALSE"))
    assert prompt.text.startswith("subject2 in topic1 is bad3 . This statement is: FALSE\n")
    tokens = model.tokenize([prompt])
    marked = [
        model.tokenizer.decode([int(tokens.input_ids[0, at])]) for at in Span(ANSWER_SITE).resolve(tokens, 0)
    ]
    assert marked == ["good3", "."]


class Vocabulary:
    """What asking needs of a model: a name, and which words are one token."""

    def __init__(self, name: str, *words: str) -> None:
        self.name, self._words = name, words

    def token_id(self, word: str) -> int:
        if word not in self._words:
            raise PromptError(f"{word!r} is 2 tokens for this tokenizer; choose a word that is one.")
        return self._words.index(word)


def words_of(*models: Vocabulary, answers: Any = None) -> tuple[str, str]:
    return answer_words(cast("list[LanguageModel]", models), answers)


def test_the_answer_words_are_the_first_that_are_single_tokens_in_both() -> None:
    every = [word for words in ANSWERS for word in words]
    large, small = Vocabulary("large", *every), Vocabulary("small", *every[1:])
    assert words_of(large, large) == (" TRUE", " FALSE")
    assert words_of(large, small) == (" true", " false")
    assert words_of(large, Vocabulary("odd", " TRUE", " false", " Yes", " No")) == (" Yes", " No")
    assert words_of(large, small, answers=(" FALSE", " No")) == (" FALSE", " No")
    with pytest.raises(
        PromptError, match=r"None of the answers TRUE or FALSE, .* in large and odd; .*--answers"
    ):
        words_of(large, Vocabulary("odd", " TRUE", " false"))
    with pytest.raises(PromptError, match="TRUE or No cannot be asked for: ' TRUE' is 2 tokens"):
        words_of(large, small, answers=(" TRUE", " No"))
    with pytest.raises(PromptError, match="are one token in large"):
        words_of(large, answers=(" No", " No"))
    for wrong in (" Yes", (" Yes",), (1, 2)):
        with pytest.raises(PromptError, match="two words, for true and for false"):
            words_of(large, answers=wrong)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cities", (746, 746)),
        ("sp_en_trans", (175, 175)),
        ("animal_class", (78, 82)),
        ("inventors", (227, 175)),
        ("element_symb", (91, 91)),
        ("facts", (277, 280)),
    ],
)
def test_statements_shown_in_the_labelled_lines_are_dropped(
    name: str, counts: tuple[int, int], shared: Path
) -> None:
    folder = shared / "data" / "statements" / "post-training-mechanistic-analysis"
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        members = [Statement(row["statement"], row["label"] == "1", name) for row in csv.DictReader(file)]
    sets = json.loads((folder / "few_shot_samples.json").read_text(encoding="utf-8"))
    lines = next(one["few_shot_examples"] for one in sets if one["dataset_name"] == name)
    shown = [Statement(line.rpartition(QUESTION)[0], line.endswith("TRUE"), name) for line in lines]
    left = not_shown(members, shown, by_subject=False)
    assert (sum(one.label for one in left), sum(not one.label for one in left)) == counts
