"""Does one model's knowledge work in the other? States of the source's true run in the target's false run.

    R = mean NIE(source -> target) / mean NIE(target -> target)

over the peak cells of the target's own map (cells of subject and object tokens with at least half of the largest mean
effect), which are chosen on one half of the pairs and measured on the other, in turn. Controls at the same cells: the
source's states of another pair's true prompt, and the target's own states moved as far in a random direction.
Source: Du et al. (2025), section 3.3, which compares quantised maps instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from steerlab.activations import Mapped, RandomShift, Run, Source
from steerlab.models import LanguageModel, Site
from steerlab.record import Record
from steerlab.statistics import Estimate, bootstrap
from steerlab.studies._knowledge.layouts import TracingPair
from steerlab.studies._knowledge.maps import Traced, trace
from steerlab.studies._knowledge.pairs import Columns, TracingPairs
from steerlab.studies._knowledge.statistics import Published, halves_of, mean_map, published

Maps = Mapping[Site, Callable[[Tensor], Tensor]]
LEAST = 0.1  # a peak below a tenth of the whole effect is none
_LAST = "last token"


class Recovery(Record):
    """One direction of patching.

    place: "subject and object" or "last token". cells: (row, column) of the target's peaks. recovered: R, and what the
    two controls recover. published: the published statistics against the target's own map.
    """

    source: str
    target: str
    place: str
    cells: tuple[tuple[int, int], ...]
    recovered: Estimate
    shuffled: Estimate | None
    random: Estimate | None
    published: Published

    @property
    def above_controls(self) -> bool:
        """Whether the interval lies above both controls' values."""
        bars = [control.value for control in (self.shuffled, self.random) if control is not None]
        return bool(self.recovered.low > max(bars, default=0.0))


# Long: a third or more of it documents its options.
def recover(
    source: LanguageModel,
    target: LanguageModel,
    pairs: TracingPairs,
    own: Traced,
    *,
    names: tuple[str, str],
    maps: Maps | None = None,
    columns: Columns = "roles",
    seed: int = 0,
    kept_in: Path | None = None,
) -> tuple[list[Recovery], Traced]:
    """Patch the source's true runs into the target's false runs.

    Args:
        own: the target's own map of the same pairs.
        names: of source and target, for the result.
        maps: for each site of the target a map of the source's states; by default they are put in as they are.

    Returns:
        Recovery at the knowledge cells and at the last token (where the target has a peak), and the whole map.
    """
    told = f"{names[0]} into {names[1]}"
    clean = Run(source, [pair.true for pair in pairs.pairs])

    def traced(states: Source, what: str, only: Callable[[int, str], bool] | None = None) -> Traced:
        return trace(
            target,
            pairs,
            states,
            columns=columns,
            only=only,
            answers=own.answers,
            kept_in=kept_in,
            progress=what,
        )

    crossed = traced(_carried(clean, maps), f"patching {told}")
    halves = halves_of(pairs.clusters, seed)
    columns_of = {"subject and object": own.knowledge, _LAST: (own.columns.index(_LAST),)}
    peaks = {
        place: {half: _peaks(own.only(halves[1 - half]), wanted) for half in (0, 1)}
        for place, wanted in columns_of.items()
    }
    union = np.any([mask for both in peaks.values() for mask in both.values()], axis=0)
    order = _others(pairs)
    controls: dict[str, Traced] = {}
    if union.any():
        false = Run(target, [pair.false for pair in pairs.pairs])
        sources: dict[str, Source] = {
            "shuffled": _carried(clean.of(order), maps),
            "random": RandomShift(_carried(clean, maps), false, seed),
        }
        inside = _among(union, own.columns)
        controls = {kind: traced(states, f"{told}: {kind}", inside) for kind, states in sources.items()}
    known = np.array([other != row for row, other in enumerate(order)])
    ratios = _Ratios(own, halves, pairs, seed)
    rows = [
        ratios.recovery(names, place, both, crossed, controls, known)
        for place, both in peaks.items()
        if all(mask.any() for mask in both.values())
    ]
    return [row for row in rows if row is not None], crossed


# -- private, in the order they are called --


def _carried(run: Run, maps: Maps | None) -> Source:
    return run if maps is None else Mapped(run, maps, name="aligned")


