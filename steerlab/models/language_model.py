"""`LanguageModel`: one causal language model with its tokenizer, read and steered at named sites.

A thin face over the parts of this room: the transformers module stays what it is, and hooks are placed for the time of
a call or a context only. What needs no forward pass is in `checkpoint`.

All reading goes through `run`, on which `activations` builds:

    model.run(tokens, read={site: callback}, logits=None | "last" | "all")

`callback(state)` gets the state `[batch, position, width]` of the padded batch on the model's device and
in its dtype, in the order of the forward pass; what it returns is ignored. Without logits only the base
model runs, cut after the deepest site asked for, without a cache and in inference mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from steerlab.errors import PromptError, kind_of
from steerlab.models import generation, streaming
from steerlab.models.backends import Transformers
from steerlab.models.batches import run_in_batches
from steerlab.models.check import SelfCheck, self_check
from steerlab.models.checkpoint import Checkpoint
from steerlab.models.edits import SteeringGiven
from steerlab.models.finite import (
    FiniteLogits,
    all_finite,
    first_not_finite,
    largest,
    not_finite,
    require_scores,
)
from steerlab.models.function_edit import StateFunction, edited
from steerlab.models.generation import Generation
from steerlab.models.hooks import Frames, attach
from steerlab.models.messages import is_conversation
from steerlab.models.modes import evaluating
from steerlab.models.positions import All, Selector
from steerlab.models.program import Applied
from steerlab.models.prompts import Conversation, Prompt, PromptsGiven, Template, Tokens
from steerlab.models.sites import Site, SitesGiven
from steerlab.models.steering import steering

TOKEN_BUDGET = 8192
NEW_TOKENS = 64
_CELLS = 2**24  # logits that exist at once: 64 MB


class LanguageModel(Checkpoint):
    """A causal language model and its tokenizer. Made by `load_model` (`sl.load`).

    Attributes:
        model: the transformers module, in evaluation mode.
        tokenizer: its tokenizer.
        name: hub name, folder or class.
        engine: the backend: what the module runs in.
        architecture: class name of the checkpoint.
        n_layers: blocks of the stack.
        d_model: width of the residual stream.
        n_heads: attention heads of a block.
        head_dim: width of one head's part of `z`.
        d_mlp: neurons of a dense layer's MLP (of one expert where all layers are mixtures).
        vocab_size: real tokens; rows that pad the unembedding are dropped everywhere.
        context: the longest input the model was made for, `None` without such a limit.
    """

    def __init__(self, engine: Transformers, tokenizer: Any, *, name: str) -> None:
        super().__init__(engine, tokenizer, name=name)
        self.frames = Frames()
        #: Held by every call that runs the model through the toolkit.
        self.lock = threading.RLock()
        self._check: SelfCheck | None = None

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

        Returns:
            Float32 logits on the model's device, or `None`.

        Raises:
            SiteError: a site the model has not.
            SteerlabError: states at the selected tokens, or logits after last tokens, that are not finite.
        """
        read = dict(read or {})
        if logits is None:
            self._pass(tokens, read, at, None)
            return None

        def unembedded(normed: Tensor) -> Tensor:
            if logits == "last":
                normed = normed[self._ends(tokens)]
            return self.anatomy.logits_of(normed)[..., : self.vocab_size].float()

        found = self._pass(tokens, read, at, unembedded)
        if logits == "last" and found is not None and not all_finite(found):
            raise not_finite(self, tokens)
        return found

    def last_hidden(
        self, tokens: Tokens, rows: Int[Tensor, " selected"], columns: Int[Tensor, " selected"]
    ) -> Float[Tensor, "selected width"]:
        """What the unembedding reads at some tokens of a batch, for `logits_in_slices`; steered inside `steering`.

        The logits of many tokens are large (`[token, vocab]`), these states are small.
        """
        found = self._pass(
            tokens, {}, None, lambda normed: normed[rows.to(normed.device), columns.to(normed.device)]
        )
        assert found is not None
        return found

    def logits_in_slices(
        self, hidden: Float[Tensor, "selected width"]
    ) -> Iterator[tuple[slice, Float[Tensor, "row vocab"]]]:
        """Float32 logits of a few states of `last_hidden` at a time, with the slice of them; on the model's device.

        Raises:
            SteerlabError: logits that are not finite.
        """
        step = max(1, _CELLS // self.vocab_size)
        for start in range(0, len(hidden), step):
            some = slice(start, start + step)
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
    ) -> Tensor | None:
        """One pass; what `finish` makes of the final norm's output. Without it the stack ends at the deepest site."""
        self.engine.check()
        magnitudes: dict[Site, Tensor] = {}
        inputs = tokens.to(self.device)
        at = None if at is None else (at[0].to(self.device), at[1].to(self.device))
        arguments: dict[str, Any] = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
        if self.takes_positions:
            arguments["position_ids"] = inputs.position_ids
        with self.lock, torch.inference_mode(), evaluating(self.model), ExitStack() as stack:
            stack.enter_context(self.frames.of(tokens))
            stack.enter_context(self.frames.watch(self.anatomy.base))
            for site, callback in read.items():
                stack.callback(self._attach(site, callback, at, magnitudes))
            if finish is None:
                stack.enter_context(self.anatomy.cut_after(self._deepest(read)))
            normed = self.anatomy.base(**arguments, use_cache=False, return_dict=True).last_hidden_state
            if (broken := first_not_finite(magnitudes)) is not None:
                raise not_finite(self, tokens, broken)
            return None if finish is None else finish(normed)

    def _ends(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Row and column of each prompt's last token."""
        columns = [tokens.column(row, length - 1) for row, length in enumerate(tokens.lengths)]
        return torch.arange(len(tokens)), torch.tensor(columns)

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
            tokens = self.tokenize([texts[row] for row in rows]).of_rows(rows)
            hidden = self.last_hidden(tokens, *self._ends(tokens))
            found = [reduce(logits).cpu() for _, logits in self.logits_in_slices(hidden)]
            parts.update(zip(rows, torch.cat(found), strict=True))

        run_in_batches(read, lengths, token_budget)
        return torch.stack([parts[row] for row in range(len(lengths))])

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is an iterable of texts
        self,
        texts: str | Prompt | Conversation,
        *,
        max_new_tokens: int = ...,
        do_sample: bool = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        num_beams: int = ...,
        assistant: LanguageModel | None = ...,
        token_budget: int = ...,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        texts: Iterable[str | Prompt | Conversation],
        *,
        max_new_tokens: int = ...,
        do_sample: bool = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        num_beams: int = ...,
        assistant: LanguageModel | None = ...,
        token_budget: int = ...,
    ) -> list[Generation]: ...

    def generate(
        self,
        texts: PromptsGiven,
        *,
        max_new_tokens: int = NEW_TOKENS,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        num_beams: int = 1,
        assistant: LanguageModel | None = None,
        token_budget: int = TOKEN_BUDGET,
    ) -> Generation | list[Generation]:
        """Continue each prompt, in prompt order; ends at any of the model's end tokens or its context.

        Args:
            texts: one text, prompt or conversation (a list of chat messages) gives one `Generation`, a list of them a
                list.
            max_new_tokens: the longest continuation.
            do_sample: sample from the (tempered, nucleus-cut) law; otherwise greedy.
            seed: with a prompt's number and a token's place it decides each draw; by default it is drawn itself, from
                torch's global state.
            num_beams: beams of transformers' beam search; its best text is given.
            assistant: a smaller model with the same tokenizer that proposes tokens (assisted decoding): the tokens of
                greedy decoding, prompt by prompt, in fewer passes. It runs unsteered; this model decides.
            token_budget: padded tokens, prompt and continuation, in one batch.

        Raises:
            SteerlabError: settings that mean no law; beams or an assistant while sampling, or both together.
        """
        written = generation.generate(
            self,
            self.as_prompts(texts),
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            num_beams=num_beams,
            assistant=assistant,
            token_budget=token_budget,
        )
        return written[0] if isinstance(texts, str | Prompt) or is_conversation(texts) else written

    def ask(
        self,
        question: str | Conversation,
        *,
        max_new_tokens: int = NEW_TOKENS,
        template: Template = "auto",
        system: str | None = None,
        **options: Any,
    ) -> str:
        """The model's answer to one question, asked in its own template: greedy, and steered inside `steering`.

        Args:
            question: a user's text, or the messages of a conversation.
            max_new_tokens: the longest answer.
            template: as in `instruction_prompt`.
            system: a system message.
            options: of `generate` ("do_sample", "temperature", "seed", ...).

        Example:
            >>> model.ask("How do I feed a horse?")  # doctest: +SKIP
            'Give it hay.'

        Raises:
            PromptError: something that is not one text, or as `instruction_prompt`.
        """
        if isinstance(question, str):
            prompt = self.instruction_prompt(question, template=template, system=system)
        elif is_conversation(question):
            prompt = self.conversation_prompt(question, template=template, system=system)
        else:
            raise PromptError(
                f"One question is asked as a text or a conversation, not as {kind_of(question)}; for several give "
                "model.generate a list of model.instruction_prompt(...)."
            )
        return self.generate(prompt, max_new_tokens=max_new_tokens, **options).text.strip()

    def stream(
        self,
        text: str | Prompt | Conversation,
        *,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Generator[str, None, Generation]:
        """Continue one prompt, handing over pieces of text as they are written; greedy ones are `generate`'s.

        Read it inside `steering` to have it steered. It may be left before its end; read to the end, the generator's
        value is the `Generation`.

        Example:
            >>> for piece in model.stream("The capital of France", max_new_tokens=8):  # doctest: +SKIP
            ...     print(piece, end="", flush=True)
        """
        return streaming.stream(
            self,
            self.as_prompts(text)[0],
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )

    def continued(
        self,
        tokens: Tokens,
        config: Any,
        assistant: LanguageModel | None = None,
        processors: Sequence[Any] = (),
    ) -> Int[Tensor, "batch position"]:
        """A left-padded batch and its continuations, by transformers' own `generate` with a `GenerationConfig`.

        What the configuration leaves unset has no effect: the checkpoint's recommendations are hidden meanwhile.
        `processors` see the scores behind transformers' own.
        """
        self.engine.check()
        inputs, own = tokens.to(self.device), self.model.generation_config
        helped = {} if assistant is None else {"assistant_model": assistant.model}
        with self.lock, torch.inference_mode(), evaluating(self.model), ExitStack() as stack:
            stack.enter_context(self.frames.of(tokens, config.eos_token_id or ()))
            self.model.generation_config = type(own)(eos_token_id=config.eos_token_id)
            try:
                output: Tensor = self.model.generate(
                    inputs.input_ids,
                    attention_mask=inputs.attention_mask,
                    generation_config=config,
                    logits_processor=[FiniteLogits(self, tokens), *processors],
                    **helped,
                )
            finally:
                self.model.generation_config = own
        return output

    def steering(self, *interventions: SteeringGiven) -> AbstractContextManager[Applied]:
        """Apply edits to every forward pass inside the context, in the order given.

        Edits come one by one or in a list; a direction alone is added once (`sl.Add(direction)`).

        Contexts nest. Hooks are gone afterwards, whatever happens inside. What the context gives
        (`with ... as applied`) counts what each edit did.

        Passes of asyncio tasks and of `asyncio.to_thread` that start inside are steered, too; those of a plain thread
        or an executor are not, unless it runs `contextvars.copy_context().run(...)`. A generator of yours that yields
        inside steers its reader until it is closed.

        Raises:
            SiteError: an edit names a site the model has not.
            SteeringError: an edit does not fit, or, on a regular exit, never acted.
        """
        return steering(self, interventions)

    def edit(
        self,
        sites: SitesGiven,
        function: StateFunction,
        *,
        positions: Selector = All(),  # noqa: B008  # frozen
    ) -> AbstractContextManager[Applied]:
        """Apply a function of your own to states inside the context, as `steering` applies an edit.

        Args:
            sites: where ("resid_post.5"), as `capture` takes them.
            function: from a state `[batch, position, width]`, float32, to one of the same shape and dtype. It sees
                every token of a pass; what it gives is kept at ``positions``.
            positions: which tokens.

        Example:
            >>> with model.edit("resid_post.5", lambda state: 0.5 * state):  # doctest: +SKIP
            ...     model.ask("How do I feed a horse?")

        Raises:
            SiteError: the model has no such site.
            SteeringError: the function gives another shape or dtype, or numbers that are not finite, or never ran.
        """
        return edited(self, sites, function, positions)

    def prompted(self, tokens: Tokens) -> AbstractContextManager[None]:
        """Raw calls of `model.model` inside the context run the prompts of `tokens`, a batch of `tokenize`.

        Edits then know the prompts' positions, spans and rows; through `logits`, `generate` and `capture`
        they always do.
        """
        return self.frames.of(tokens)
