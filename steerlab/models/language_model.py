"""`LanguageModel`: one causal language model with its tokenizer, read and steered at named sites.

A thin face over the parts of this room: the transformers module stays what it is, and hooks are placed for the time of
a call or a context only. How a pass is run stands in `passes`, what needs no forward pass in `checkpoint`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, overload

import torch
from jaxtyping import Int
from torch import Tensor

from steerlab.errors import PromptError, kind_of
from steerlab.models import generation, streaming
from steerlab.models.edits import SteeringGiven
from steerlab.models.finite import FiniteLogits
from steerlab.models.function_edit import StateFunction, edited
from steerlab.models.generation import Generation, Watch
from steerlab.models.messages import is_conversation
from steerlab.models.modes import evaluating
from steerlab.models.passes import TOKEN_BUDGET, Passes
from steerlab.models.positions import All, Selector
from steerlab.models.program import Applied
from steerlab.models.prompts import Conversation, Prompt, PromptsGiven, Template, Tokens
from steerlab.models.sites import SitesGiven
from steerlab.models.steering import steering
from steerlab.registry import registry_of

NEW_TOKENS = 64


class LanguageModel(Passes):
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
        watch: Watch | None = ...,
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
        watch: Watch | None = ...,
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
        watch: Watch | None = None,
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
            watch: is told the numbers of some prompts, a new token's place behind them, and the scores [row, vocab] by
                which it is chosen; rows that have ended go along.

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
            watch=watch,
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

    def watch(self, *probes: Any, alarm: Any = None) -> AbstractContextManager[Any]:
        """Score every token that is read or written inside the context by one probe or several (`monitoring`).

        What the context gives (`with ... as seen`) holds the scores text by text, and where an alarm sounded. Texts may
        be generated, streamed or chatted, in any batch, steered or not.

        Args:
            probes: directions, each with one vector at one site (or a best site). A score is x·v̂.
            alarm: `sl.Alarm(rate=0.05, per="answer")`, for probes of `sl.calibrate`.

        Example:
            >>> with model.watch(probe, alarm=sl.Alarm(rate=0.05)) as seen:  # doctest: +SKIP
            ...     model.generate(prompts)
            >>> seen.alarms  # doctest: +SKIP

        Raises:
            SteeringError: a probe of several vectors, an alarm without calibration, or a search that moves rows.
            DirectionError: a probe of another model.
        """
        watched: AbstractContextManager[Any] = registry_of("monitors")["watch"](self, probes, alarm=alarm)
        return watched

    def reread(
        self,
        written: Generation | Sequence[Generation],
        sites: SitesGiven = "resid_post",
        *,
        positions: Selector = All(),  # noqa: B008  # frozen
    ) -> Any:
        """States of what was written, prompt and written tokens in one pass; `sl.capture` takes generations as well.

        The tokens are those that were written, never the text tokenised again, and a selector means what it means while
        the model writes: `Generated()` is every written token. Inside `steering` the states are steered as they were.

        Returns:
            `Activations` with a row for each selected token.

        Raises:
            PromptError: something else than generations, or one that does not know its prompt.
        """
        return registry_of("monitors")["reread"](self, written, sites, positions)

    def prompted(self, tokens: Tokens) -> AbstractContextManager[None]:
        """Raw calls of `model.model` inside the context run the prompts of `tokens`, a batch of `tokenize`.

        Edits then know the prompts' positions, spans and rows; through `logits`, `generate` and `capture`
        they always do.
        """
        return self.frames.of(tokens)
