"""Read again what a model wrote: prompt and written tokens of a `Generation` in one pass, states by selected token.

A selector means what it means while the model writes: `Last()` is the prompt's last token, `Generated()` every token
written, and edits in force act on the same tokens and steps as they did then. The last token written is read as well,
which the model itself never does while it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steerlab.activations._provenance import hashes
from steerlab.activations.states import Activations
from steerlab.errors import PromptError
from steerlab.models import Generation, LanguageModel, Prompt, Selector, Site, Tokens
from steerlab.models.batches import run_in_batches

#: What a model wrote: one generation or several.
Written: TypeAlias = Generation | Sequence[Generation]


def generations_in(given: Any) -> list[Generation]:
    """The generations among these prompts, where they are nothing else; an empty list for prompts.

    Raises:
        PromptError: generations and prompts mixed, or a generation without its prompt.
    """
    listed = [given] if isinstance(given, Generation) else given
    if not isinstance(listed, list | tuple) or not any(isinstance(each, Generation) for each in listed):
        return []
    for row, each in enumerate(listed):
        if not isinstance(each, Generation):
            raise PromptError(
                f"Row {row} is no generation, and others are; read prompts and generations apart."
            )
        if each.prompt is None:
            raise PromptError(
                f"Generation {row} does not know its prompt, so it cannot be read again; take one that model.generate "
                "or model.stream gave."
            )
    return list(listed)


def read_again(
    model: LanguageModel,
    generations: Sequence[Generation],
    sites: Sequence[Site],
    positions: Selector,
    token_budget: int,
) -> Activations:
    """States of the selected tokens, rows in the order of the texts; `position` counts from the prompt's start.

    Raises:
        PromptError: the positions pick nothing of any text.
    """
    prompts = [_prompt(each) for each in generations]
    lengths = [
        length + len(each.token_ids) for length, each in zip(model.lengths(prompts), generations, strict=True)
    ]
    parts: dict[int, dict[Site, Tensor]] = {}
    places: dict[int, list[int]] = {}

    def read(some: list[int]) -> None:
        tokens = model.tokenize([prompts[row] for row in some], padding_side="left").of_rows(some)
        written = [generations[row].token_ids for row in some]
        chosen = [_chosen(tokens, row, len(ids), positions) for row, ids in enumerate(written)]
        rows = torch.tensor([row for row, mine in enumerate(chosen) for _ in mine], dtype=torch.long)
        columns = torch.tensor(
            [place + tokens.width - tokens.lengths[row] for row, mine in enumerate(chosen) for place in mine],
            dtype=torch.long,
        )
        if not len(rows):
            return
        found: dict[Site, Tensor] = {}
        read_at: Mapping[Site, Any] = {
            site: (lambda state, site=site: found.update({site: state.float().cpu()})) for site in sites
        }
        model.run(tokens, read=read_at, at=(rows, columns), behind=written)
        for row, number in enumerate(some):
            parts[number] = {site: found[site][rows == row] for site in sites}
            places[number] = chosen[row]

    run_in_batches(read, lengths, token_budget)
    order = [row for row in sorted(parts) if places[row]]
    if not order:
        raise PromptError(f"{positions} picks no token of any text; choose positions inside them.")
    return Activations(
        states={site: torch.cat([parts[row][site] for row in order]) for site in sites},
        example=torch.tensor([row for row in order for _ in places[row]]),
        position=torch.tensor([place for row in order for place in places[row]]),
        n_prompts=len(generations),
        model_name=model.name,
        fingerprint=model.fingerprint,
        positions=repr(positions),
        **hashes([_whole(each) for each in generations]),
    )


def _prompt(generation: Generation) -> Prompt:
    assert generation.prompt is not None
    return generation.prompt


def _whole(generation: Generation) -> Prompt:
    """What a text is known by: its prompt and its tokens."""
    return Prompt(f"{_prompt(generation).text}{generation.token_ids}", dict(_prompt(generation).spans))


def _chosen(tokens: Tokens, row: int, written: int, positions: Selector) -> list[int]:
    """Places in the whole text of the tokens that are selected."""
    length = tokens.lengths[row]
    return [
        *positions.resolve(tokens, row),
        *(length + step for step in range(written) if positions.selects(step, length)),
    ]
