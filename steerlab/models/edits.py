"""The protocols of edits: changes of the states while the model runs, at some sites and positions.

`model.steering(*edits)` takes anything that satisfies `Edit`; the other protocols add what the runtime can make use
of: schedules, conditions and a normal form (`TimedEdit`), the forward pass in progress (`FramedEdit`), edits by row
of the batch (`EditTable`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models.gates import EditCondition, Schedule
from steerlab.models.hooks import Frame
from steerlab.models.operators import Operator, Share
from steerlab.models.positions import Selector
from steerlab.models.sites import Site
from steerlab.registry import registry_of

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel


@runtime_checkable
class Edit(Protocol):
    """A change of the states at some sites and positions."""

    @property
    def sites(self) -> Sequence[Site]:
        """Where the edit acts; read after `check`, which may choose them by the model."""

    @property
    def positions(self) -> Selector:
        """Which tokens it acts on."""

    def apply(self, state: Float[Tensor, "batch position width"], site: Site) -> Tensor:
        """The edited state, as a new tensor of the same shape.

        `state` is float32 (float64 in a float64 model) and holds every token of the current input; the
        runtime keeps the result at the selected positions only.
        """

    def check(self, model: LanguageModel) -> None:
        """Raise a sentence when the edit does not fit the model."""


@runtime_checkable
class TimedEdit(Edit, Protocol):
    """An edit with a schedule, a condition and, where it is linear in the state, a normal form."""

    @property
    def schedule(self) -> Schedule | None:
        """The factor by which it acts at each generated token; None where that is always 1."""

    @property
    def condition(self) -> EditCondition | None:
        """The condition under which it acts; None where it always acts."""

    def apply(self, state: Float[Tensor, "batch position width"], site: Site, share: Share = 1.0) -> Tensor:
        """The state with `share` of the edit (one number, or one a token `[batch, position, 1]`)."""

    def operator(self, site: Site) -> Operator | None:
        """The edit in normal form, float64 on the CPU; None when it has none."""


@runtime_checkable
class FramedEdit(Edit, Protocol):
    """An edit whose states depend on which prompt and token they belong to."""

    def apply_in(self, state: Float[Tensor, "batch position width"], site: Site, frame: Frame) -> Tensor:
        """The edited state of a forward pass."""


@runtime_checkable
class EditTable(Protocol):
    """A table of edits with one list of edits for each prompt."""

    @property
    def rows(self) -> Sequence[Sequence[Edit]]:
        """For each prompt, in the order of the call, its edits in the order they act."""


@runtime_checkable
class Directed(Protocol):
    """A direction: by itself it is no edit; `model.steering` adds one of it."""

    @property
    def vectors(self) -> Mapping[Site, Tensor]:
        """By site its vectors, [k, width]."""

    @property
    def estimator(self) -> str:
        """What made it."""


Steering: TypeAlias = "Edit | EditTable"
#: What `model.steering` takes, any number of them.
SteeringGiven: TypeAlias = "Steering | Directed | Sequence[Steering | Directed]"


def edits_of(given: Iterable[SteeringGiven]) -> list[Steering]:
    """The edits that somebody wrote down: edits, lists of them, and directions, each of which is added once.

    Raises:
        SteeringError: none, or something that is no edit.
    """
    edits: list[Steering] = []
    for part in given:
        if isinstance(part, list | tuple):
            edits += edits_of(part) if part else ()
        elif isinstance(part, Directed):
            edits.append(registry_of("interventions")["add"](part))
        elif isinstance(part, AbstractContextManager):
            raise SteeringError(
                "A context such as model.edit(...) is entered by itself: with model.edit(...):"
            )
        elif isinstance(part, type) or not isinstance(part, Edit | EditTable):
            raise SteeringError(
                f"{_short(part)} is no edit; give model.steering(...) sl.Add(direction, 2), sl.Ablate(direction) or a "
                "direction."
            )
        else:
            edits.append(part)
    if not edits:
        raise SteeringError("Steering needs at least one edit; give model.steering(...) an Add or an Ablate.")
    return edits


def _short(part: object) -> str:
    if isinstance(part, type):
        return f"The class {part.__name__}"
    written = repr(part)
    return written if len(written) <= 60 else f"A {type(part).__name__}"
