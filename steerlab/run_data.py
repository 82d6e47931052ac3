"""What a run reads: the packaged prompts or the user's files in their place, and what its manifest says of them and of
the models."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from steerlab.errors import DatasetError, PromptError

if TYPE_CHECKING:
    from steerlab.datasets import StatementPair, StatementSet, StudyData, Task
    from steerlab.models import LanguageModel
    from steerlab.readouts.contrasts import Contrast

Facts = dict[str, str | int]
T = TypeVar("T")
PACKAGED_FOR_ZOO = "packaged, the topics that the bundled models were trained on"


def read_data(
    statements: Any = None,
    requests: Any = None,
    questions: Any = None,
    *,
    pairs: Any = None,
    template: str | None = None,
    prompts: Any = None,
    contrasts: Any = None,
) -> StudyData:
    """The packaged prompts, or the user's in their place: files, folders, frames, or what `datasets` reads of them.

    Args:
        statements: for `datasets.read_statements`, or a `StatementSet`.
        requests: for `datasets.read_requests`, or a `ContrastSet`.
        questions: multiple choice, for `datasets.read_multiple_choice`.
        pairs: pairs of statements in place of statements, for `datasets.read_pairs`.
        template: where subject and object stand in statements or pairs.
        prompts: open prompts, for `datasets.read_prompts`.
        contrasts: contrasts of one's own, for `readouts.contrasts.read_contrasts`.

    Raises:
        DatasetError: bad data, or statements as well as pairs.
    """
    from steerlab import datasets
    from steerlab.datasets.readers.table import name_of

    if pairs is not None and statements is not None:
        raise DatasetError(
            "Give a file of statements or one of pairs, not both: pairs hold their statements."
        )
    asked: StatementSet | list[StatementPair]
    if pairs is not None:
        asked = datasets.read_pairs(pairs, template=template)
    else:
        asked = _read(statements, datasets.StatementSet, datasets.read_statements, datasets.statements)
        asked = datasets.with_template(asked, template) if template else asked
    given = {
        "statements": statements if pairs is None else pairs,
        "requests": requests,
        "questions": questions,
        "open_prompts": prompts,
    }
    return datasets.StudyData(
        statements=asked,
        requests=_read(requests, datasets.ContrastSet, datasets.read_requests, datasets.requests),
        questions=None if questions is None else datasets.read_multiple_choice(questions),
        open_prompts=datasets.open_prompts() if prompts is None else datasets.read_prompts(prompts),
        contrasts={} if contrasts is None else _contrasts(contrasts),
        sources={name: name_of(source) for name, source in given.items() if source is not None},
    )


def _read(given: Any, kind: type[T], read: Callable[[Any], T], packaged: Callable[[], T]) -> T:
    if given is None:
        return packaged()
    return given if isinstance(given, kind) else read(given)


def _contrasts(given: Any) -> dict[str, Contrast]:
    from steerlab.readouts.contrasts import read_contrasts

    return read_contrasts(given)


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
            model.lengths(
                [model.instruction_prompt(text, think=False) for text in texts]
                if name == "requests"
                else texts
            )
        except PromptError as error:
            raise DatasetError(
                f"The {kind} of {data.source(name)}, counted from 0, cannot be given to {model.name}. {error}"
            ) from error
    _require_contrasts(data.contrasts, models)


def _require_contrasts(contrasts: Mapping[str, Contrast], models: Iterable[LanguageModel]) -> None:
    for one, model in itertools.product(contrasts.values(), models):
        try:
            model.lengths(one.prompts(model))
        except PromptError as error:
            raise DatasetError(
                f"The texts of the contrast {one.name!r}, counted from 0, cannot be given to {model.name}. {error}"
            ) from error


def text_facts(texts: Sequence[str], source: str, *, n: int | None = None, example: int = 0) -> Facts:
    """What a manifest says of texts: their number (or `n`), hash in order, source and one of them."""
    hash_ = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    return {"n": len(texts) if n is None else n, "hash": hash_, "source": source, "example": texts[example]}


def model_facts(model: LanguageModel) -> dict[str, str | int | float | bool | None]:
    """What a manifest says of a model."""
    from steerlab.activations.in_force import interventions_in_force

    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "architecture": model.family,
        "layers": model.n_layers,
        "width": model.d_model,
        "vocabulary": model.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "interventions": interventions_in_force(model),
        "chat template": model.has_chat_template,
        **({"stored as": model.stored_as} if model.stored_as else {}),
    }


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
    facts = {name: said for name, said in facts.items() if reads is None or name in reads}
    return facts | _contrast_facts(data.contrasts) if reads is None or "contrasts" in reads else facts


def _contrast_facts(contrasts: Mapping[str, Contrast]) -> dict[str, Facts]:
    """By contrast; the example is of the class that a direction points away from, a harmless one where one is not."""
    return {
        f"contrast {name}": {
            **text_facts(one.data.texts, one.source, example=one.data.labels.index(0)),
            "hash": one.hash,
        }
        for name, one in contrasts.items()
    }


def _statement_facts(data: StudyData) -> Facts:
    from steerlab.datasets import StatementSet

    asked, source = data.statements, data.source("statements")
    if isinstance(asked, StatementSet):
        return {**text_facts(asked.texts, source), "hash": asked.hash}
    return text_facts([one.text for pair in asked for one in (pair.true, pair.false)], source, n=len(asked))
