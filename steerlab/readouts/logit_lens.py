"""What a state says in words: the logit lens, and a patchscope.

    read = sl.lens(model, sl.capture(model, prompts, "resid_post"))
    print(read["resid_post.8"][0])        # the likeliest next words, as the state of row 0 has them

The lens gives a state to the final norm and the unembedding as if it were the last block's (nostalgebraist, 2020,
"interpreting GPT: the logit lens"); at the last layer's output it is the model's own law. A vector that is no state (a
direction, a difference in means) is read in the same way: the norm takes its length away, so what is read is where it
points. A patchscope (Ghandeharioun et al., 2024, "Patchscopes", section 3) puts the state into another prompt's run, at
a block and token, and reads what the model makes of it there; with the identity prompt it names what the state is
about, also in blocks whose states the unembedding cannot read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.activations import Activations
from steerlab.directions import Direction
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel, Last, Prompt, Selector, Site, SiteName, Span, site_of, sites_among
from steerlab.showing import counted, html_table
from steerlab.steering import Patch, PerRow

Read: TypeAlias = "Activations | Direction | Mapping[Site | str, Float[Tensor, 'row d_model']]"
IDENTITY = "cat -> cat\n1135 -> 1135\nhello -> hello\n? ->"
_MARK = "placeholder"
_BATCH = 64  # rows of a patchscope that run together


@dataclass(frozen=True)
class Word:
    """A word with its log-probability, in nats."""

    text: str
    log_probability: float

    def __str__(self) -> str:
        return f"{self.text!r} {self.log_probability:.2f}"


@dataclass(frozen=True, eq=False)
class Lens:
    """The likeliest words by site and row.

    Attributes:
        ids: [row, k] of each site, the likeliest first.
        log_probabilities: [row, k] of them, nats.
        asked: [row, word] log-probabilities of the words that were asked for, nats.
        words: these words.
        model: its name.
    """

    ids: Mapping[Site, Int[Tensor, "row k"]]
    log_probabilities: Mapping[Site, Float[Tensor, "row k"]]
    asked: Mapping[Site, Float[Tensor, "row word"]]
    words: tuple[str, ...]
    model: str
    _texts: Mapping[int, str]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that were read."""
        return tuple(self.ids)

    def __getitem__(self, site: SiteName | int) -> list[tuple[Word, ...]]:
        """The likeliest words of every row of a site. Raises SteerlabError where it was not read."""
        wanted = sites_among(self.sites, site)
        if len(wanted) != 1 or wanted[0] not in self.ids:
            raise SteerlabError(f"{site} was not read; there is {', '.join(map(str, self.sites))}.")
        pairs = zip(self.ids[wanted[0]].tolist(), self.log_probabilities[wanted[0]].tolist(), strict=True)
        return [
            tuple(Word(self._texts[word], value) for word, value in zip(*row, strict=True)) for row in pairs
        ]

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """Site, row and the likeliest words in one text."""
        for site in self.sites:
            for row, words in enumerate(self[site]):
                yield str(site), row, " ".join(repr(word.text) for word in words)

    def __repr__(self) -> str:
        n = len(next(iter(self.ids.values())))
        first, last = (f"{site}: {self[site][0][0]}" for site in (self.sites[0], self.sites[-1]))
        return (
            f"Lens({counted(n, 'row')} at {counted(len(self.ids), 'site')}, {self.model}; {first} … {last})"
        )

    def _repr_html_(self) -> str:
        return html_table("What the states say", ["Site", "Row", "Likeliest words"], list(self.rows()))


def lens(model: LanguageModel, states: Read, *, top: int = 10, words: Sequence[str] = ()) -> Lens:
    """The logit lens: softmax(unembedding(final norm(state))) of every row and site.

    Args:
        model: whose norm and unembedding read the states.
        states: captured states, a `Direction` (one row a site), or [row, d_model] by site.
        top: how many words are kept, the likeliest first.
        words: whose log-probabilities are wanted as well, each one token (with its space).

    Raises:
        SteerlabError: states of another width, `top` below one, a remote model.
        PromptError: a word that is not one token.
    """
    given, ids = _rows_of(states), _ids(model, top, words)
    found = {site: _law(model, site, rows, top, ids) for site, rows in given.items()}
    return _lens(model, found, words)


