"""What an audit hands on: a kind, sentences, every matrix, and the direction that was removed or added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from steerlab.directions import Direction
from steerlab.errors import DirectionError, RunError
from steerlab.files import system_reason, whole, write_text
from steerlab.models import Site
from steerlab.plots import Series, bars
from steerlab.record import Record
from steerlab.results import Table
from steerlab.showing import html_table, html_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Kind = Literal[
    "identical",
    "embeddings added",
    "cast or requantised",
    "directional ablation",
    "constant addition",
    "low-rank adapter",
    "merge",
    "noise",
    "full fine-tune",
    "not the same lineage",
]


class Lineage(Record):
    """Whether the candidate's weights are made from the base's.

    correlation: the median over matrices of ⟨B, C⟩ / ‖B‖‖C‖. null: the same with the candidate's rows in another order.
    share: of the matrices whose correlation is beyond their null's size and four of its standard errors.
    """

    correlation: float
    null: float
    share: float
    matrices: int


class MatrixChange(Record):
    """The change D = C − B of one matrix or vector.

    Attributes:
        name: of the tensor, with its number in a stack of experts.
        role: what it is for, where the family is known.
        rows: its rows; 1 for a vector.
        columns: its columns.
        label: what was done to it alone: "same", "cast to …", "requantised", "ablated", "constant", "low rank",
            "noise", "dense", "vector".
        change: ‖D‖ / ‖B‖; None where the base has zeros, or nothing (a new bias).
        over_rounding: ‖D‖ over the norm that rounding alone gives; None where the numbers are the same.
        stable_rank: ‖D‖² / σ₁².
        top_share: σ₁² / ‖D‖².
        over_null: σ₁ over the largest singular value that the same entries have with shuffled signs.
        rank: where the change ends in rounding at a rank: that rank.
        alignment: cosine between what the change does along its own direction and what an ablation would do.
        strength: α of that ablation.
        agreement: cos² between its direction and the one that all ablated matrices share.
        rows_touched: rows in which a number differs.
        columns_touched: columns in which a number differs.
        trace: of quantisation, in words.
    """

    name: str
    role: str = ""
    rows: int
    columns: int
    label: str
    change: float | None
    over_rounding: float | None = None
    stable_rank: float | None = None
    top_share: float | None = None
    over_null: float | None = None
    rank: int | None = None
    alignment: float | None = None
    strength: float | None = None
    agreement: float | None = None
    rows_touched: int = 0
    columns_touched: int = 0
    trace: str = ""


class AuditResult(Record):
    """What was done to a set of weights.

    Attributes:
        base: name of the one it is held against.
        candidate: name of the one that was audited.
        kind: the verdict.
        sentence: the verdict in words, with its number.
        details: what else was found, a sentence each: how it can be undone, rows added, tokenizers.
        lineage: whether the one was made from the other.
        matrices: every matrix and vector that is in both.
        rank: of a low-rank adapter.
        share: of a merge: t in base + t (other − base).
        agreement: of an ablation: mean cos² between one direction and those of all matrices.
        vectors: by site, the directions that were removed or added [k][width].
    """

    base: str
    candidate: str
    kind: Kind
    sentence: str
    details: list[str] = Field(default_factory=list)
    lineage: Lineage
    matrices: list[MatrixChange]
    rank: int | None = None
    share: float | None = None
    agreement: float | None = None
    vectors: dict[str, list[list[float]]] = Field(default_factory=dict)
    fingerprint: str = ""

    @property
    def direction(self) -> Direction | None:
        """What was removed from the stream (its sign is not known) or added to it; None for other kinds.

        It belongs to the base. Where its fingerprint could not be read off the files (a buffer that only a loaded model
        has), `direction.moved_to(model)` gives it one.
        """
        if not self.vectors:
            return None
        vectors = {Site.parse(site): torch.tensor(rows) for site, rows in self.vectors.items()}
        return Direction(vectors, self.base, self.fingerprint, "audit", {"kind": self.kind})

    def cosines(self, direction: Direction) -> dict[Site, float]:
        """Cosines between what was found and another direction, by its sites; absolute ones for an ablation.

        Where several directions were found, the largest counts.

        Raises:
            DirectionError: nothing was found, the widths differ, or the other holds a subspace.
        """
        own = self.direction
        if own is None:
            raise DirectionError(f"The verdict is {self.kind!r}, so there is no direction to compare.")
        rows = torch.cat(list(own.vectors.values())).double()
        found = {}
        for site in direction.sites:
            vector = direction[site].double()
            if len(vector) != rows.shape[1]:
                raise DirectionError(
                    f"The direction has width {len(vector)} at {site}, and what was found has {rows.shape[1]}."
                )
            each = torch.nn.functional.cosine_similarity(rows, vector[None], dim=1)
            found[site] = float((each.abs() if self.kind == "directional ablation" else each).max())
        return found

    def tables(self) -> list[Table]:
        """One row a matrix that changed, and the lineage."""
        changed = [matrix for matrix in self.matrices if matrix.label != "same"]
        columns: dict[str, str | Callable[[MatrixChange], str]] = {
            "matrix": "name",
            "is": "role",
            "verdict": "label",
            "change": "change",
            "over rounding": "over_rounding",
            "stable rank": "stable_rank",
            "top share": "top_share",
            "over shuffled signs": "over_null",
            "rank": "rank",
            "alignment": "alignment",
            "strength": "strength",
            "agreement": "agreement",
            "rows": lambda matrix: f"{matrix.rows_touched} of {matrix.rows}",
            "columns": lambda matrix: f"{matrix.columns_touched} of {matrix.columns}",
            "trace": "trace",
        }
        note = f"{len(self.matrices) - len(changed)} of {len(self.matrices)} are the same in both."
        kept = {
            "correlation": "correlation",
            "rows shuffled": "null",
            "beyond it": "share",
            "matrices": "matrices",
        }
        return [
            Table.of("matrices", "What changed, matrix by matrix", changed, columns, note=note),
            Table.of("lineage", "Is the candidate made from the base?", [self.lineage], kept),
        ]

    def figure(self) -> Figure:
        """How much every changed matrix moved, beside the share of its first singular direction.

        Raises:
            RunError: nothing changed.
        """
        changed = [matrix for matrix in self.matrices if matrix.label != "same"]
        if not changed:
            raise RunError(f"{self.candidate} has the base's numbers, so there is no change to draw.")
        moved = Series("‖D‖ / ‖B‖", [matrix.change or 0.0 for matrix in changed])
        top = Series("share of the first direction", [matrix.top_share or 0.0 for matrix in changed])
        return bars([matrix.name for matrix in changed], [moved, top], title=f"Audit: {self.kind}")

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON; `AuditResult.model_validate_json` reads it.

        Raises:
            RunError: the file cannot be written.
        """
        place = Path(path)
        try:
            with whole(place) as partial:
                write_text(partial, self.model_dump_json(indent=2))
        except OSError as error:
            raise RunError(f"{place} cannot be written: {system_reason(error)}.") from error
        return place

    def __repr__(self) -> str:
        return f"AuditResult({self.kind}: {self.sentence})"

    def _repr_html_(self) -> str:
        said = "".join(map(html_text, (self.sentence, *self.details)))
        return said + "".join(html_table(table.title, table.columns, table.rows) for table in self.tables())
