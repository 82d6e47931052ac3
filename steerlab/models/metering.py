"""What work costs: tokens that go through a model, and the seconds that it takes for them.

    read        tokens of passes that begin a text
    generated   tokens that are appended to it, one a pass
    patched     token-layers: tokens times the blocks that run again in sweeps and patching, which leave others out
    unembedded  states that are turned into logits

Padding counts, since it costs what tokens cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel

#: Whether the passes of the running context are patched ones.
_PATCHING: ContextVar[bool] = ContextVar("steerlab_patching", default=False)


@dataclass
class Spent:
    """Tokens by what was done with them, and seconds inside the model."""

    read: int = 0
    generated: int = 0
    patched: int = 0
    unembedded: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        """The sum of two costs."""
        return Spent(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@contextmanager
def metered(models: Mapping[str, LanguageModel]) -> Iterator[dict[str, Spent]]:
    """Count what models do inside the context, by their names; a model with two names is counted under the first.

    Remote models run elsewhere and count nothing.
    """
    spent = {name: Spent() for name in models}
    counted: list[LanguageModel] = []
    with ExitStack() as stack:
        for name, model in models.items():
            if not model.is_remote and all(model is not other for other in counted):
                counted.append(model)
                stack.enter_context(_counting(model, spent[name]))
        yield spent


def costs(spent: Mapping[str, Spent], seconds: float) -> dict[str, float]:
    """Tokens of each model, and which of so many seconds passed inside and outside of the models; for a manifest."""
    tokens = {
        f"{role} {what}": float(getattr(own, what))
        for role, own in spent.items()
        for what in ("read", "generated", "patched", "unembedded")
    }
    inside = sum(own.seconds for own in spent.values())
    return {
        **tokens,
        "seconds in the models": round(inside, 2),
        "seconds outside": round(max(0.0, seconds - inside), 2),
    }


@contextmanager
def patching() -> Iterator[None]:
    """Passes inside the context count as patched."""
    token = _PATCHING.set(True)
    try:
        yield
    finally:
        _PATCHING.reset(token)


@contextmanager
def _counting(model: LanguageModel, spent: Spent) -> Iterator[None]:
    anatomy = model.anatomy
    clock = _Clock(spent, model.device)

    def base(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs_embeds"))
        if inputs is None or _PATCHING.get():
            return
        tokens = inputs.shape[0] * inputs.shape[1]
        if _behind(kwargs) and inputs.shape[1] == 1:
            spent.generated += tokens
        else:
            spent.read += tokens

    def block(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _PATCHING.get() and not getattr(module.forward, "is_skipped", False):
            state = args[0] if args else kwargs["hidden_states"]
            spent.patched += state.shape[0] * state.shape[1]

    def head(module: nn.Module, args: tuple[Any, ...]) -> None:
        spent.unembedded += args[0].numel() // args[0].shape[-1]

    with ExitStack() as stack:
        for part in (anatomy.base, anatomy.head):
            stack.enter_context(_hooked(part.register_forward_pre_hook, clock.start))
            stack.enter_context(_hooked(part.register_forward_hook, clock.stop, always_call=True))
        stack.enter_context(_hooked(anatomy.base.register_forward_pre_hook, base, with_kwargs=True))
        stack.enter_context(_hooked(anatomy.head.register_forward_pre_hook, head))
        for one in anatomy.blocks:
            stack.enter_context(_hooked(one.register_forward_pre_hook, block, with_kwargs=True))
        yield


class _Clock:
    """Adds the seconds between the outermost start and its stop."""

    def __init__(self, spent: Spent, device: torch.device) -> None:
        self._spent, self._device, self._depth, self._began = spent, device, 0, 0.0

    def start(self, *_: Any) -> None:
        if not self._depth:
            self._began = self._now()
        self._depth += 1

    def stop(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self._spent.seconds += self._now() - self._began

    def _now(self) -> float:
        if self._device.type == "cuda":  # what was asked for runs later
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def _hooked(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Iterator[None]:
    handle = register(hook, **options)
    try:
        yield
    finally:
        handle.remove()


def _behind(kwargs: Mapping[str, Any]) -> bool:
    """Whether tokens lie behind those of a pass."""
    cache = kwargs.get("past_key_values", kwargs.get("cache_params"))
    if cache is None:
        return False
    try:
        return int(cache.get_seq_length()) > 0
    except (AttributeError, ValueError):  # state spaces keep no length
        return True
