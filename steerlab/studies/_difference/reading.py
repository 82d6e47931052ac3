"""What both models hold on the same tokens: average differences of the residual stream by text, layer and position.

    d_i = mean over the tokens of text i of (x_post − x_base)        one vector a layer and place

Places are the first text tokens one by one, those behind them ("later") and all of them ("all"). A beginning token that
the tokenizer adds is the same in every text and left out. States are subtracted batch by batch; what is kept is one
vector a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import DatasetError, PromptError, SteerlabError
from steerlab.models import LanguageModel, Site, Tokens
from steerlab.models.batches import run_in_batches
from steerlab.progress import counting
from steerlab.studies._pair import Pair

FIRST = 4  # text tokens that are places of their own
FEWEST = 8  # texts
_BUDGET = 1024  # padded tokens in one pass
_SINGLE = tuple(f"token {number}" for number in range(1, FIRST + 1))
PLACES = (*_SINGLE, "later", "all")
Where: TypeAlias = "tuple[Tensor, Tensor]"
Reads: TypeAlias = "Callable[[Tokens, Where, Sequence[Site]], dict[Site, Tensor]]"


@dataclass(frozen=True)
class Texts:
    """The texts as token ids, cut to the same length at most.

    ids: [text] of token ids, the tokenizer's beginning included. skip: how many of them are no text.
    """

    tokens: Tokens
    skip: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ids(self) -> list[list[int]]:
        """The token ids of each text, without padding."""
        rows = self.tokens.input_ids.tolist()
        return [row[:length] for row, length in zip(rows, self.tokens.lengths, strict=True)]

    def batch(self, rows: Sequence[int]) -> Tokens:
        """Some texts as a batch, padded on the right as far as its longest one."""
        part = self.tokens.take(list(rows))
        return replace(part, input_ids=part.input_ids[:, : max(part.lengths)]).unmasked()

    def places(self, batch: Tokens) -> tuple[Tensor, Tensor]:
        """Row and column of every text token of a batch."""
        column = torch.arange(batch.width)[None]
        wanted = (column >= self.skip) & (column < torch.tensor(batch.lengths)[:, None])
        rows, columns = wanted.nonzero(as_tuple=True)
        return rows, columns

    def some(self, count: int) -> Texts:
        """The first texts."""
        return Texts(self.tokens.take(range(min(count, len(self)))), self.skip)


@dataclass(frozen=True)
class Differences:
    """One model minus base, on the same tokens.

    rows: float32 [layer, place, text, width], NaN where a text has no such token. places: what the second axis is.
    norm: [layer] mean length of base's states.
    """

    rows: Float[Tensor, "layer place text width"]
    places: tuple[str, ...]
    norm: Float[Tensor, " layer"]

    def at(self, place: str = "all") -> Float[Tensor, "layer text width"]:
        """The vectors of a place, of the texts that have it."""
        rows = self.rows[:, self.places.index(place)]
        return rows[:, ~rows[0].isnan().any(dim=1)]

    @property
    def nothing(self) -> bool:
        """True where no state differs."""
        return not bool(self.rows.nan_to_num().any())


def read_texts(pair: Pair, texts: Sequence[str], most: int, tokens: int) -> Texts:
    """The first `most` texts, each cut to `tokens` tokens.

    Raises:
        DatasetError: no text, one that is empty or no text, fewer than 8 of two tokens.
        PromptError: a text that does not fit into a model's context.
    """
    require_comparable(pair)
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DatasetError("The difference study reads a list of texts; give ['One text.', 'Another.', ...].")
    if not len(texts):
        raise DatasetError(f"The difference study needs texts and was given none; give at least {FEWEST}.")
    empty = [number for number, text in enumerate(texts) if not text.strip()]
    if empty:
        raise DatasetError(f"Text {empty[0]} (counted from 0) is empty; leave it out, or fill it.")
    chosen = list(dict.fromkeys(texts))[:most]
    whole = pair.base.tokenize(chosen, padding_side="right")
    skip = _added(pair.base, whole)
    long = [row for row, length in enumerate(whole.lengths) if length - skip >= 2]
    if len(long) < FEWEST:
        raise DatasetError(
            f"The difference study needs at least {FEWEST} different texts of two tokens or more, since its intervals "
            f"and nulls are over texts, and was given {len(long)}."
        )
    kept = whole.take(long)
    lengths = tuple(min(length, tokens + skip) for length in kept.lengths)
    return Texts(replace(kept, input_ids=kept.input_ids[:, : max(lengths)], lengths=lengths).unmasked(), skip)


def require_comparable(pair: Pair) -> None:
    """Raise SteerlabError for models whose tokens or states do not correspond."""
    base, post = pair
    if any(model.is_remote for model in pair):
        raise SteerlabError("The weights of a model are on a server; load both without remote.")
    if not pair.same_tokenizer or base.vocab_size != post.vocab_size:
        raise SteerlabError(
            f"{base.name} and {post.name} cut text into other tokens, so neither their states nor their laws "
            "correspond; give two models with the same tokenizer."
        )
    shapes = [(model.n_layers, model.d_model) for model in pair]
    if shapes[0] != shapes[1]:
        raise SteerlabError(
            f"{base.name} has {shapes[0][0]} layers of width {shapes[0][1]} and {post.name} {shapes[1][0]} of width "
            f"{shapes[1][1]}; states are subtracted of models of one shape."
        )


def read_differences(
    base: LanguageModel, others: Mapping[str, tuple[Reads, Sequence[str]]], texts: Texts, progress: str
) -> dict[str, Differences]:
    """Each of the others minus base at every layer's output, batch by batch.

    others: by name how the states of some tokens are read, and the places that are kept.
    """
    sites = base.sites("resid_post")
    rows = {
        name: torch.full((len(sites), len(places), len(texts), base.d_model), torch.nan)
        for name, (_, places) in others.items()
    }
    norms = torch.full((len(sites), len(texts)), torch.nan)

    def read(some: list[int]) -> None:
        batch = texts.batch(some)
        at = texts.places(batch)
        number = at[1] - texts.skip
        first = states_of(base, batch, at, sites)
        for layer, site in enumerate(sites):
            norms[layer, some] = _means(first[site].norm(dim=1, keepdim=True), at[0], len(some))[:, 0]
        for name, (reads, places) in others.items():
            second = reads(batch, at, sites)
            for layer, site in enumerate(sites):
                change = second[site] - first[site]
                for index, place in enumerate(places):
                    wanted = _wanted(number, place)
                    rows[name][layer, index, some] = _means(change[wanted], at[0][wanted], len(some))

    with counting(progress, len(texts)) as done:
        run_in_batches(read, texts.tokens.lengths, _BUDGET, done=done)
    norm = norms.mean(dim=1)
    return {name: Differences(rows[name], tuple(places), norm) for name, (_, places) in others.items()}


def own_states(model: LanguageModel) -> Reads:
    """How a model's own states are read."""

    def read(batch: Tokens, at: Where, sites: Sequence[Site]) -> dict[Site, Tensor]:
        return states_of(model, batch, at, sites)

    return read


