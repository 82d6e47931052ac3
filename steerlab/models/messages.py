"""Chat messages as people hold them: what is a conversation, and what its messages say as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from steerlab.errors import PromptError, kind_of

Message: TypeAlias = dict[str, Any]
_SAID = {"content", "tool_calls"}
_CELLS = {"text", "prompt", "positive", "negative"}  # of a row, in which a conversation may stand


def is_conversation(given: Any) -> bool:
    """Whether this is one conversation: a list of messages, each with a role."""
    return (
        isinstance(given, list | tuple)
        and len(given) > 0
        and all(
            isinstance(message, Mapping) and "role" in message and _SAID & set(message) for message in given
        )
    )


def plain_messages(conversation: Any) -> list[Message]:
    """A conversation's messages, the parts of each content joined; other keys (`tool_calls`) are kept as they are.

    Raises:
        PromptError: no message, a content that is no text, or an end that nobody answers.
    """
    messages = [{**message, "content": _text(message, number)} for number, message in enumerate(conversation)]
    last = messages[-1]
    if last["role"] not in ("user", "tool", "assistant"):
        raise PromptError(
            f"A conversation ends with a message of user, tool or assistant, not of {last['role']!r}; give one."
        )
    if not last["content"].strip():
        raise PromptError("The last message of the conversation is empty; give it a text.")
    return messages


def as_said(given: Any, known: dict[str, list[Message]]) -> Any:
    """The same lists, pairs and rows with conversations as the texts said in them; `known` keeps the messages of each.

    The texts, without roles and the template around them, are what matched and reworded prompts are told by. Two
    conversations of the same words get texts that differ: with the system message, else with the roles.
    """
    if is_conversation(given):
        messages = plain_messages(given)
        text = next(text for text in _tellings(messages) if known.get(text, messages) == messages)
        known[text] = messages
        return text
    if isinstance(given, list | tuple):
        said = [as_said(part, known) for part in given]
        return tuple(said) if isinstance(given, tuple) else said
    if type(given) is dict:
        return {name: as_said(part, known) if name in _CELLS else part for name, part in given.items()}
    return given


# -- private --


def _tellings(messages: list[Message]) -> tuple[str, str, str]:
    """What is said in a conversation, from its words alone to all of it."""
    said = [message["content"] for message in messages if message["role"] != "system"]
    return "\n".join(said), "\n".join(message["content"] for message in messages), repr(messages)


def _text(message: Mapping[str, Any], number: int) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:  # a message that only calls tools
        return ""
    if isinstance(content, list | tuple):
        return "".join(_part(part, number) for part in content)
    raise PromptError(f"The content of message {number} is {kind_of(content)}; give a text.")


def _part(part: Any, number: int) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = repr(part.get("type")) if isinstance(part, Mapping) else kind_of(part)
    raise PromptError(
        f"Message {number} holds a part of the type {kind}, and only texts are read; leave it out."
    )
