"""Hooks without any look at contexts: they act in every pass, whoever runs it, and a compiler can trace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from steerlab.models.anatomy import Tap


def placed(tap: Tap, change: Callable[[Tensor], Tensor]) -> Any:
    """Replace the state at a tap by `change` of it; a state that comes back as it is stays the very same tensor."""
    scale = tap.scale

    def changed(raw: Tensor) -> Tensor:
        if scale == 1.0:
            return change(raw)
        state = raw * scale
        after = change(state)
        # The change is carried over, not the state: what is left alone keeps its bits.
        new: Tensor = raw if after is state else raw + ((after - state) / scale).to(raw.dtype)
        return new

    def on_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    def on_output(module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return changed(output)
        return type(output)((changed(output[0]), *output[1:]))

    if tap.side == "input":
        return tap.module.register_forward_pre_hook(on_input, with_kwargs=True)
    return tap.module.register_forward_hook(on_output)
