"""Interventions as text: selectors are written as their constructor calls, directions as their hashes."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Selector
from steerlab.models import positions as selectors


def positions_to_text(positions: Selector) -> str:
    """A selector as text: its constructor call."""
    return repr(positions)


def positions_from_text(text: str) -> Selector:
    """The selector written by :func:`positions_to_text`; only selectors and their plain arguments are understood."""
    try:
        return _selector(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise SteeringError(
            f"{text!r} is not a position selector; write it like 'Index(-1)' or 'All()'."
        ) from error


def _selector(node: ast.expr) -> Selector:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("not a call")
    kind = getattr(selectors, node.func.id, None)
    if not (isinstance(kind, type) and issubclass(kind, Selector)):
        raise ValueError("not a selector")
    return kind(*map(_argument, node.args), **{str(k.arg): _argument(k.value) for k in node.keywords})


def _argument(node: ast.expr) -> Any:
    return _selector(node) if isinstance(node, ast.Call) else ast.literal_eval(node)


def find_direction(name: str, directions: Iterable[Direction]) -> Direction:
    """The direction with this hash, or its part at the one site where that has it.

    Raises:
        SteeringError: when it is not among those given.
    """
    for direction in directions:
        for part in (direction, *(direction.at(site) for site in direction.sites)):
            if part.hash == name:
                return part
    raise SteeringError(f"The edit refers to direction {name}, which is not among those given.")
