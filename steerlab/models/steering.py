"""`model.steering(...)`: edits are checked, compiled, placed as one hook a site, and removed on every exit.

`program` composes what can be composed, `gates` decides which tokens are meant. Arithmetic is float32, the result a new
tensor in the model's dtype. `resid_mid` is no module's output: an edit there changes what the MLP reads, and the
block's output gets the same change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.edits import Edit, EditTable, Steering, SteeringGiven, TimedEdit, edits_of
from steerlab.models.gates import EditCondition
from steerlab.models.hooks import State, attach
from steerlab.models.operators import precise
from steerlab.models.program import Applied, SiteProgram, programs
from steerlab.models.sites import Site

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel


@contextmanager
def steering(model: LanguageModel, given: Sequence[SteeringGiven]) -> Iterator[Applied]:
    """Apply edits to every forward pass inside the context; see `LanguageModel.steering`."""
    edits = edits_of(given)
    every = list(_flat(edits))
    if not every:
        raise SteeringError("No row of the table has an intervention; give at least one row one.")
    require_eager(model)
    for edit in {id(edit): edit for edit in every}.values():
        _check(model, edit)
    lines, by_site = programs(edits)
    with ExitStack() as stack:
        # A thread that is running the model walks through its hooks: wait until it is done.
        with model.lock:
            stack.callback(_removed, model, handles := ExitStack())
            handles.enter_context(model.frames.watch(model.anatomy.base))
            handles.enter_context(model.frames.by_row.holding(_by_row(edits)))
            for site, program in by_site.items():
                _place(model, site, program, handles)
            model.frames.placed()
        applied = Applied(lines)
        yield applied
    # Only reached without an exception: a forgotten edit is worth an error, a failed run already is one.
    applied.require_acted()


def _by_row(edits: Iterable[Steering]) -> list[str]:
    """What holds an answer for each row from one pass to the next: tables, and conditions that the prompt decides."""
    tables = [type(edit).__name__ for edit in edits if isinstance(edit, EditTable)]
    conditions = [
        f"{type(edit).__name__} with a condition"
        for edit in _flat(edits)
        if isinstance(edit, TimedEdit) and edit.condition is not None and _goes_by_rows(edit.condition)
    ]
    return tables + conditions


def _goes_by_rows(condition: EditCondition) -> bool:
    return condition.positions is not None or bool(getattr(condition, "latched", False))


def is_compiled(model: LanguageModel) -> bool:
    """Whether the model, or a part of it, was given to torch.compile."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule"
        for module in model.model.modules()
    )


def require_eager(model: LanguageModel) -> None:
    """Raise `SteeringError` for a compiled model, whose program would not see hooks placed now."""
    if is_compiled(model):
        raise SteeringError(
            f"{model.name} is compiled (torch.compile), and hooks placed now would not be in its program: nothing "
            "would be steered, or only some passes. Put constant interventions into Slots(model, sites) before "
            "compiling, or load the model again without compiling it."
        )


def _removed(model: LanguageModel, handles: ExitStack) -> None:
    with model.lock:
        handles.close()


def _flat(edits: Iterable[Steering]) -> Iterator[Edit]:
    for edit in edits:
        if isinstance(edit, EditTable):
            for row in edit.rows:
                yield from row
        else:
            yield edit


def _check(model: LanguageModel, edit: Edit) -> None:
    edit.check(model)
    name = type(edit).__name__
    if not edit.sites:
        raise SteeringError(f"{name} names no site, so it would change nothing; give it sites.")
    for site in edit.sites:
        model.require(site)
    condition = edit.condition if isinstance(edit, TimedEdit) else None
    if condition is None:
        return
    condition.check(model)
    model.require(condition.site)
    first = min(edit.sites)
    # What the prompt decided is known when tokens are generated, at every site.
    later = condition.positions is not None and not edit.positions.in_prompt
    if first < condition.site and not later:
        raise SteeringError(
            f"{name} acts at {first} before its condition is known, which is read at {condition.site} of the same "
            "pass; read it at an earlier site, or let the prompt decide about generated tokens only "
            "(positions=Generated())."
        )


def _place(model: LanguageModel, site: Site, program: SiteProgram, stack: ExitStack) -> None:
    frames, anatomy = model.frames, model.anatomy

    def visit(state: State) -> State | None:
        new = program(state, frames.current)
        return None if new is state else new.to(state.dtype)

    if site.name != "resid_mid" or not program.steps:
        stack.callback(attach(anatomy.tap(site), frames, visit))
        return

    change: list[Tensor] = []

    def before_mlp(state: State) -> State:
        new = program(state, frames.current)
        change[:] = [new - precise(state)]
        return new.to(state.dtype)

    def after_block(state: State) -> State:
        return (state + change.pop()).to(state.dtype)

    assert site.layer is not None
    stack.callback(attach(anatomy.tap(site), frames, before_mlp))
    # Before every hook on the block's output: reads and edits of resid_post see the stream with the change in it.
    output = anatomy.tap(Site("resid_post", site.layer))
    stack.callback(attach(output, frames, after_block, first=True))
