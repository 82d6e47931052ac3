"""Candidate directions by layer and position: their scores, the published rule, and a selection as maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic import PrivateAttr

from steerlab import plots
from steerlab.directions import Direction
from steerlab.errors import DatasetError, SteerlabError
from steerlab.judging import JudgeAgreement
from steerlab.models import All, Index
from steerlab.record import Record
from steerlab.showing import html_figure, html_table
from steerlab.statistics import Number
from steerlab.steering import Ablate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KL_BOUND, INDUCE_BOUND, USABLE_DEPTH = 0.1, 0.0, 0.8
Toward = Literal["0", "negative"]
Window = Literal["block", "three", "onward", "everywhere"]
_RECORDED = {
    "layer": "layer",
    "position": "position",
    "refusal_score": "bypass",
    "steering_score": "induce",
    "kl_div_score": "kl",
}


class Candidate(Record):
    """A layer and a position (from the prompt's end, -1 is the last token) with what is known of it.

    Scores that the choice did not need are NaN; `kl_at_least` says that the KL was left at a bound it had already
    passed. separation: distance of the validation classes along r in within-class standard deviations. unanswered:
    share of positive prompts refused or answered with gibberish under ablation. gap: length of r.

    toward, window: how r was ablated for bypass, KL and unanswered. "0", "everywhere" is the published way: the
    component is removed at every write and every token. Else it is set, at the candidate's own kind of site and at
    every token but the first, to 0 or to the mean of the negative class, in the candidate's block, in it and two more,
    from it on, or in every block.
    """

    layer: int
    position: int
    bypass: Number = float("nan")
    induce: Number = float("nan")
    kl: Number = float("nan")
    kl_at_least: bool = False
    separation: Number = float("nan")
    unanswered: Number = float("nan")
    gap: Number = float("nan")
    toward: Toward = "0"
    window: Window = "everywhere"

    @property
    def as_published(self) -> bool:
        """Whether the component is removed at every write and every token."""
        return self.toward == "0" and self.window == "everywhere"

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """The blocks of the window."""
        first, behind = {
            "block": (self.layer, 1),
            "three": (self.layer, 3),
            "onward": (self.layer, n_layers),
            "everywhere": (0, n_layers),
        }[self.window]
        return tuple(range(first, min(first + behind, n_layers)))

    def dropped(self, n_layers: int) -> str:
        """Why the published rule leaves the candidate out; empty where it does not."""
        if self.gap == 0:
            return "the two kinds have equal means here"
        if self.layer >= int(n_layers * USABLE_DEPTH):
            return f"among the last {1 - USABLE_DEPTH:.0%} of the layers"
        if self.kl > KL_BOUND:
            return f"KL above {KL_BOUND}"
        if self.induce < INDUCE_BOUND:
            return f"induce below {INDUCE_BOUND:g}"
        if np.isnan([self.bypass, self.induce, self.kl]).any():
            return "a score is missing: it is undefined, or the choice did not need it"
        return ""


def survivors(candidates: Sequence[Candidate], n_layers: int | None = None) -> list[Candidate]:
    """The candidates the published rule keeps, best first: smallest bypass, then first position, then first layer.

    Nothing but the numbers is needed, so recorded scores do as well (`read_scores`).

    Args:
        n_layers: blocks of the model; by default one more than the deepest candidate's layer.
    """
    depth = n_layers or 1 + max((place.layer for place in candidates), default=0)
    kept = [place for place in candidates if not place.dropped(depth)]
    return sorted(kept, key=lambda place: (place.bypass, place.position, place.layer))


def read_scores(path: str | Path) -> list[Candidate]:
    """The candidates of a `direction_evaluations.json` of the refusal paper's code, in the file's order.

    Raises:
        DatasetError: the file is missing or no such list; the message names the row and the column.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON ({error}); name a file of recorded scores."
        ) from error
    if not isinstance(rows, list) or not rows:
        raise DatasetError(f"{path} holds no list of candidates; name a file of recorded scores.")
    return [_recorded(row, number, path) for number, row in enumerate(rows)]


