"""What every (layer, token) of a false prompt's run would say about the answer if it held the true prompt's state.

For each pair the true run's state at one site and token is put into the false run, and the logit difference
m = logit(TRUE) - logit(FALSE) is read after the last token. With LO_T and LO_F those of the unpatched runs, the
normalised indirect effect of a pair is NIE = (m - LO_F) / (LO_T - LO_F): 0 leaves the false answer, 1 gives the true
run's. Source: Du et al. (2025), section 3, which averages m itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from steerlab.activations import Cell, Cost, LogitDifference, PatchSweep, Run, Source, StatePatch
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Site
from steerlab.models.laws import exact
from steerlab.statistics import Estimate, proportion
from steerlab.studies._knowledge.layouts import ROLES
from steerlab.studies._knowledge.pairs import Columns, TracingPairs, answer_ids

Row = tuple[Site, tuple[int, ...]]
HEADS = "heads"


@dataclass(frozen=True, eq=False)
class PairAnswers:
    """A model's unpatched answers to the pairs: logit differences after the true and the false prompt [pair]."""

    true: Float[np.ndarray, " pair"]
    false: Float[np.ndarray, " pair"]

    @property
    def right(self) -> Bool[np.ndarray, " pair"]:
        """Pairs of which both sides are answered right: LO_T > 0 > LO_F."""
        return (self.true > 0) & (self.false < 0)

    def accuracy(self, side: str, clusters: NDArray[np.int64]) -> Estimate:
        """Share right of the "true" prompts, of the "false" ones, or of "both" together."""
        hits = {"true": self.true > 0, "false": self.false < 0, "both": self.right}[side]
        return proportion(hits, clusters=clusters)


@dataclass(frozen=True, eq=False)
class Traced:
    """The effects of one sweep.

    Attributes:
        rows: what a row of the map patches: a site and, at `z`, the heads.
        columns: roles of tokens, or single tokens.
        raw: logit differences under every patch, tokens of one role averaged; NaN where a pair has none.
        answers: the model's unpatched answers.
        cost: token-layers that the sweep took.
        mode: how much of every run could be left out.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    raw: Float[np.ndarray, "pair row column"]
    answers: PairAnswers
    cost: Cost
    mode: str

    @property
    def nie(self) -> Float[np.ndarray, "pair row column"]:
        """Normalised indirect effects."""
        low, high = self.answers.false[:, None, None], self.answers.true[:, None, None]
        effects: Float[np.ndarray, "pair row column"] = (self.raw - low) / (high - low)
        return effects

    @property
    def layers(self) -> tuple[int, ...]:
        """Rows other than the embedding's, which holds what its token says in any model."""
        return tuple(at for at, (site, _) in enumerate(self.rows) if site.name != "embed")

    @property
    def knowledge(self) -> tuple[int, ...]:
        """Columns of subject and object tokens."""
        return tuple(
            at for at, name in enumerate(self.columns) if name.split(" ")[-1] in ("subject", "object")
        )

    def only(self, rows: Sequence[int] | NDArray[np.int64]) -> Traced:
        """Some of the pairs."""
        chosen = np.asarray(rows)
        return replace(
            self,
            raw=self.raw[chosen],
            answers=PairAnswers(self.answers.true[chosen], self.answers.false[chosen]),
        )


def answer(model: LanguageModel, pairs: TracingPairs) -> PairAnswers:
    """The model's own answers to both prompts of every pair."""
    true, false = answer_ids(model, pairs.answers)

    def difference(prompts: Sequence[object]) -> Float[np.ndarray, " pair"]:
        logits = model.logits(list(prompts), reduce=lambda logits: exact(logits[:, [true, false]]))  # type: ignore[arg-type]
        difference: Float[np.ndarray, " pair"] = (logits[:, 0] - logits[:, 1]).numpy()
        return difference

    return PairAnswers(
        difference([pair.true for pair in pairs.pairs]), difference([pair.false for pair in pairs.pairs])
    )


def map_rows(model: LanguageModel, kind: str = "resid_post") -> list[Row]:
    """The rows of a map: a site at every layer, or with "heads" every single head.

    The residual stream begins with the embedding: what a subject carries may have left it behind the first block.
    """
    if kind == HEADS:
        return [(site, (head,)) for site in model.sites("z") for head in range(model.n_heads)]
    sites = model.sites(kind)
    return [(site, ()) for site in ([Site("embed"), *sites] if kind == "resid_post" else sites)]


