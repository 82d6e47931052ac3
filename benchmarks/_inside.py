"""What goes on inside the hooks of a run: how long they take, and whether one of them waits for the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: What gives numbers to Python; on a GPU each of them waits for all that was asked before.
_QUESTIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


@contextmanager
def every_hook(around: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Hooks that are placed meanwhile run inside `around()`."""

    def wrapped(register: Any) -> Any:
        def registered(module: Any, hook: Any, **options: Any) -> Any:
            def watched(*arguments: Any) -> Any:
                with around():
                    return hook(*arguments)

            return register(module, watched, **options)

        return registered

    with ExitStack() as patched:
        for kind in ("register_forward_hook", "register_forward_pre_hook"):
            original = getattr(torch.nn.Module, kind)
            patched.enter_context(mock.patch.object(torch.nn.Module, kind, wrapped(original)))
        yield


class Clock:
    """A context that adds up the seconds and the times it was entered."""

    def __init__(self) -> None:
        self.seconds, self.entered = 0.0, 0

    def __enter__(self) -> None:
        self.entered += 1
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started


def share_in_hooks(run: Callable[[], object]) -> float:
    """Seconds inside the hooks that `run` places, over the seconds of the rest of it."""
    clock = Clock()
    with every_hook(lambda: clock):
        started = time.perf_counter()
        run()
        whole = time.perf_counter() - started
    if not clock.entered:
        raise SystemExit("No hook ran; steer or read inside the run.")
    return clock.seconds / (whole - clock.seconds)


def share_beside(run: Callable[[], object], base: torch.nn.Module) -> float:
    """Seconds of `run` that are not the forward pass of `base`, its hooks included, over those of the bare pass."""
    inside, forward, original = Clock(), Clock(), base.forward

    def timed(*arguments: Any, **named: Any) -> Any:
        with forward:
            return original(*arguments, **named)

    with every_hook(lambda: inside), mock.patch.object(base, "forward", timed):
        started = time.perf_counter()
        run()
        whole = time.perf_counter() - started
    bare = forward.seconds - inside.seconds
    return (whole - bare) / bare


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raise `RuntimeError` where the host asks the device: CUDA's own check, elsewhere that of the operations."""
    if device.type != "cuda":
        with _NoQuestions():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _NoQuestions(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in _QUESTIONS:
            raise RuntimeError(
                f"{function.name()} waits for the device inside a hook; keep its answer there."
            )
        return function(*args, **(kwargs or {}))
