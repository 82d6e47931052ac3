"""A conversation as chat data keeps it, a list of `{"role": ..., "content": ...}`, and the text that a row of it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerlab.errors import DatasetError

#: Columns that hold a row's text; beside one of them, messages are not read.
TEXTS = frozenset({"text", "statement", "prompt", "instruction", "question", "goal", "true", "positive"})


def with_text(cells: Mapping[str, Any]) -> dict[str, Any]:
    """The same row; one whose only text is a conversation gets the user's last message as its `text`.

    Raises:
        DatasetError: messages without a user's text, in words that follow "column 'messages': ".
    """
    if "messages" not in cells or TEXTS & set(cells):
        return dict(cells)
    return {**cells, "text": _last_of_user(cells["messages"])}


# -- private --


def _last_of_user(messages: Any) -> str:
    if hasattr(messages, "tolist"):  # as pandas reads lists from Parquet
        messages = messages.tolist()
    if not isinstance(messages, list) or not all(
        isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in messages
    ):
        raise DatasetError('not a list of {"role": ..., "content": ...}; write one, or a column text.')
    said = [one["content"] for one in messages if one["role"] == "user"]
    if not said or not isinstance(said[-1], str) or not said[-1].strip():
        raise DatasetError("the user's last message is no text; write one, or delete the row.")
    return str(said[-1])
