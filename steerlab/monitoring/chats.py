"""Chats that were written already: what each answer is a reply to, and the probe's score of each of its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.activations import capture
from steerlab.datasets.readers.table import read_table
from steerlab.errors import SteeringError, kind_of
from steerlab.models import LanguageModel, Prompt, Site, Span
from steerlab.models.messages import is_conversation
from steerlab.models.thinking import behind_thinking

#: A chat: a conversation that an assistant ends, a question with its answer, or a row {"prompt": …, "answer": …}.
Chat: TypeAlias = "Sequence[Mapping[str, Any]] | tuple[str, str] | Mapping[str, Any] | Prompt"
_AT_ONCE = 128  # answers whose states are in memory at a time


@dataclass(frozen=True)
class Answer:
    """One answer of an assistant: the prompt that ends with it as the span "response", and its conversation."""

    prompt: Prompt
    text: str
    conversation: int


@dataclass(frozen=True, eq=False)
class ChatScores:
    """Scores of the answers' tokens by several vectors, and each answer's mean state where it was asked for.

    Attributes:
        values: x·v of each token, [token, vector].
        answer: the answer of each token, counted from 0.
        conversation: of each answer.
        means: [answer, width], of each answer's tokens.
        dataset_hash: of the chats.
    """

    values: Float[Tensor, "token vector"]
    answer: Int[Tensor, " token"]
    conversation: Int[Tensor, " answer"]
    means: Float[Tensor, "answer width"]
    dataset_hash: str


def answers_of(model: LanguageModel, chats: Iterable[Chat], what: str = "without") -> list[Answer]:
    """Every answer of the assistant in these chats.

    Raises:
        SteeringError: no chats, or one that ends with no answer; `what` names the argument.
        PromptError: a conversation that the template refuses.
    """
    if isinstance(chats, str | Mapping | Prompt):
        raise SteeringError(
            f"{what} is a list of chats, not {kind_of(chats)}; give several, each with an answer."
        )
    found = [answer for number, chat in enumerate(chats) for answer in _answers(model, chat, number, what)]
    if not found:
        raise SteeringError(
            f"There are no chats in {what}; give pairs (question, answer) or conversations that an assistant ends."
        )
    return found


def read_chats(given: Any) -> list[Chat]:
    """Chats of a file (JSON, JSONL, CSV, TSV, Parquet) or a frame: rows with `prompt` and `answer`, or with `messages`.

    Raises:
        DatasetError: no such file, or one that is damaged.
        SteeringError: a row without these.
    """
    table = read_table(given)
    return [_row(row.cells, f"{row.file}, row {row.number}") for row in table.rows]


def score_chats(
    model: LanguageModel, answers: Sequence[Answer], site: Site, vectors: Float[Tensor, "width vector"]
) -> ChatScores:
    """The projections of every answer's tokens, some answers at a time."""
    values, owner, means = [], [], []
    hashes: list[str] = []
    for start in range(0, len(answers), _AT_ONCE):
        some = answers[start : start + _AT_ONCE]
        states = capture(model, [each.prompt for each in some], site, positions=Span("response"))
        values.append(states[site] @ vectors)
        owner.append(states.example + start)
        counts = torch.bincount(states.example, minlength=len(some))[:, None]
        sums = torch.zeros(len(some), states[site].shape[1]).index_add_(0, states.example, states[site])
        means.append(sums / counts)
        hashes += states.prompt_hashes
    return ChatScores(
        values=torch.cat(values),
        answer=torch.cat(owner),
        conversation=torch.tensor([each.conversation for each in answers]),
        means=torch.cat(means),
        dataset_hash=hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
    )


# -- private --


def _answers(model: LanguageModel, chat: Chat, number: int, what: str) -> Iterator[Answer]:
    if isinstance(chat, Mapping):
        chat = _row(chat, f"Row {number} of {what}")
    if isinstance(chat, Prompt):
        if "response" not in chat.spans:
            raise SteeringError(
                f"Chat {number} of {what} is a prompt without a span 'response'; say where its answer stands."
            )
        yield Answer(chat, chat.text[slice(*chat.spans["response"])], number)
    elif is_conversation(chat):
        messages = [dict(message) for message in chat]  # type: ignore[arg-type]
        ends = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        if not ends or ends[-1] != len(messages) - 1:
            raise SteeringError(f"Chat {number} of {what} does not end with an assistant's answer; give one.")
        for end in ends:
            yield Answer(
                model.conversation_prompt(messages[: end + 1]), str(messages[end]["content"]), number
            )
    elif isinstance(chat, tuple | list) and len(chat) == 2 and all(isinstance(part, str) for part in chat):
        question, answer = map(str, chat)
        if not answer.strip():
            raise SteeringError(f"The answer of chat {number} of {what} is empty; leave the chat out.")
        thinks = True if behind_thinking("", answer) != answer else None  # its block stands as it was written
        yield Answer(model.instruction_prompt(question, response=answer, think=thinks), answer, number)
    else:
        raise SteeringError(
            f"Chat {number} of {what} is {kind_of(chat)}; give a pair (question, answer) or a conversation."
        )


def _row(row: Mapping[str, Any], where: str) -> Chat:
    if is_conversation(row.get("messages")):
        return list(row["messages"])
    texts = [row.get(name) for name in ("prompt", "answer")]
    if all(isinstance(text, str) and text.strip() for text in texts):
        return str(texts[0]), str(texts[1])
    raise SteeringError(f"{where} has neither prompt and answer nor messages; give one of the two.")
