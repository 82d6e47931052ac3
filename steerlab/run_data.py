"""What a run reads: the packaged prompts or the user's files in their place, and what its manifest says of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from steerlab.errors import DatasetError, PromptError

if TYPE_CHECKING:
    from steerlab.datasets import StatementPair, StatementSet, StudyData, Task
    from steerlab.models import LanguageModel

Facts = dict[str, str | int]
PACKAGED_FOR_ZOO = "packaged, the topics that the bundled models were trained on"


def read_data(
    statements: str | Path | None = None,
    requests: str | Path | None = None,
    questions: str | Path | None = None,
    *,
    pairs: str | Path | None = None,
    template: str | None = None,
    prompts: str | Path | None = None,
) -> StudyData:
    """The packaged prompts, or those of the user's files in their place.

    Args:
        statements: a file or folder (`datasets.read_statements`).
        requests: a file (`datasets.read_requests`).
        questions: a file of multiple choice (`datasets.read_multiple_choice`).
        pairs: a file of pairs of statements in place of statements (`datasets.read_pairs`).
        template: where subject and object stand in statements or pairs.
        prompts: a file of open prompts (`datasets.read_prompts`).

    Raises:
        DatasetError: a bad file, or statements as well as pairs.
    """
    from steerlab import datasets

    if pairs and statements:
        raise DatasetError(
            "Give a file of statements or one of pairs, not both: pairs hold their statements."
        )
    asked: StatementSet | list[StatementPair]
    if pairs:
        asked = datasets.read_pairs(pairs, template=template)
    else:
        asked = datasets.read_statements(statements) if statements else datasets.statements()
        asked = datasets.with_template(asked, template) if template else asked
    given = {
        "statements": pairs or statements,
        "requests": requests,
        "questions": questions,
        "open_prompts": prompts,
    }
    return datasets.StudyData(
        statements=asked,
        requests=datasets.read_requests(requests) if requests else datasets.requests(),
        questions=datasets.read_multiple_choice(questions) if questions else None,
        open_prompts=datasets.read_prompts(prompts) if prompts else datasets.open_prompts(),
        sources={name: str(source) for name, source in given.items() if source},
    )


def on_topics(data: StudyData, topics: Collection[str]) -> StudyData:
    """The same with the packaged statements of these topics only; without topics, or with own statements, as it is."""
    from steerlab.datasets import StatementSet
    from steerlab.datasets.study_data import PACKAGED

    if not topics or data.source("statements") != PACKAGED:
        return data
    return replace(
        data,
        statements=StatementSet(item for item in data.labelled_statements if item.topic in topics),
        sources={**data.sources, "statements": PACKAGED_FOR_ZOO},
    )


def require_readable(data: StudyData, models: Iterable[LanguageModel]) -> None:
    """Raise `DatasetError` for a prompt of the user's own files that one of the models cannot read."""
    from steerlab.datasets.study_data import PACKAGED

    requests = data.requests
    kinds: list[tuple[str, str, Sequence[str]]] = [
        ("statements", "statements", data.labelled_statements.texts),
        ("requests", f"{requests.positive_name} requests", requests.positive),
        ("requests", f"{requests.negative_name} requests", requests.negative),
    ]
    for (name, kind, texts), model in itertools.product(kinds, models):
        if data.source(name) in {PACKAGED, PACKAGED_FOR_ZOO}:
            continue
        try:
            model.tokenize(
                [model.instruction_prompt(text, think=False) for text in texts]
                if name == "requests"
                else texts
            )
        except PromptError as error:
            raise DatasetError(
                f"The {kind} of {data.source(name)}, counted from 0, cannot be given to {model.name}. {error}"
            ) from error


def text_facts(texts: Sequence[str], source: str, *, n: int | None = None, example: int = 0) -> Facts:
    """What a manifest says of texts: their number (or `n`), hash in order, source and one of them."""
    hash_ = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    return {"n": len(texts) if n is None else n, "hash": hash_, "source": source, "example": texts[example]}


def task_facts(task: Task, source: str) -> Facts:
    """What a manifest says of a task."""
    return text_facts([*task.locked, *task.unlocked, *task.answers], source, n=len(task))


def data_facts(data: StudyData, reads: Collection[str] | None = None) -> dict[str, Facts]:
    """What a manifest says of what studies read; only of the fields that a study `reads`, where they are given."""
    from steerlab.datasets.multiple_choice import questions_hash

    requests = data.requests
    facts = {
        "statements": _statement_facts(data),
        # The example is a harmless one: harmful requests are read, never shown.
        "requests": {
            **text_facts([*requests.negative, *requests.positive], data.source("requests")),
            "hash": requests.hash,
        },
        "open_prompts": text_facts(data.open_prompts, data.source("open_prompts")),
        "plain_text": text_facts(data.plain_text, data.source("plain_text")),
    }
    if data.questions:
        asked = text_facts([question.text for question in data.questions], data.source("questions"))
        facts["questions"] = {**asked, "hash": questions_hash(data.questions)}
    return {name: said for name, said in facts.items() if reads is None or name in reads}


def _statement_facts(data: StudyData) -> Facts:
    from steerlab.datasets import StatementSet

    asked, source = data.statements, data.source("statements")
    if isinstance(asked, StatementSet):
        return {**text_facts(asked.texts, source), "hash": asked.hash}
    return text_facts([one.text for pair in asked for one in (pair.true, pair.false)], source, n=len(asked))