def _peaks(own: Traced, columns: Sequence[int]) -> Bool[np.ndarray, "row column"]:
    """Cells of some columns with at least half of their largest mean effect."""
    mean = mean_map(own.nie)
    allowed = np.zeros(mean.shape, dtype=bool)
    allowed[np.ix_(own.layers, columns)] = True
    inside = np.where(allowed & np.isfinite(mean), mean, -np.inf)
    top = float(inside.max()) if columns else -np.inf
    chosen: Bool[np.ndarray, "row column"] = inside >= (0.5 * top if top >= LEAST else np.inf)
    return chosen


def _others(pairs: TracingPairs) -> list[int]:
    """For every pair another one of the same layout; itself where there is none.

    Preferred is one of the same topic about another object: its subject is likely a wrong one here.
    """
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for row, pair in enumerate(pairs.pairs):
        groups.setdefault((pair.first, pair.roles), []).append(row)
    order = list(range(len(pairs)))
    for rows in groups.values():
        for at, row in enumerate(rows):
            later = [
                other for other in (*rows[at + 1 :], *rows[:at]) if pairs[other].cluster != pairs[row].cluster
            ]
            likeness = {other: _likeness(pairs[row], pairs[other]) for other in later}
            order[row] = min(later, key=likeness.__getitem__, default=row)
    return order


def _likeness(pair: TracingPair, other: TracingPair) -> tuple[bool, bool]:
    """Sorts what is about another object before what is not, and then the same topic before others."""
    objects = [prompt.text[slice(*prompt.spans["object"])] for prompt in (pair.true, other.true)]
    return objects[0] == objects[1], pair.topic != other.topic


def _among(cells: Bool[np.ndarray, "row column"], names: Sequence[str]) -> Callable[[int, str], bool]:
    return lambda row, name: bool(cells[row, names.index(name)])


@dataclass(frozen=True)
class _Ratios:
    """Mean effects of patched states over mean effects of the target's own, each half at the other half's peaks."""

    own: Traced
    halves: Sequence[NDArray[np.int64]]
    pairs: TracingPairs
    seed: int

    def recovery(
        self,
        names: tuple[str, str],
        place: str,
        peaks: Mapping[int, NDArray[np.bool_]],
        crossed: Traced,
        controls: Mapping[str, Traced],
        known: NDArray[np.bool_],
    ) -> Recovery | None:
        """What the source's states recover at a place, beside the controls; `known`: pairs that have another one."""
        everyone, rows = np.ones(len(self.pairs), dtype=bool), list(self.own.layers)
        recovered = self.of(crossed, everyone, peaks)
        if recovered is None:
            return None
        return Recovery(
            source=names[0],
            target=names[1],
            place=place,
            cells=tuple((int(row), int(column)) for row, column in np.argwhere(peaks[0] | peaks[1])),
            recovered=recovered,
            shuffled=self.of(controls["shuffled"], known, peaks),
            random=self.of(controls["random"], everyone, peaks),
            published=published(
                mean_map(self.own.raw[:, rows]), mean_map(crossed.raw[:, rows]), self.own.knowledge
            ),
        )

    def of(
        self, patched: Traced, pairs: NDArray[np.bool_], peaks: Mapping[int, NDArray[np.bool_]]
    ) -> Estimate | None:
        """The ratio over some pairs; None where fewer than two of them have an effect at the peaks."""
        own, n = self.own, len(self.pairs)
        above, below = np.full(n, np.nan), np.full(n, np.nan)
        for half, rows in enumerate(self.halves):
            effects, owned = patched.nie[rows][:, peaks[half]], own.nie[rows][:, peaks[half]]
            both = np.isfinite(effects) & np.isfinite(owned)
            above[rows] = _row_means(np.where(both, effects, np.nan))
            below[rows] = _row_means(np.where(both, owned, np.nan))
        kept = np.isfinite(above) & np.isfinite(below) & pairs
        if kept.sum() < 2:
            return None

        def statistic(top: Float[np.ndarray, " pair"], bottom: Float[np.ndarray, " pair"]) -> float:
            return float(top.sum() / bottom.sum())

        clusters = self.pairs.clusters[kept]
        return bootstrap(statistic, above[kept], below[kept], clusters=clusters, seed=self.seed, draws=1000)


def _row_means(values: Float[np.ndarray, "pair cell"]) -> Float[np.ndarray, " pair"]:
    present = np.isfinite(values)
    total = present.sum(axis=1)
    sums = np.where(present, values, 0.0).sum(axis=1)
    means: Float[np.ndarray, " pair"] = np.divide(
        sums, total, out=np.full(len(values), np.nan), where=total > 0
    )
    return means
