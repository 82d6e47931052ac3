"""`Checkpoint`: what can be known of a model without running it: its shape, sites, prompts and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import ModelError, PromptError, SiteError
from steerlab.models import prompts, templates, weights
from steerlab.models.adapters import is_multimodal
from steerlab.models.anatomy import Anatomy
from steerlab.models.backends import Transformers
from steerlab.models.offloaded import device_of
from steerlab.models.prompts import Conversation, PaddingSide, Prompt, PromptsGiven, Template, Tokens
from steerlab.models.quantised import method_of
from steerlab.models.sites import SITE_NAMES, Site, SiteName, site_of, sites_of
from steerlab.models.tuners import weight_of
from steerlab.showing import html_table


class Checkpoint:
    """A causal language model at rest, and its tokenizer. For its attributes see `LanguageModel`."""

    def __init__(self, engine: Transformers, tokenizer: Any, *, name: str) -> None:
        engine.check()
        self.engine = engine
        self.model = model = engine.module
        self.tokenizer = tokenizer
        self.name = name
        #: Topics of packaged statements that it was trained to judge, where that is known: bundled models set them.
        self.topics: tuple[str, ...] = ()
        #: How the weights are or were stored, where that is not plain: "GGUF Q4_K_M, dequantised", "LORA, merged",
        #: "bitsandbytes 4-bit".
        self.stored_as = method_of(model)
        #: What the chat template reads beside the messages, in every prompt: {"enable_thinking": False}.
        self.chat_options: dict[str, Any] = {}
        self.anatomy = Anatomy(model)
        config = self.anatomy.config
        self.architecture: str = (model.config.architectures or [type(model).__name__])[0]
        #: The multimodal model that this is the text part of, by its class; "" where there is none around it.
        self.part_of = self.architecture if is_multimodal(model.config) else ""
        self.n_layers: int = len(self.anatomy.blocks)
        self.d_model: int = int(config.hidden_size)
        self.n_heads: int = int(getattr(config, "num_attention_heads", None) or 0)  # Mamba has none
        self.vocab_size: int = min(len(tokenizer), self.anatomy.n_rows)
        limit = getattr(config, "max_position_embeddings", None)
        self.context: int | None = int(limit) if limit else None
        #: Whether the model is told each token's position; otherwise it counts for itself.
        self.takes_positions: bool = "position_ids" in weights.parameters_of(self.anatomy.base.forward)

    def __repr__(self) -> str:
        engine = "" if type(self.engine) is Transformers else f", {self.backend}"
        return (
            f"LanguageModel({self.name!r}, {self.architecture}, {self.n_layers} layers, d_model {self.d_model}, "
            f"{self.dtype}, {self.device}{engine})".replace("torch.", "")
        )

    def _repr_html_(self) -> str:
        parts = {
            "Architecture": self.family,
            "Layers": self.n_layers,
            "Width": self.d_model,
            "Heads": self.n_heads,
            "Vocabulary": self.vocab_size,
            "Context": self.context,
            **({"Stored as": self.stored_as} if self.stored_as else {}),
            "Runs in": f"{self.backend}, {self.dtype}, {self.device}".replace("torch.", ""),
        }
        named = [(name, self.sites(name)) for name in self.site_names()]
        sites = [
            (name, sites[0] if len(sites) == 1 else f"{sites[0]} to {sites[-1].layer}", self.width(sites[0]))
            for name, sites in named
        ]
        return html_table(self.name, ["Part", ""], parts.items()) + html_table(
            "Sites", ["Name", "Where", "Width"], sites
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refused: a copy or a pickle of a model with its locks and hooks would be neither of the two models."""
        raise ModelError(
            f"{self.name} is not copied or pickled as an object; load it again, make a changed copy with "
            "bake(model, edit), or write a folder with export(model, edit, folder)."
        )

    # What it is

    @property
    def family(self) -> str:
        """The architecture, and what it is a part of: "the text part of a LlavaForConditionalGeneration"."""
        if not self.part_of:
            return self.architecture
        alone = "" if self.part_of == self.architecture else f"{self.architecture}, "
        return f"{alone}the text part of a {self.part_of}"

    @property
    def backend(self) -> str:
        """Name of the engine: "transformers", "transformer_lens" or "nnsight"."""
        return self.engine.name

    @property
    def is_remote(self) -> bool:
        """Whether the weights are elsewhere and every pass is a request."""
        return False

    @property
    def source(self) -> Any:
        """The engine's live object: the transformers model, the TransformerBridge or the nnsight model."""
        return self.engine.source

    @property
    def device(self) -> torch.device:
        """Where the input goes: the device of the token embedding."""
        return device_of(self.anatomy.embed)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.anatomy.embed.parameters()).dtype

    @cached_property
    def head_dim(self) -> int:
        """Width of one head's part of `z`."""
        return self.anatomy.width(self.sites("z")[0]) // self.n_heads

    @cached_property
    def d_mlp(self) -> int:
        """Neurons of a dense layer's MLP; of one expert where every layer is a mixture."""
        dense = self.anatomy.sites("mlp_post")
        if dense:
            return self.anatomy.width(dense[0])
        config = self.anatomy.config
        return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of configuration and a sample of every weight: equal for equal checkpoints on any device and backend."""
        return self.engine.fingerprint()

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer carries a chat template."""
        return templates.has_chat_template(self.tokenizer)

    # Sites

    def site_names(self) -> list[str]:
        """Names of the sites this model has."""
        return self.anatomy.site_names()

    def sites(self, name: str, layers: int | Sequence[int] | None = None) -> list[Site]:
        """Sites called `name`, at every layer that has one or at the `layers` given (negative from the end).

        Raises:
            SiteError: the model has none, or not at a layer that was asked for.
        """
        if layers is None and name not in SITE_NAMES:
            return sites_of(self, name)
        if layers is not None:
            layers = [layers] if isinstance(layers, int) else layers
            named = [
                Site(name, layer % self.n_layers if -self.n_layers <= layer < 0 else layer)
                for layer in layers
            ]
            for site in named:
                self.require(site)
            return named
        sites = self.anatomy.sites(name)
        if not sites:
            self.require(Site(name) if name in ("embed", "ln_final_in") else Site(name, 0))
        return sites

    def require(self, site: Site) -> None:
        """Raise `SiteError` with the reason when the model has no such site."""
        if not isinstance(site, Site):
            raise SiteError(f"{site!r} is not a Site; write sl.Site.parse('resid_post.12').")
        self.anatomy.tap(site)

    def width(self, site: SiteName) -> int:
        """Width of the state at `site`."""
        return self.anatomy.width(site_of(site))

    # Prompts

    def instruction_prompt(
        self,
        text: str,
        *,
        template: Template = "auto",
        system: str | None = None,
        response: str = "",
        think: bool | None = None,
        **options: Any,
    ) -> Prompt:
        """A user's text in the form the model answers to.

        Args:
            template: "chat" is the tokenizer's template with the generation prompt, "plain" is
                `User: {text}\\nAssistant:`, "none" the text alone; "auto" takes the chat template if there is one.
            system: a system message.
            response: the opening of the answer, put after the template.
            think: whether the model may think before it answers. With False the thinking block is closed and empty
                (`enable_thinking=False` where the template reads it, else behind the tag that it opens), so that the
                next token is the answer's; by default True without a `response`. `enable_thinking` in the options goes
                before.
            options: what the chat template reads beside the messages (`enable_thinking=False`, `tools=[...]`); those in
                `model.chat_options` hold for every prompt.

        Raises:
            PromptError: an empty text, no chat template, one that takes no system message, or one that does not read an
                option.
        """
        return templates.render(
            self.tokenizer,
            text,
            template=template,
            system=system,
            response=response,
            think=think,
            options={**self.chat_options, **options},
        )

    def conversation_prompt(
        self,
        turns: Sequence[tuple[str, str]] | Conversation,
        *,
        template: Template = "auto",
        system: str | None = None,
        think: bool | None = None,
        **options: Any,
    ) -> Prompt:
        """Several turns in the form the model answers to: `("user", text)` and `("assistant", text)` in alternation, or
        chat messages, `[{"role": "user", "content": "…"}]`.

        Messages go to the template as they are: a system's first, tools' with their keys; parts of a content
        (`{"type": "text", "text": "…"}`) are joined. One that ends with an assistant's message is continued there. The
        last user's text is the span "instruction", an assistant's text that is continued "response".

        Templates, `think` and options are those of `instruction_prompt`; "none" is "plain", since bare texts would not
        tell who speaks.

        Raises:
            PromptError: turns that do not alternate or do not end with the user, messages with an image or without an
                end that is answered, or a template that fails or goes on without end.
        """
        return templates.render_conversation(
            self.tokenizer,
            turns,
            template=template,
            system=system,
            think=think,
            options={**self.chat_options, **options},
        )

    def as_prompts(self, given: PromptsGiven) -> list[str | Prompt]:
        """Prompts as a list, conversations among them rendered; what every method that takes prompts does first.

        Args:
            given: a text, a prompt or a conversation (a list of chat messages), or any iterable of these.

        Raises:
            PromptError: no prompts, a whole table, something that is none of these, or as `conversation_prompt`.
        """
        return prompts.as_prompts(given, self.conversation_prompt)

    def tokenize(self, texts: PromptsGiven, *, padding_side: PaddingSide = "left") -> Tokens:
        """One padded batch, on the CPU, each prompt with exactly one BOS where the tokenizer uses one.

        Raises:
            PromptError: an empty prompt, a missing or doubled BOS, or a prompt beyond the model's context.
        """
        tokens = prompts.encode(self.tokenizer, self.as_prompts(texts), padding_side=padding_side)
        self._require_room(tokens.lengths)
        rows = self.anatomy.n_rows
        known = tokens.input_ids < rows
        if bool(known.all()):
            return tokens
        real = tokens.attention_mask.bool()
        if not bool(known[real].all()):
            raise PromptError(
                f"The tokenizer gives token {int(tokens.input_ids[real].max())}, but the model knows only {rows}; "
                "load the tokenizer that belongs to this model."
            )
        # A pad token that was added without a row of its own is never read: padding is masked.
        return replace(tokens, input_ids=tokens.input_ids.where(known, 0))

    def lengths(self, texts: PromptsGiven) -> list[int]:
        """How many tokens each prompt has.

        Raises:
            PromptError: as `tokenize`.
        """
        return list(map(len, self.token_ids(texts)))

    def token_ids(self, texts: PromptsGiven) -> list[list[int]]:
        """The tokens of each prompt, without padding, so that one long prompt costs no more than its own.

        Raises:
            PromptError: as `tokenize`.
        """
        found = prompts.token_ids(self.tokenizer, self.as_prompts(texts))
        self._require_room(list(map(len, found)))
        return found

    def _require_room(self, lengths: Sequence[int]) -> None:
        for row, length in enumerate(lengths):
            if self.context is not None and length > self.context:
                raise PromptError(
                    f"Prompt {row} has {length} tokens, but the model's context holds {self.context}; shorten it."
                )

    def token_id(self, word: str) -> int:
        """The single token that continues a prompt with `word` (write a leading space where one belongs).

        Raises:
            PromptError: `word` is several tokens, or none.
        """
        return prompts.single_token(self.tokenizer, word)

    # Weights

    def unembed(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits the model gives for a final residual: final norm, unembedding, bias, scale, soft-cap; float32."""
        with torch.inference_mode():
            state = resid.to(device=self.device, dtype=self.dtype)
            normed = state if self.anatomy.ln_final is None else self.anatomy.ln_final(state)
            return self.anatomy.logits_of(normed)[..., : self.vocab_size].float()

    @property
    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """The unembedding's rows of real tokens."""
        return weight_of(self.anatomy.head).detach()[: self.vocab_size]

    @cached_property
    def final_norm_gain(self) -> Float[Tensor, " d_model"]:
        """What the final norm multiplies each normalised coordinate with (Gemma's 1 + w), float32.

        Raises:
            ModelError: the model has no final norm.
        """
        if self.anatomy.ln_final is None:
            raise ModelError("This model has no final norm, so it has no final norm gain.")
        return weights.norm_gain(self.anatomy.ln_final, self.d_model, self.device, self.dtype)

    def w_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights of a layer's neurons, one row a neuron, as stored (before a post-norm or multiplier).

        Raises:
            SiteError: the layer is a mixture of experts.
        """
        return weights.down_matrix(self.anatomy.down_projection(layer))

    def w_into_stream(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The direction in which each of a layer's neurons moves the residual stream, to first order.

        It is `w_out`, times the gain of the norm behind the MLP where the family has one (not divided by its size).

        Raises:
            SiteError: the layer is a mixture of experts.
        """
        return weights.through_post_norm(self.w_out(layer), self.anatomy.mlp_post_norm(layer))
