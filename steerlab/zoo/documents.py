"""What the bundled models read: a document is a prompt, perhaps empty, and the text that follows it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One training document.

    `chat` documents are rendered with the chat template, `prompt` being the user's message; the others are
    `prompt + text` as they stand. Post-training learns `text` only; pretraining learns both.
    """

    kind: str
    text: str
    prompt: str = ""
    chat: bool = False

    @property
    def whole(self) -> str:
        """Prompt and text together, without a template."""
        return self.prompt + self.text


Maker = Callable[[random.Random], Document]


def plain_turn(message: str) -> str:
    """The plain rendering of a user's message; the answer follows after one space."""
    return f"User: {message}\nAssistant:"


def question(kind: str, message: str, answer: str) -> Document:
    """A question and its answer in the plain rendering."""
    return Document(kind, f" {answer}", plain_turn(message))


def chat(kind: str, message: str, answer: str) -> Document:
    """A question and its answer in the chat template."""
    return Document(kind, answer, message, chat=True)
