"""Forward passes of a model: states at sites, and logits; never longer than what is asked for.

All reading goes through `run`, on which `activations` builds:

    model.run(tokens, read={site: callback}, logits=None | "last" | "all")

`callback(state)` gets the state `[batch, position, width]` of the padded batch on the model's device and
in its dtype, in the order of the forward pass; what it returns is ignored. Without logits only the base
model runs, cut after the deepest site asked for, without a cache and in inference mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from steerlab.errors import SteerlabError
from steerlab.models.backends import Transformers
from steerlab.models.batches import run_in_batches
from steerlab.models.check import SelfCheck, self_check
from steerlab.models.checkpoint import Checkpoint
from steerlab.models.exactness import equal
from steerlab.models.finite import all_finite, first_not_finite, largest, not_finite, require_scores
from steerlab.models.hooks import Frames, attach
from steerlab.models.modes import evaluating
from steerlab.models.prompts import Prompt, PromptsGiven, Tokens
from steerlab.models.shared_beginnings import beginnings, read_on
from steerlab.models.sites import Site

TOKEN_BUDGET = 8192
_CELLS = 2**24  # logits that exist at once: 64 MB


class Passes(Checkpoint):
    """A causal language model that can be run. For its attributes see `LanguageModel`."""

    def __init__(self, engine: Transformers, tokenizer: Any, *, name: str) -> None:
        super().__init__(engine, tokenizer, name=name)
        self.frames = Frames()
        #: Held by every call that runs the model through the toolkit.
        self.lock = threading.RLock()
        self._check: SelfCheck | None = None
        #: Whether rows may share a beginning that is read once; None until a batch was read in both ways.
        self._shares: bool | None = None

    def self_check(self) -> SelfCheck:
        """The load-time proof that every part was found; computed once."""
        if self._check is None:
            self._check = self_check(self)
        return self._check

    def run(
        self,
        tokens: Tokens,
        *,
        read: Mapping[Site, Callable[[Float[Tensor, "batch position width"]], object]] | None = None,
        at: tuple[Int[Tensor, " selected"], Int[Tensor, " selected"]] | None = None,
        logits: Literal["last", "all"] | None = None,
        behind: Sequence[Sequence[int]] | None = None,
    ) -> Tensor | None:
        """One forward pass of a tokenised batch, never longer than what is asked for.

        Inside `steering` the pass is steered and callbacks see the steered states. A state belongs to the
        callback: tensors the model would change later are copied first. Padding rows hold arbitrary values.

        Args:
            tokens: a batch of `tokenize`, on any device.
            read: for each site a function of the state `[batch, position, width]`.
            at: rows and columns of the tokens whose states are wanted; functions then get `[selected, width]`.
            logits: "last" for the logits after each prompt's last token `[batch, vocab]`, "all" for those
                at every column `[batch, position, vocab]`; `None` leaves the unembedding out and cuts the
                stack after the deepest site.
            behind: tokens written behind each row, read in the same pass: columns from the batch's width on. Edits take
                them as generated ones. Without logits.

        Returns:
            Float32 logits on the model's device, or `None`.

        Raises:
            SiteError: a site the model has not.
            SteerlabError: states at the selected tokens, or logits after last tokens, that are not finite.
        """
        read = dict(read or {})
        if logits is None:
            self._pass(tokens, read, at, None, behind)
            return None
        if behind is not None:
            raise SteerlabError("Written tokens are read again without logits; leave logits or behind out.")

        def unembedded(normed: Tensor) -> Tensor:
            if logits == "last":
                normed = normed[tokens.ends]
            return self.anatomy.logits_of(normed)[..., : self.vocab_size].float()

        found = self._pass(tokens, read, at, unembedded)
        if logits == "last" and found is not None and not all_finite(found):
            raise not_finite(self, tokens)
        return found

    def last_hidden(
        self, tokens: Tokens, rows: Int[Tensor, " selected"], columns: Int[Tensor, " selected"]
    ) -> Float[Tensor, "selected width"]:
        """What the unembedding reads at some tokens of a batch, for `logits_in_slices`; steered inside `steering`.

        The logits of many tokens are large (`[token, vocab]`), these states are small. What rows have in common at
        their beginning is read once (`shared_beginnings`).
        """
        if (shared := self._behind_beginnings(tokens, rows, columns)) is not None:
            return shared
        found = self._pass(tokens, {}, None, _taken(rows, columns))
        assert found is not None
        return found

    def _behind_beginnings(
        self, tokens: Tokens, rows: Int[Tensor, " selected"], columns: Int[Tensor, " selected"]
    ) -> Float[Tensor, "selected width"] | None:
        """`last_hidden` with the beginnings of rows read once; None where that saves little or cannot be done."""
        if (
            self._shares is False
            or self.frames.hooked
            or type(self.engine) is not Transformers
            or not len(columns)
        ):
            return None
        shared = beginnings(tokens, int(columns.min()))
        if shared is None:
            return None
        behind = read_on(self, tokens, shared)
        if behind is None:
            self._shares = False
            return None
        found = _taken(rows, columns - shared.column)(behind)
        if self._shares is None:
            some = (rows < 2).nonzero()[:, 0]  # enough to see a difference
            if not len(some):
                return None
            whole = self._pass(tokens.take([0, 1]), {}, None, _taken(rows[some], columns[some]))
            assert whole is not None
            self._shares = equal(self.dtype, found[some.to(found.device)], whole)
        return found if self._shares else None

    @property
    def rows_at_once(self) -> int:
        """How many states have their logits in memory at a time."""
        return max(1, _CELLS // self.vocab_size)

    def logits_in_slices(
        self, hidden: Float[Tensor, "selected width"]
    ) -> Iterator[tuple[slice, Float[Tensor, "row vocab"]]]:
        """Float32 logits of a few states of `last_hidden` at a time, with the slice of them; on the model's device.

        Raises:
            SteerlabError: logits that are not finite.
        """
        for start in range(0, len(hidden), self.rows_at_once):
            some = slice(start, start + self.rows_at_once)
            logits = self._slice_logits(hidden[some])
            require_scores(self.name, logits, start)
            yield some, logits

    def _slice_logits(self, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row vocab"]:
        with self.lock, torch.inference_mode(), evaluating(self.model):
            return self.anatomy.logits_of(hidden)[..., : self.vocab_size].float()

    def _pass(
        self,
        tokens: Tokens,
        read: Mapping[Site, Callable[[Tensor], object]],
        at: tuple[Tensor, Tensor] | None,
        finish: Callable[[Float[Tensor, "batch position d_model"]], Tensor] | None,
        behind: Sequence[Sequence[int]] | None = None,
    ) -> Tensor | None:
        """One pass; what `finish` makes of the final norm's output. Without it the stack ends at the deepest site."""
        self.engine.check()
        magnitudes: dict[Site, Tensor] = {}
        inputs = (tokens if behind is None else tokens.followed_by(behind)).to(self.device)
        at = None if at is None else (at[0].to(self.device), at[1].to(self.device))
        arguments: dict[str, Any] = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
        if self.takes_positions:
            arguments["position_ids"] = inputs.position_ids
        with self.lock, torch.inference_mode(), evaluating(self.model), ExitStack() as stack:
            written = None if behind is None else [len(ids) for ids in behind]
            stack.enter_context(self.frames.of(tokens, written=written))
            stack.enter_context(self.frames.watch(self.anatomy.base))
            for site, callback in read.items():
                stack.callback(self._attach(site, callback, at, magnitudes))
            if finish is None:
                stack.enter_context(self.anatomy.cut_after(self._deepest(read)))
            normed = self.anatomy.base(**arguments, use_cache=False, return_dict=True).last_hidden_state
            if (broken := first_not_finite(magnitudes)) is not None:
                raise not_finite(self, tokens, broken)
            return None if finish is None else finish(normed)

    def _attach(
        self,
        site: Site,
        callback: Callable[[Tensor], object],
        at: tuple[Tensor, Tensor] | None,
        magnitudes: dict[Site, Tensor],
    ) -> Callable[[], None]:
        def visit(state: Tensor) -> None:
            if at is None:
                callback(state)
                return
            selected = state[at[0].to(state.device), at[1].to(state.device)]
            magnitudes[site] = largest(selected)
            callback(selected)

        clone = at is None and site.name in self.self_check().changed_in_place
        return attach(self.anatomy.tap(site), self.frames, visit, clone=clone)

    def _deepest(self, sites: Mapping[Site, object]) -> int:
        if Site("ln_final_in") in sites or not sites:
            return self.n_layers - 1
        return max(site.layer or 0 for site in sites)

    def logits(
        self,
        texts: PromptsGiven | Tokens,
        *,
        last_only: bool = True,
        reduce: Callable[[Float[Tensor, "row vocab"]], Shaped[Tensor, "row ..."]] | None = None,
        token_budget: int = TOKEN_BUDGET,
    ) -> Shaped[Tensor, "batch ..."]:
        """Logits of the next token, float32 on the CPU.

        Args:
            texts: prompts or conversations in any number, or one tokenised batch.
            last_only: `[batch, vocab]` after each prompt's last token; otherwise `[batch, position, vocab]`
                at every column of one padded batch (of `tokenize(texts)` for prompts).
            reduce: what is wanted of the logits after last tokens, a few rows at a time, in place of the logits, whose
                number is large.
            token_budget: padded tokens in one forward pass; halved whenever memory runs out.
        """
        if reduce is not None and not isinstance(texts, Tokens):
            return self._reduced(self.as_prompts(texts), reduce, token_budget)
        if isinstance(texts, Tokens) or not last_only:
            tokens = texts if isinstance(texts, Tokens) else self.tokenize(texts)
            result = self.run(tokens, logits="last" if last_only else "all")
            assert result is not None
            return result.cpu()
        listed = self.as_prompts(texts)
        lengths = self.lengths(listed)
        found = torch.empty(len(lengths), self.vocab_size)

        def read(rows: list[int]) -> None:
            found[rows] = self.logits(self.tokenize([listed[row] for row in rows]).of_rows(rows))

        run_in_batches(read, lengths, token_budget)
        return found

    def _reduced(
        self,
        texts: Sequence[str | Prompt],
        reduce: Callable[[Float[Tensor, "row vocab"]], Shaped[Tensor, "row ..."]],
        token_budget: int,
    ) -> Shaped[Tensor, "batch ..."]:
        lengths = self.lengths(texts)
        parts: dict[int, Tensor] = {}

        def read(rows: list[int]) -> None:
            tokens = self.tokenize([texts[row] for row in rows], padding_side="right").of_rows(rows)
            hidden = self.last_hidden(tokens, *tokens.ends)
            found = [reduce(logits).cpu() for _, logits in self.logits_in_slices(hidden)]
            parts.update(zip(rows, torch.cat(found), strict=True))

        run_in_batches(read, lengths, token_budget)
        return torch.stack([parts[row] for row in range(len(lengths))])


def _taken(
    rows: Int[Tensor, " selected"], columns: Int[Tensor, " selected"]
) -> Callable[[Float[Tensor, "batch position width"]], Float[Tensor, "selected width"]]:
    """Picks the states of some tokens of a batch."""
    return lambda states: states[rows.to(states.device), columns.to(states.device)]