def states_of(
    model: LanguageModel, batch: Tokens, at: Where, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "token width"]]:
    """The states of some tokens of a batch by site, float32 on the CPU."""
    found: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Callable[[Tensor], None]:
        def keep(state: Tensor) -> None:
            found[site] = state.float().cpu()

        return keep

    model.run(batch, read={site: keeper(site) for site in sites}, at=at)
    return found


def require_room(pair: Pair, texts: Texts, more: int) -> int:
    """New tokens that fit behind every text in both models' contexts, at most `more`.

    Raises:
        PromptError: none fits.
    """
    longest = max(texts.tokens.lengths)
    room = min(more if model.context is None else model.context - longest for model in pair)
    if room < 1:
        raise PromptError(f"A text of {longest} tokens fills the context of a model; give shorter ones.")
    return min(more, room)


# -- private, in the order they are called --


def _added(model: LanguageModel, tokens: Tokens) -> int:
    """1 where the tokenizer begins every text with a token of its own, else 0."""
    first = set(tokens.input_ids[:, 0].tolist())
    special = {model.tokenizer.bos_token_id, model.tokenizer.cls_token_id} - {None}
    return int(len(first) == 1 and first <= special)


def _wanted(number: Tensor, place: str) -> Tensor:
    """Which text tokens, counted from 0, belong to a place."""
    if place in _SINGLE:
        return number == _SINGLE.index(place)
    return number >= (FIRST if place == "later" else 0)


def _means(change: Float[Tensor, "token width"], row: Tensor, count: int) -> Float[Tensor, "text width"]:
    """The mean of each row's tokens; NaN where it has none."""
    sums = torch.zeros(count, change.shape[1]).index_add_(0, row, change)
    return sums / torch.bincount(row, minlength=count)[:, None]
