"""Patch sweeps: what every (site, position) of a run carries, each cell computed only from where it differs.

    one = [(StatePatch(Site("resid_post", l), (p,), clean),) for l in layers for p in positions]
    cells = [one for prompt in prompts]
    result = PatchSweep(model, prompts, cells, LogitDifference(true, false)).run(progress="tracing")
    result.values    # [prompt, cell]

Patching position p behind block l reaches positions >= p of later blocks alone. So each prompt is run once, with the
streams between its blocks and its keys and values kept; a cell runs the blocks after l over the tokens from p on, as
one row of a batch of like cells; the unembedding takes the last token, and of its rows those that the measure needs.
For L layers, S positions at a prompt's end of N tokens the token-layers of all L x S cells at resid_post are about

    S (S + 1) / 2 x L (L - 1) / 2    against    S N x L L    of whole passes,

about 4 N / S times fewer. `PatchSweep.cost` counts them as they run. For every block one run without a patch goes along
and must give its own states. In families where it does not, whole passes are made, and the log says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from steerlab.activations._kept import KeptSweep, UnnamedError
from steerlab.activations._patch_plan import Batch, Chunk, Item, batches_of
from steerlab.activations._suffix import WHOLE, Kept, Mode, finish, keep
from steerlab.activations.attribution import Job, PatchAttribution
from steerlab.activations.measures import PatchMeasure
from steerlab.activations.patches import Cell, RowPatches, begins_at, check, starts_at
from steerlab.activations.sources import identity_of, load_sources
from steerlab.batching import tokens_of_a_batch
from steerlab.errors import PromptError, SteerlabError
from steerlab.models import LanguageModel, Prompt, Tokens
from steerlab.models.batches import batches_by_length, fits
from steerlab.models.exactness import STRANGE, equal
from steerlab.models.memory import is_out_of_memory
from steerlab.progress import track

TOKEN_BUDGET = 8192
_SAVED_EVERY = 20.0  # seconds
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """Token-layers: tokens times blocks that ran.

    Attributes:
        patched: of the cells, and of the unpatched runs that check exactness.
        kept: of the plain runs they start from.
        naive: what one whole pass a cell takes.
    """

    patched: int = 0
    kept: int = 0
    naive: int = 0

    @property
    def saving(self) -> float:
        """How many times fewer token-layers than the naive sweep."""
        return self.naive / max(self.patched + self.kept, 1)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.patched + other.patched, self.kept + other.kept, self.naive + other.naive)


@dataclass(frozen=True, eq=False)
class Patched:
    """Some cells as they are finished: their prompts, their numbers, and what was measured [cell, ...]."""

    prompts: Int[np.ndarray, " cell"]
    cells: Int[np.ndarray, " cell"]
    values: Float[np.ndarray, " cell *value"]


@dataclass(frozen=True, eq=False)
class PatchResult:
    """A finished sweep.

    Attributes:
        values: [prompt, cell, ...]; NaN where a prompt has fewer cells than another.
        plain: [prompt, ...] of the runs without any cell.
        cost: what this run of the sweep took.
        mode: "suffix", or "restart" or "whole" where the family allowed no more.
    """

    values: Float[np.ndarray, "prompt cell *value"]
    plain: Float[np.ndarray, " prompt *value"]
    cost: Cost
    mode: Mode


class PatchSweep:
    """Every cell of every prompt.

    Args:
        model: runs under `model.steering(...)` are swept as they are steered.
        prompts: the runs that are patched. A batch is made of prompts with equally many tokens.
        cells: for each prompt what its patched runs change, each a tuple of patches (or one patch).
        measure: what is measured after the last token.
        base: for each prompt patches that all of its runs are under, the plain one too (a corruption).
        token_budget: tokens of one batch that are run (at least one row); halved when memory runs out.
        whole: make whole passes whatever the family (the plain loop, in batches).

    Raises:
        PromptError, SiteError, SteeringError: a cell that a prompt, the model or a source cannot have.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[str | Prompt],
        cells: Sequence[Sequence[Cell]],
        measure: PatchMeasure,
        *,
        base: Sequence[Cell] | None = None,
        token_budget: int = TOKEN_BUDGET,
        whole: bool = False,
    ) -> None:
        if isinstance(prompts, str | Prompt) or not prompts:
            raise PromptError(
                "Prompts come as a list with at least one prompt; put a single one in brackets."
            )
        if model.is_remote:
            raise SteerlabError(
                f"The weights of {model.name} are on a server, and a sweep takes runs up between blocks; load it "
                "without remote."
            )
        if len(cells) != len(prompts) or (base is not None and len(base) != len(prompts)):
            raise PromptError(
                f"A sweep of {len(prompts)} prompts needs the cells of each, not {len(cells)} lists; give one a prompt."
            )
        self.model, self.prompts, self.measure = model, list(prompts), measure
        self.cells, self.base = [list(own_cells) for own_cells in cells], list(base or [()] * len(prompts))
        self.lengths = model.lengths(self.prompts)
        self.cost = Cost()
        self.mode: Mode = "whole" if whole else "suffix"
        self.plain: NDArray[np.float64] | None = None
        self._budget = tokens_of_a_batch(token_budget)
        self._proved: set[int] = set()  # blocks from which runs were taken up exactly
        for number, own_cells in enumerate(self.cells):
            for cell in (*own_cells, *([self.base[number]] if self.base[number] else [])):
                check(model, cell, number, self.lengths[number])

    def results(self, done: NDArray[np.bool_] | None = None) -> Iterator[Patched]:
        """Cells as they are finished, those that are `done` [prompt, cell] left out."""
        with torch.inference_mode():
            for chunk in batches_by_length(self.lengths, self._budget, stretch=1):
                yield from self._chunk(chunk, done)

    def run(self, *, progress: str | None = None, kept_in: Path | None = None) -> PatchResult:
        """All cells, with a progress bar.

        Args:
            kept_in: a folder; what is finished is stored there every few seconds and taken up again by the next sweep
                of the same models in the same dtype on the same kind of device, prompts, cells, sources, measure and
                code. Under interventions (`model.steering`) nothing is kept, and the log says so.

        Raises:
            RunError: a stored part that cannot be read, or a folder that cannot be written.
        """
        width = max(map(len, self.cells))
        values = np.full((len(self.prompts), width), np.nan)
        done = np.zeros((len(self.prompts), width), dtype=bool)
        file = None if kept_in is None else self._file(kept_in)
        if file is not None and (stored := file.read()) is not None:
            values, done = stored
        total = sum(map(len, self.cells)) - int(done.sum())
        saved = time.monotonic()
        try:
            for patched in self._counted(self.results(done), progress, total):
                if patched.values.ndim > 1 and values.ndim == 2:
                    values = np.full((*values.shape, *patched.values.shape[1:]), np.nan)
                values[patched.prompts, patched.cells] = patched.values
                done[patched.prompts, patched.cells] = True
                if file is not None and time.monotonic() - saved > _SAVED_EVERY:
                    file.write(values, done)
                    saved = time.monotonic()
        finally:
            if file is not None:
                file.write(values, done)
        assert self.plain is not None
        return PatchResult(values, self.plain, self.cost, self.mode)

    def attribution(self, *, progress: str | None = None) -> PatchAttribution:
        """A preview of `run`: every cell to first order, from one forward and one backward pass a batch.

        See `steerlab.activations.attribution` for what it leaves out; ``.against(sweep.run())`` measures it.

        Raises:
            SteerlabError: the measure gives several numbers a run or has no gradient; or one prompt does not fit in
                memory.
        """
        job = Job(self.model, self.prompts, self.cells, self.base, self.measure)
        return job.done(self.lengths, self._budget, progress)

    # -- private, in the order they are called --

    def _counted(self, results: Iterator[Patched], progress: str | None, total: int) -> Iterator[Patched]:
        """The results, a bar moving on by one for each cell."""
        if progress is None:
            yield from results
            return
        bar = iter(track(range(total), progress, total))
        for patched in results:
            for _ in patched.cells:
                next(bar, None)
            yield patched
        for _ in bar:
            pass

    def _file(self, folder: Path) -> KeptSweep | None:
        """The file of this sweep, named by all that the values depend on; None where something of it has no name."""
        cells = [*self.base, *chain.from_iterable(self.cells)]
        try:
            parts = [
                self.measure.identity(),
                repr(self.model.token_ids(self.prompts)),
                repr([len(own_cells) for own_cells in self.cells]),
                identity_of(cells),
            ]
            return KeptSweep.of(folder, self.model, parts)
        except UnnamedError as error:
            _log.warning("%s", error)
            return None

    def _chunk(self, numbers: Chunk, done: NDArray[np.bool_] | None) -> Iterator[Patched]:
        """The cells of some prompts of one length; begun anew, with less left out, where a run proves inexact."""
        left = [
            (row, cell)
            for row, number in enumerate(numbers)
            for cell in range(len(self.cells[number]))
            if done is None or not done[number, cell]
        ]
        tokens = self.model.tokenize([self.prompts[number] for number in numbers])
        self._load(numbers, left)
        self.cost += Cost(naive=len(left) * tokens.width * self.model.n_layers)
        inexact = True
        while inexact:
            inexact = False
            whole, suffix = self.mode == "whole", self.mode == "suffix"
            cells = {item: self._cell(numbers, item) for item in left}
            starts = {item: WHOLE if whole else starts_at(cells[item], self.model.n_layers) for item in left}
            columns = {item: begins_at(cells[item]) if suffix else 0 for item in left}
            kept = self._keep(numbers, tokens, sorted(set(starts.values())), min(columns.values(), default=0))
            batches = list(
                batches_of(left, starts, columns, (self.model.n_layers, tokens.width), self._budget)
            )
            try:
                if suffix and left and kept.keys_values is None:
                    raise _Inexact
                for batch, prove in zip(batches, self._to_prove(batches), strict=True):
                    for patched, items in self._halving(numbers, kept, batch, prove):
                        left = [item for item in left if item not in items]
                        yield patched
            except _Inexact:
                inexact = True
                self.mode, self._proved = ("restart" if suffix else "whole"), set()
                _log.warning(_explained(self.model, self.mode))

    def _to_prove(self, batches: Sequence[Batch]) -> list[bool]:
        """Whether a batch carries a run without a patch, which must come out as it was kept: one for each start."""
        wanted = []
        for start in dict.fromkeys(batch.start for batch in batches):
            own_batches = [number for number, batch in enumerate(batches) if batch.start == start]
            if self.mode != "whole" and start not in self._proved:
                wanted.append(own_batches[start % len(own_batches)])
                self._proved.add(start)
        return [number in wanted for number in range(len(batches))]

    def _cell(self, numbers: Chunk, item: tuple[int, int]) -> Cell:
        return self.cells[numbers[item[0]]][item[1]]

    def _load(self, numbers: Chunk, items: Sequence[tuple[int, int]]) -> None:
        """Tell every source which of its states will be asked for."""
        cells = [self._cell(numbers, item) for item in items]
        load_sources([*cells, *(self.base[number] for number in numbers)], numbers)

    def _keep(self, numbers: Chunk, tokens: Tokens, starts: Sequence[int], first: int) -> Kept:
        """The plain runs of a chunk."""
        edit = RowPatches(self.model, [(number, self.base[number], ()) for number in numbers], WHOLE, 0)
        cached = self.mode == "suffix"
        kept = keep(self.model, tokens, starts, first, edit if edit.sites else None, cached=cached)
        self.cost += Cost(kept=len(numbers) * tokens.width * self.model.n_layers)
        self._note_plain(numbers, kept)
        return kept

    def _note_plain(self, numbers: Chunk, kept: Kept) -> None:
        values = self._measured(kept.normed, torch.tensor(numbers)).double().cpu().numpy()
        if self.plain is None:
            self.plain = np.full((len(self.prompts), *values.shape[1:]), np.nan)
        self.plain[numbers] = values

    def _measured(self, normed: Float[Tensor, "row d_model"], prompts: Int[Tensor, " row"]) -> Tensor:
        """What is measured, from the unembedding rows that it takes."""
        if self.measure.tokens is None:
            slices = self.model.logits_in_slices(normed)
            return torch.cat([self.measure(logits, prompts[some]) for some, logits in slices])
        wanted = self.measure.tokens[prompts]
        ids, place = wanted.unique(return_inverse=True)
        logits = self.model.anatomy.logits_of(normed, ids)
        return self.measure(logits.gather(1, place.to(logits.device)), prompts)

    def _halving(
        self, numbers: Chunk, kept: Kept, batch: Batch, prove: bool
    ) -> Iterator[tuple[Patched, frozenset[Item]]]:
        """One batch with what it finished, in halves where memory runs out."""
        found: list[Patched] = []
        if fits(lambda: found.append(self._batch(numbers, kept, batch, prove))):
            tokens = (len(batch.items) + prove) * (kept.tokens.width - batch.column)
            self.cost += Cost(patched=tokens * (self.model.n_layers - max(batch.start, 0)))
            yield found[0], frozenset(batch.items)
            return
        if len(batch.items) + prove < 2:
            row = batch.items[0][0] if batch.items else 0
            raise SteerlabError(
                f"Prompt {numbers[row]} with {kept.tokens.width} tokens does not fit in the memory of "
                f"{self.model.device} even alone; shorten it or load the model in a smaller dtype."
            )
        # With one item the first half is the proof alone.
        half = len(batch.items) // 2
        yield from self._halving(numbers, kept, replace(batch, items=batch.items[:half]), prove)
        yield from self._halving(numbers, kept, replace(batch, items=batch.items[half:]), False)

    def _batch(self, numbers: Chunk, kept: Kept, batch: Batch, prove: bool) -> Patched:
        rows = [row for row, _ in batch.items]
        named = [
            (numbers[row], self.base[numbers[row]], self._cell(numbers, (row, cell)))
            for row, cell in batch.items
        ]
        plain = rows[0] if rows else 0
        unpatched = [(numbers[plain], self.base[numbers[plain]], ())] if prove else []
        edit = RowPatches(self.model, [*named, *unpatched], batch.start, batch.column)
        index = torch.tensor([*rows, plain] if prove else rows)
        try:
            normed = finish(self.model, kept, index, batch.start, batch.column, edit)
        except STRANGE as error:
            if self.mode == "whole" or not prove or is_out_of_memory(error):
                raise
            raise _Inexact from error  # a stack that hands more than the stream from block to block
        if prove:
            normed, unpatched_normed = normed[:-1], normed[-1]
            if not equal(self.model.dtype, unpatched_normed, kept.normed[plain]):
                raise _Inexact
        prompts = torch.tensor([number for number, _, _ in named], dtype=torch.long)
        values = self._measured(normed, prompts).double().cpu().numpy()
        return Patched(prompts.numpy(), np.array([cell for _, cell in batch.items], dtype=np.int64), values)


class _Inexact(Exception):
    """A run that was taken up without a patch did not give its own states."""


def _explained(model: LanguageModel, mode: Mode) -> str:
    what = {
        "restart": "keeps more of earlier tokens than keys and values, so patched runs begin at the first token",
        "whole": "cannot be taken up between two blocks, so every patched run is a whole pass",
        "suffix": "",
    }
    return f"{model.architecture} {what[mode]}."