class Selection(Record):
    """Every candidate, the chosen one, and the rule that chose it.

    model: its name. site: where candidates are read and added. tokens: texts of the target tokens, token_ids: their
    numbers. token: text at the chosen position. kinds: names of positive and negative prompts. kept: prompts of each
    kind that made the vectors and the scores, (train, train, val, val). judge: name of the one that said which
    answers are the expected ones. agreement: that judge and the phrases on the unsteered validation answers. tried:
    some candidates again, ablated in other ways; the chosen one may be among them.
    """

    model: str
    n_layers: int
    site: str
    template: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    token: str
    rule: str
    tried: tuple[Candidate, ...] = ()
    kinds: tuple[str, str] = ("harmful", "harmless")
    kept: tuple[int, int, int, int]
    judge: str | None = None
    agreement: JudgeAgreement | None = None
    _direction: Direction | None = PrivateAttr(default=None)

    def of(self, direction: Direction) -> Selection:
        """The same selection with its vectors."""
        copy = self.model_copy()
        copy._direction = direction
        return copy

    @property
    def direction(self) -> Direction:
        """The chosen direction at its layer, as long as the class gap; not part of the JSON form.

        Raises:
            SteerlabError: the selection was read from JSON.
        """
        if self._direction is None:
            raise SteerlabError(
                "A selection read from JSON has no vectors; select again or load the direction's file."
            )
        return self._direction

    def ablation(self, direction: Direction | None = None) -> Ablate:
        """The ablation that was chosen, of the chosen direction or of another one in its place (with its means)."""
        return ablation(direction or self.direction, self.chosen, self.n_layers)

    def ablated(self) -> str:
        """How the direction is ablated, in words."""
        return way(self.chosen, self.kinds[1])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Selection.model_validate` reads them."""
        return self.model_dump(mode="json")

    def __repr__(self) -> str:
        place = f"layer {self.chosen.layer}, position {self.chosen.position} ({self.token!r})"
        said = f"; judged by {self.judge}" if self.judge else ""
        return f"Selection({place} of {len(self.candidates)} candidates in {self.model}, {self.rule}{said})"

    def _repr_html_(self) -> str:
        names = ("layer", "position", "bypass", "induce", "kl", "separation")
        best = sorted(self.candidates, key=lambda place: (place is not self.chosen, place.bypass))[:5]
        rows = [[*(getattr(place, name) for name in names), self.verdict(place)] for place in best]
        drawn = html_figure(self.plot()) if self.scored else ""
        return drawn + html_table(repr(self), [*names, "verdict"], rows)

    def plot(self) -> Figure:
        """Bypass, induce and KL over layers and positions, the chosen place marked."""
        positive, negative = self.kinds
        names = {
            f"bypass (ablated, {positive}: low is good)": "bypass",
            f"induce (added, {negative}: above 0)": "induce",
            f"KL (ablated, {negative}: below {KL_BOUND})": "kl",
        }
        maps = {title: self.grid(field) for title, field in names.items()}
        return plots.heatmaps(
            {title: values for title, values in maps.items() if np.isfinite(values).any()},
            x=range(self.n_layers),
            y=self.positions,
            marked=(self.positions.index(self.chosen.position), self.chosen.layer),
            title=f"Where {self.model} has its direction: scores of the candidates",
            x_title="Layer",
            y_title="Position from the end",
        )

    @property
    def scored(self) -> bool:
        """Whether any candidate has a bypass, an induce or a KL (the target tokens are known)."""
        return any(np.isfinite([place.bypass, place.induce, place.kl]).any() for place in self.candidates)

    def grid(self, field: str) -> Float[np.ndarray, "position layer"]:
        """One score as a matrix, the prompt's last token in the last row; NaN where it was not computed to the end."""
        positions, layers = self.positions, range(self.n_layers)
        values = np.full((len(positions), len(layers)), np.nan)
        for place in self.candidates:
            bound = field == "kl" and place.kl_at_least
            values[positions.index(place.position), place.layer] = np.nan if bound else getattr(place, field)
        return values

    def verdict(self, place: Candidate) -> str:
        """ "chosen", why the published rule drops a candidate, or nothing."""
        if (place.layer, place.position) == (self.chosen.layer, self.chosen.position):
            return "chosen" if self.chosen.as_published else "chosen, ablated in another way"
        return place.dropped(self.n_layers)

    @property
    def positions(self) -> list[int]:
        """Positions of the candidates, ascending."""
        return sorted({place.position for place in self.candidates})


def ablation(direction: Direction, place: Candidate, n_layers: int) -> Ablate:
    """The removal of a direction in the way of a candidate; toward a mean the direction knows the means."""
    if place.as_published:
        return Ablate(direction)
    toward: str | float = 0.0 if place.toward == "0" else place.toward
    layers = list(place.layers(n_layers))
    return Ablate(direction, toward=toward, layers=layers, positions=All() - Index(0))


def way(place: Candidate, negative: str) -> str:
    """A candidate's way of ablation in words."""
    if place.as_published:
        return "toward 0 at every write to the stream"
    where = {
        "block": f"at layer {place.layer}",
        "three": f"from layer {place.layer} to {place.layer + 2}",
        "onward": f"from layer {place.layer} on",
        "everywhere": "at every layer",
    }[place.window]
    toward = "0" if place.toward == "0" else f"the {negative} mean"
    return f"toward {toward} {where}, but for the first token"


# -- private --


def _recorded(row: Any, number: int, path: str | Path) -> Candidate:
    missing = [name for name in _RECORDED if not isinstance(row, dict) or name not in row]
    if missing:
        raise DatasetError(f"{path}, row {number}: no {missing[0]!r}; a row needs {', '.join(_RECORDED)}.")
    for name in _RECORDED:
        if not isinstance(row[name], int if name in ("layer", "position") else int | float | None):
            raise DatasetError(f"{path}, row {number}, {name!r}: {row[name]!r} is not a number; correct it.")
    return Candidate(**{field: row[name] for name, field in _RECORDED.items()})
