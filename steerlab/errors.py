"""Errors of the toolkit: each message is one sentence that names the thing, what is wrong and what to do.

All derive from `SteerlabError`, a `ValueError`; the command line turns any of them into exit code 2.
"""

from __future__ import annotations


class SteerlabError(ValueError):
    """Wrong input: something the caller can change."""


class ModelError(SteerlabError):
    """A checkpoint cannot be loaded or is not what the toolkit works with.

    Attributes:
        self_check: the `SelfCheck` that failed, when that is the reason.
    """

    self_check: object | None = None


class SiteError(SteerlabError):
    """A site does not exist in this model."""


class PromptError(SteerlabError):
    """A prompt cannot be rendered or tokenised, or a position selector finds nothing in it."""


class SteeringError(SteerlabError):
    """An intervention cannot be applied, or never was."""


class DirectionError(SteerlabError):
    """A direction does not fit the model or the file is damaged."""


class AlignmentError(SteerlabError):
    """Rows, layers or a map between two models do not fit together."""


class DatasetError(SteerlabError):
    """A data file is not usable; the message names file, row and column."""


class RunError(SteerlabError):
    """A comparison run cannot start or go on."""


def kind_of(given: object) -> str:
    """What somebody gave, for a sentence: "None", "a list", "an int", "the class Last"."""
    if given is None:
        return "None"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    name = type(given).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


def reason(error: Exception) -> str:
    """What another library's error says, short enough for a place in one of our sentences."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")[:200]