def trace(
    model: LanguageModel,
    pairs: TracingPairs,
    source: Source | None = None,
    *,
    kind: str = "resid_post",
    columns: Columns = "roles",
    only: Callable[[int, str], bool] | None = None,
    answers: PairAnswers | None = None,
    kept_in: Path | None = None,
    progress: str | None = None,
) -> Traced:
    """Patch every traced token of every pair at every layer, one at a time.

    Args:
        source: the states put in; by default the model's own run on the true prompts.
        kind: a site's name, or "heads" for each head's part of `z`.
        columns: "roles" averages tokens that stand for the same thing; "tokens" keeps every token, which needs pairs of
            one layout.
        only: which cells are patched, by row number and column; the others are NaN.
        answers: the model's unpatched answers where they are known already.
        kept_in: a folder in which an interrupted sweep can be gone on with.

    Raises:
        SteerlabError: "tokens" of pairs with different layouts.
        SiteError: a site the model has not.
    """
    names = column_names(pairs, columns)
    rows = map_rows(model, kind)
    states = source or Run(model, [pair.true for pair in pairs.pairs])
    cells: list[list[Cell]] = []
    places: list[list[tuple[int, int]]] = []
    for pair in pairs.pairs:
        mine = [
            (number, column, StatePatch(site, (position,), states, heads=heads))
            for number, (site, heads) in enumerate(rows)
            for at, (position, role) in enumerate(zip(pair.positions, pair.roles, strict=True))
            for column in [names.index(role) if columns == "roles" else at]
            if only is None or only(number, names[column])
        ]
        cells.append([(patch,) for _, _, patch in mine])
        places.append([(number, column) for number, column, _ in mine])
    true, false = answer_ids(model, pairs.answers)
    n = len(pairs)
    sweep = PatchSweep(
        model, [pair.false for pair in pairs.pairs], cells, LogitDifference([true] * n, [false] * n)
    )
    swept = sweep.run(progress=progress, kept_in=kept_in)
    raw = _averaged(swept.values, places, (n, len(rows), len(names)))
    return Traced(tuple(rows), names, raw, answers or answer(model, pairs), swept.cost, swept.mode)


def column_names(pairs: TracingPairs, columns: Columns) -> tuple[str, ...]:
    """The columns of a map of these pairs."""
    if columns == "roles":
        present = {role for pair in pairs.pairs for role in pair.roles}
        return tuple(role for role in ROLES if role in present)
    layouts = {pair.roles for pair in pairs.pairs}
    if len(layouts) > 1:
        raise SteerlabError(
            f"The pairs have {len(layouts)} layouts of tokens, so single tokens cannot be averaged; take pairs of one "
            "(`of_one_layout`), or columns='roles'."
        )
    (roles,) = layouts
    counted: list[str] = []
    for at, role in enumerate(roles):
        alike = [place for place, other in enumerate(roles) if other == role]
        # The role stands last, where `knowledge` looks for it.
        counted.append(role if len(alike) == 1 else f"{alike.index(at) + 1} {role}")
    return tuple(counted)


def of_one_layout(pairs: TracingPairs) -> TracingPairs:
    """The pairs of the commonest layout."""
    layouts = [pair.roles for pair in pairs.pairs]
    commonest = max(dict.fromkeys(layouts), key=layouts.count)
    return pairs.only([row for row, layout in enumerate(layouts) if layout == commonest])


def _averaged(
    values: Float[np.ndarray, "pair cell"],
    places: Sequence[Sequence[tuple[int, int]]],
    shape: tuple[int, int, int],
) -> Float[np.ndarray, "pair row column"]:
    sums, counts = np.zeros(shape), np.zeros(shape)
    for number, mine in enumerate(places):
        if mine:
            at = np.array(mine).T
            np.add.at(sums[number], tuple(at), values[number, : len(mine)])
            np.add.at(counts[number], tuple(at), 1)
    means: Float[np.ndarray, "pair row column"] = np.divide(
        sums, counts, out=np.full(shape, np.nan), where=counts > 0
    )
    return means
