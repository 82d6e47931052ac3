"""One forward pass from a kept stream on: earlier blocks hand on their input, the stream enters where it was kept.

Nothing here knows what is swept. `restarted` runs prompts for several variants as rows of one batch and gives the
logits after each prompt's last token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerlab.models import All, LanguageModel, Site, Tokens
from steerlab.models.hooks import attach
from steerlab.models.metering import patching

Forms = tuple[int, ...]


class Change(Protocol):
    """What distinguishes the variants of a sweep."""

    @property
    def sites(self) -> Sequence[Site]:
        """Where the variants differ from the recorded run."""

    def apply(
        self,
        state: Float[Tensor, "variant prompt position width"],
        site: Site,
        variants: slice,
        prompts: Int[Tensor, " prompt"],
    ) -> Tensor:
        """The changed states, float32 or wider, as a new tensor.

        `variants` and `prompts` number the first two axes. Token i of a prompt is at position i: prompts are padded
        at their end, and what is put into the padding changes nothing.
        """


@dataclass(frozen=True, eq=False)
class Batch:
    """Some prompts of like length: their numbers, their tokens, and the stream entering each recorded block."""

    prompts: Int[Tensor, " prompt"]
    tokens: Tokens
    streams: Mapping[int, Float[Tensor, "prompt position d_model"]]

    def part(self, rows: slice) -> Batch:
        """Some of the prompts."""
        streams = {layer: stream[rows] for layer, stream in self.streams.items()}
        return Batch(self.prompts[rows], rows_of(self.tokens, range(len(self.tokens))[rows]), streams)


def restarted(
    model: LanguageModel, batch: Batch, variants: slice, change: Change | None, start: int, forms: Forms
) -> Float[Tensor, "variant prompt width"]:
    """What the unembedding reads at a batch's last tokens under some variants, blocks before `start` left out."""
    n = variants.stop - variants.start
    with ExitStack() as stack:
        stack.enter_context(model.lock)
        stack.enter_context(patching())
        if start:
            stack.enter_context(skipped(model, forms[:start]))
            entry = repeat(batch.streams[start], "prompt ... -> (variant prompt) ...", variant=n)
            # After the hooks that are there: what an outer steering does here is in the kept stream already.
            tap = model.anatomy.tap(Site("resid_pre", start))
            stack.callback(attach(tap, model.frames, lambda _: entry))
        if change is not None:
            stack.enter_context(model.steering(_AsEdit(change, variants, batch.prompts, start)))
        tokens = rows_of(batch.tokens, [*range(len(batch.tokens))] * n)
        hidden = model.last_hidden(tokens, *tokens.ends)
    return rearrange(hidden, "(variant prompt) width -> variant prompt width", variant=n)


@contextmanager
def forms_noted(model: LanguageModel, forms: dict[int, int]) -> Iterator[None]:
    """Note how many things each block returns: 0 for a bare tensor."""

    def note(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            forms[layer] = 0 if isinstance(output, Tensor) else len(output)

        return hook

    handles = [block.register_forward_hook(note(i)) for i, block in enumerate(model.anatomy.blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steered_before(model: LanguageModel, start: int) -> frozenset[int]:
    """The toolkit's hooks on the embedding and the blocks before `start`, by their numbers."""
    layers: set[int] = set()
    for part in (model.anatomy.embed, *model.anatomy.blocks[:start]):
        for module in part.modules():
            for number, hook in (*module._forward_pre_hooks.items(), *module._forward_hooks.items()):
                if getattr(hook, "__module__", "") == attach.__module__:
                    layers.add(number)
    return frozenset(layers)


def rows_of(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """These rows of a batch, each as often as it is named, as a call of its own."""
    return tokens.take(rows).of_rows(range(len(rows)))


@contextmanager
def skipped(model: LanguageModel, forms: Forms) -> Iterator[None]:
    """The first blocks hand on their input. They stay in the stack, which asks them for their attention types."""
    blocks: list[nn.Module] = model.anatomy.blocks[: len(forms)]
    # An offloading engine puts a forward of its own on the instance; it is put back.
    own = [block.__dict__.get("forward") for block in blocks]
    for block, form in zip(blocks, forms, strict=True):
        block.__dict__["forward"] = _identity(form)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward


# -- private --


class _AsEdit:
    """A change as an edit of the batch whose rows are variant by variant the prompts."""

    positions = All()

    def __init__(self, change: Change, variants: slice, prompts: Tensor, start: int) -> None:
        self._change, self._variants, self._prompts = change, variants, prompts
        # The output of the last skipped block is changed where it enters the first one that runs.
        moved = {Site("resid_post", start - 1): Site("resid_pre", start)} if start else {}
        self._named: dict[Site, list[Site]] = {}
        for site in sorted(set(change.sites)):
            self._named.setdefault(moved.get(site, site), []).append(site)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._named)

    def apply(self, state: Tensor, site: Site) -> Tensor:
        wide = rearrange(state, "(variant prompt) ... -> variant prompt ...", prompt=len(self._prompts))
        for named in self._named[site]:
            wide = self._change.apply(wide, named, self._variants, self._prompts)
        return rearrange(wide, "variant prompt ... -> (variant prompt) ...")

    def check(self, model: LanguageModel) -> None:
        for site in self.sites:
            model.require(site)


def _identity(form: int) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, *[None] * (form - 1)) if form else hidden_states

    forward.is_skipped = True  # type: ignore[attr-defined]  # it costs nothing, says the meter
    return forward
