"""Chat templates are programs of strangers: rendered here they end, after so many steps, characters and seconds.

Jinja's sandbox keeps a template from the machine, but not from going on: ranges are bounded and nested loops are not,
and one product makes a text of any length. So a template is compiled once more, for an environment in which every turn
of a loop and every call is a step, and every product, sum, power, joined text and written piece is measured before it
is made. transformers renders with it, since the template it keeps for a source is given that program.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from steerlab.errors import PromptError

STEPS = 1_000_000
CHARACTERS = 10_000_000
SECONDS = 5.0
_MADE = 20  # times as many characters may be made on the way as stand in the end


class _Over(BaseException):
    """A bound is passed. No Exception, since jinja takes those for constants that it cannot compute yet."""


@dataclass
class _Budget:
    deadline: float
    steps: int = STEPS
    made: int = _MADE * CHARACTERS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise _Over(f"goes on after {STEPS:,} steps")
        if time.monotonic() > self.deadline:
            raise _Over(f"goes on after {SECONDS:g} seconds")

    def make(self, size: int) -> None:
        self.made -= size
        if size > CHARACTERS or self.made < 0:
            raise _Over(f"makes more than {CHARACTERS:,} characters")


#: None outside: whoever else renders the template in this process does so without bounds.
_budget: ContextVar[_Budget | None] = ContextVar("steerlab_template_budget", default=None)


@contextmanager
def bounded(tokenizer: Any, tools: Any = None) -> Iterator[None]:
    """Inside, the tokenizer's chat template renders within the bounds, in whatever thread this is.

    Raises:
        PromptError: the template goes on, or makes more characters than it may.
    """
    token = _budget.set(_Budget(time.monotonic() + SECONDS))
    try:
        source = _source(tokenizer, tools)
        if source is not None:
            _bind(source)
        yield
    except _Over as over:
        raise PromptError(
            f"The chat template {over}; set another one (model.tokenizer.chat_template), or use template='plain'."
        ) from None
    finally:
        _budget.reset(token)


# -- private --


def _source(tokenizer: Any, tools: Any) -> str | None:
    """The template that transformers will take; None for a tokenizer that renders by itself."""
    get = getattr(tokenizer, "get_chat_template", None)
    found = get(None, tools) if get is not None else None
    return found if isinstance(found, str) else None


def _bind(source: str) -> None:
    """Give the template that transformers keeps for this source the counted program."""
    from transformers.utils import chat_template_utils

    ours = _compiled(source)  # first, since compiling computes what is constant
    theirs = chat_template_utils._compile_jinja_template(source)
    theirs.environment, theirs.root_render_func = ours.environment, ours.root_render_func


@functools.lru_cache
def _compiled(source: str) -> Template:
    from transformers.utils import chat_template_utils

    known: Any = chat_template_utils._compile_jinja_template(" ").environment
    own = _Environment(
        trim_blocks=known.trim_blocks,
        lstrip_blocks=known.lstrip_blocks,
        finalize=_weighed,
        extensions=[type(extension) for extension in known.extensions.values()],
    )
    own.filters.update({name: _measured(name, function) for name, function in known.filters.items()})
    own.filters.update({"_turns": _turns, "_tilde": _tilde})
    own.globals.update(known.globals)
    return own.from_string(source)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which everything that may go on or grow is counted."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(lambda pieces: "".join(_written(pieces)))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        code: str = super()._generate(_Counting(self).visit(source), *args, **kwargs)
        return code

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _make(_size_of(operator, left, right))
        return super().call_binop(context, operator, left, right)

    # The names are jinja's own: a template may call with any keyword.
    def call(__self, __context: Any, __function: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__function, "__wrapped__", __function)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            args = tuple(_measure(method.__name__, [owner, *args], kwargs)[1:])
        _step()
        return super().call(__context, __function, *args, **kwargs)


class _Counting(NodeTransformer):
    """Counts the turns of loops, measures what `~` joins, and computes constants under the same bounds."""

    def __init__(self, environment: _Environment) -> None:
        self.environment = environment

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return self._filtered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "_tilde")

    def _operation(self, node: nodes.BinExpr) -> nodes.Expr:
        self.generic_visit(node)
        if not (isinstance(node.left, nodes.Const) and isinstance(node.right, nodes.Const)):
            return node
        try:
            value = self.environment.call_binop(None, node.operator, node.left.value, node.right.value)
        except Exception:  # it fails when it runs, and says so then
            return node
        return nodes.Const(value, lineno=node.lineno)

    visit_Mul = visit_Add = visit_Pow = visit_Mod = _operation

    def _filtered(self, node: Any, name: str) -> nodes.Filter:
        made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        made.set_environment(self.environment)
        return made


def _step() -> None:
    if (budget := _budget.get()) is not None:
        budget.step()


def _make(size: int) -> None:
    if (budget := _budget.get()) is not None:
        budget.make(size)


def _turns(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


def _tilde(parts: Iterable[Any]) -> str:
    return "".join(str(_weighed(part)) for part in parts)


def _weighed(value: Any) -> Any:
    """A value that is about to be written as text."""
    _make(_weight(value, {}))
    return value


def _weight(value: Any, known: dict[int, int]) -> int:
    """Characters of a value's text, at least: a list may hold one long text many times."""
    if not isinstance(value, list | tuple | Mapping):
        return _length(value)
    if id(value) not in known:
        known[id(value)] = 0  # a list that holds itself
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = sum(_weight(part, known) for part in parts)
    return known[id(value)]


