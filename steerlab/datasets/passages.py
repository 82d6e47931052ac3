"""Packaged prompts without a right answer, and unrelated plain passages.

Open prompts are for measuring how varied a model's answers are; plain passages for measuring whether an intervention
leaves ordinary text alone. All of them are our own writing.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def open_prompts() -> tuple[str, ...]:
    """Open-ended prompts, each a single line."""
    return _lines("open_prompts.txt")


@cache
def plain_text() -> tuple[str, ...]:
    """Unrelated plain passages of one to three sentences, each a single line."""
    return _lines("plain_text.txt")


def _lines(name: str) -> tuple[str, ...]:
    text = files("steerlab.datasets").joinpath("data", name).read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())
