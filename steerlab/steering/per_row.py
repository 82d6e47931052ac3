"""Interventions by row: every prompt of a batch has interventions of its own.

    with model.steering(PerRow([Add(a)], [Add(b), Ablate(c)], ())):
        model.generate(three_prompts, ...)

Row i belongs to prompt i of the call, however `generate`, `logits` and `capture` sort prompts into batches; a prompt
with () keeps every bit of an unsteered run. What is added or projected is gathered from a table with one slot for each
different row, whose slot 0 does nothing (the zero row of EasySteer, arXiv 2509.25175).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import Edit
from steerlab.models.edits import Directed, edits_of
from steerlab.steering.registry import edit_from_dict, register_intervention

if TYPE_CHECKING:
    from steerlab.activations import Activations


@register_intervention
class PerRow:
    """A table that gives each prompt its interventions, in the order in which they act.

    Args:
        rows: an intervention, several, or () for a prompt that is left alone.

    Raises:
        SteeringError: no rows, or something in them that is no intervention.
    """

    kind: ClassVar[str] = "per_row"

    def __init__(self, *rows: Edit | Directed | Sequence[Edit | Directed]) -> None:
        if not rows:
            raise SteeringError("A table of interventions needs one row a prompt; write PerRow([...], ()).")
        #: For each prompt its interventions.
        self.rows: tuple[tuple[Edit, ...], ...] = tuple(_row(number, row) for number, row in enumerate(rows))

    def __repr__(self) -> str:
        return f"PerRow({', '.join(map(repr, self.rows))})"

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON data.

        Raises:
            SteeringError: an intervention that cannot be written down.
        """
        return {"edit": self.kind, "rows": [[_written(edit) for edit in row] for row in self.rows]}

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], directions: Iterable[Direction], states: Iterable[Activations] = ()
    ) -> PerRow:
        """The table that :meth:`to_dict` wrote."""
        directions, states = list(directions), list(states)
        rows = [[edit_from_dict(edit, directions, states) for edit in row] for row in data["rows"]]
        return cls(*rows)  # type: ignore[arg-type]


def _row(number: int, row: Any) -> tuple[Edit, ...]:
    if isinstance(row, list | tuple) and not row:
        return ()
    try:
        edits = edits_of([row])
    except SteeringError as error:
        raise SteeringError(f"Row {number} cannot be used: {error}") from error
    for edit in edits:
        if not isinstance(edit, Edit):
            raise SteeringError(f"Row {number} holds {edit!r}, which is no intervention.")
    return tuple(edit for edit in edits if isinstance(edit, Edit))


def _written(edit: Edit) -> dict[str, Any]:
    to_dict = getattr(edit, "to_dict", None)
    if to_dict is None:
        raise SteeringError(f"{edit!r} cannot be written down; it has no to_dict().")
    data: dict[str, Any] = to_dict()
    return data