def patchscope(
    model: LanguageModel,
    states: Read,
    *,
    prompt: str | Prompt = IDENTITY,
    positions: Selector | None = None,
    into: SiteName | int | None = None,
    top: int = 10,
    words: Sequence[str] = (),
) -> Lens:
    """What the model says next when a state stands in the place of a token of `prompt`.

    Args:
        model: the model, of the states' width.
        states: as for `lens`.
        prompt: the run that the states are put into; by default one that repeats words, with the state at its "?".
        positions: the token that the state replaces; by default the last "?" of the prompt, else its last token.
        into: the site that they are put in at; by default their own.
        top, words: as for `lens`.

    Raises:
        SteerlabError: as for `lens`; SiteError: a site that the model has not.
    """
    asked = Prompt(prompt) if isinstance(prompt, str) else prompt
    where = positions or _placeholder(asked)
    marked = _marked(asked) if positions is None else asked
    ids = _ids(model, top, words)
    found: dict[Site, _Found] = {}
    for site, rows in _rows_of(states).items():
        _require_width(model, site, rows)
        target = site if into is None else sites_among(model.sites(site.name), into)[0]
        parts = [_top(logits, top, ids) for logits in _patched(model, rows, target, where, marked)]
        first, second, third = zip(*parts, strict=True)
        found[site] = torch.cat(first), torch.cat(second), torch.cat(third)
    return _lens(model, found, words)


# -- private, in the order they are called --

_Found: TypeAlias = "tuple[Int[Tensor, 'row k'], Float[Tensor, 'row k'], Float[Tensor, 'row word']]"


def _rows_of(states: Read) -> dict[Site, Float[Tensor, "row d_model"]]:
    """[row, d_model] of every site; a direction is one row."""
    if isinstance(states, Activations):
        return dict(states.states)
    if isinstance(states, Direction):
        return {site: states[site][None] for site in states.sites}
    if not isinstance(states, Mapping) or not states:
        raise SteerlabError(
            "The lens reads captured states, a direction, or rows by site; give {'resid_post.3': rows} for a tensor."
        )
    return {site_of(site): rows[None] if rows.ndim == 1 else rows for site, rows in states.items()}


def _ids(model: LanguageModel, top: int, words: Sequence[str]) -> list[int]:
    """The words' tokens, once what is asked for is known to be sound."""
    if not isinstance(top, int) or top < 1:
        raise SteerlabError(
            f"The lens keeps the likeliest words, as many as a whole number above 0, not {top}."
        )
    if model.is_remote:
        raise SteerlabError(
            f"The weights of {model.name} are on a server; load it without remote to read states."
        )
    if isinstance(words, str):
        raise SteerlabError(f"Words come as a list; write [{words!r}].")
    return [model.token_id(word) for word in words]


def _law(
    model: LanguageModel, site: Site, rows: Float[Tensor, "row d_model"], top: int, ids: list[int]
) -> _Found:
    _require_width(model, site, rows)
    parts = [
        _top(model.unembed(rows[start : start + model.rows_at_once].to(model.device, model.dtype)), top, ids)
        for start in range(0, len(rows), model.rows_at_once)
    ]
    first, second, third = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second), torch.cat(third)


def _require_width(model: LanguageModel, site: Site, rows: Float[Tensor, "row width"]) -> None:
    if rows.shape[-1] != model.d_model or not len(rows):
        raise SteerlabError(
            f"The states at {site} have the shape {tuple(rows.shape)}; {model.name} reads rows of width "
            f"{model.d_model}, so take those of the residual stream."
        )


def _top(logits: Float[Tensor, "row vocab"], top: int, ids: list[int]) -> _Found:
    law = logits.float().log_softmax(dim=-1)
    best = law.topk(min(top, law.shape[-1]), dim=-1)
    return best.indices.cpu(), best.values.cpu(), law[:, ids].cpu()


def _placeholder(prompt: Prompt) -> Selector:
    """Where the state goes unless it is said: at the last "?", else at the last token."""
    return Span(_MARK) if "?" in prompt.text else Last()


def _marked(prompt: Prompt) -> Prompt:
    """The prompt with its last "?" as a span."""
    at = prompt.text.rfind("?")
    return prompt if at < 0 else replace(prompt, spans={**prompt.spans, _MARK: (at, at + 1)})


def _patched(
    model: LanguageModel, rows: Float[Tensor, "row d_model"], site: Site, where: Selector, prompt: Prompt
) -> Iterator[Float[Tensor, "row vocab"]]:
    """Logits after the prompt with each row in its place, some rows at a time."""
    for start in range(0, len(rows), _BATCH):
        patches = [Patch(_vector(model, site, row), positions=where) for row in rows[start : start + _BATCH]]
        with model.steering(PerRow(*patches)):
            yield model.logits([prompt] * len(patches))


def _vector(model: LanguageModel, site: Site, row: Float[Tensor, " d_model"]) -> Direction:
    return Direction(
        vectors={site: row}, model_name=model.name, fingerprint=model.fingerprint, estimator="a state"
    )


def _lens(model: LanguageModel, found: Mapping[Site, _Found], words: Sequence[str]) -> Lens:
    known = {word for ids, _, _ in found.values() for word in ids.flatten().tolist()}
    return Lens(
        ids={site: ids for site, (ids, _, _) in found.items()},
        log_probabilities={site: values for site, (_, values, _) in found.items()},
        asked={site: asked for site, (_, _, asked) in found.items()},
        words=tuple(words),
        model=model.name,
        _texts={word: model.tokenizer.decode([word]) for word in known},
    )
