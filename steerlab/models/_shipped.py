"""Functions that are sent to nnsight's server as source and run there.

The server has no steerlab, so only torch is imported here, and every argument is plain data.

A pass is a list of steps in the order of the forward pass. A step is a dictionary:

    path, side, scale   the module, "input" or "output", and the factor between its value and the state
    carry               "keep" the change made here, or "add" it: an edit of resid_mid changes what the MLP reads and
                        then the block's output
    edits               x ← keep ⊙ x + (x A) C + c, each with the tokens it acts on
    read                the name under which the state is kept, `None` when it is not
"""

from __future__ import annotations

from typing import Any

import torch

SAMPLED = 16


def sample(parameter: Any) -> Any:
    """16 evenly spaced values of a weight, float32 on the CPU."""
    flat = parameter.detach().reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, min(SAMPLED, flat.numel()), dtype=torch.float64).long()
    return flat[places.to(flat.device)].float().cpu()


def visit(root: Any, steps: list[dict[str, Any]], number: int, rows: int, kept: dict[str, Any]) -> None:
    """Follow forward pass `number` (0 is the prompt's) of a batch of `rows`, editing and keeping states."""
    change = None
    for step in steps:
        edits = [(edit, mask) for edit in step["edits"] if (mask := acting(edit, number)) is not None]
        if not edits and step["read"] is None and (step["carry"] != "add" or change is None):
            continue
        module = root.get(step["path"])
        value = module.input if step["side"] == "input" else module.output
        raw = value if isinstance(value, torch.Tensor) else value[0]
        state = raw.reshape(rows, -1, raw.shape[-1]) * step["scale"]
        new = state
        if step["carry"] == "add" and change is not None:
            new, change = (state + change).to(state.dtype), None
        if edits:
            precise = new.to(torch.promote_types(new.dtype, torch.float32))
            for edit, mask in edits:
                precise = torch.where(mask.to(precise.device), edited(precise, edit), precise)
            if step["carry"] == "keep":
                change = precise - new
            new = precise.to(state.dtype)
        if new is not state:
            replaced = (new / step["scale"]).reshape(raw.shape)
            if step["side"] == "input":
                module.input = replaced
            elif isinstance(value, torch.Tensor):
                module.output = replaced
            else:
                module.output = type(value)((replaced, *value[1:]))
        if step["read"] is not None:
            at = step["at"]
            chosen = new if at is None else new[at[0].to(new.device), at[1].to(new.device)]
            kept[step["read"]] = chosen.detach().clone().cpu()


def acting(edit: dict[str, Any], number: int) -> Any:
    """Which tokens of a pass the edit acts on, `None` for none of them."""
    mask = edit["prompt"] if number == 0 else edit["generated"][number - 1]
    return mask if bool(mask.any()) else None


def edited(state: Any, edit: dict[str, Any]) -> Any:
    """The state after one edit in normal form."""
    keep, reads, writes, shift = (
        None if part is None else part.to(state.device, state.dtype)
        for part in (edit["keep"], edit["reads"], edit["writes"], edit["shift"])
    )
    new = state if keep is None else state * keep
    if reads is not None:
        new = new + (state @ reads) @ writes
    return new if shift is None else new + shift