def _written(pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        _make(len(piece))
        yield piece


def _measured(name: str, function: Any) -> Any:
    """A filter whose work is measured before it is done."""
    passed = int(hasattr(function, "jinja_pass_arg"))  # jinja hands these the environment first

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _step()
        return function(*args[:passed], *_measure(name, list(args[passed:]), kwargs), **kwargs)

    return measured


def _measure(name: str, given: list[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What a method or filter is given, its text first, once there is room for what it makes."""
    text, others = given[0], [*given[1:], *kwargs.values()]
    counts = [abs(other) for other in others if isinstance(other, int)]
    texts = [other for other in others if isinstance(other, str)]
    if name in ("center", "ljust", "rjust", "zfill", "slice", "batch"):
        _make(max(counts, default=0))
    elif name in ("indent", "tojson", "expandtabs"):
        _make(max([1, *counts]) * max(_weight(text, {}), 1))
    elif name == "replace" and isinstance(text, str) and len(texts) == 2:
        _make(len(text) + text.count(texts[0]) * len(texts[1]))
    elif name in ("string", "pprint"):
        _weighed(text)
    elif name in ("format", "format_map") and isinstance(text, str):
        _make(_widths(text) + max(counts, default=0) + _weight(others, {}))
    elif name == "join":
        at = 1 if isinstance(text, str) and len(given) > 1 and not isinstance(given[1], str) else 0
        given[at] = _joined(given[at], max(map(len, texts), default=0) if at == 0 else len(text))
    return given


def _joined(items: Iterable[Any], gap: int) -> Iterator[Any]:
    for item in items:
        _make(_weight(item, {}) + gap)
        yield item


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Characters, items or digits that an operation makes, at most."""
    if operator == "+":
        return _length(left) + _length(right)
    if operator == "*":
        counts = [side for side in (left, right) if isinstance(side, int)]
        return max(_length(left), _length(right)) * max(counts, default=0)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * max(right, 0)
    if operator == "%" and isinstance(left, str):
        parts = right if isinstance(right, tuple) else (right,)
        return _widths(left) + _weight(parts, {})
    return 0


def _widths(text: str) -> int:
    """The largest number in a format, which may be a width."""
    return max((int(number[:12]) for number in re.findall(r"\d+", text)), default=0)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0
