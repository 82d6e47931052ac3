"""What is trained through a frozen model: continuations as token ids, and their log-probabilities with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steerlab.errors import PromptError, SteeringError, kind_of
from steerlab.models import LanguageModel, Prompt, Selector, Site, Tokens
from steerlab.models.batches import batches_by_length
from steerlab.models.modes import evaluating
from steerlab.models.prompts import as_prompt

#: Text behind a prompt, or its token ids.
Answer: TypeAlias = "str | Sequence[int]"
#: Changes states [batch, position, width] at the tokens a mask [batch, position, 1] marks.
Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
#: What is trained on at once, in padded tokens.
TOKEN_BUDGET = 2048


@dataclass(frozen=True)
class Example:
    """A prompt and its answer as token ids: `start` is the answer's first; `acts` the tokens that are changed."""

    ids: tuple[int, ...]
    start: int
    acts: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples, padded on the right.

    Attributes:
        members: their numbers.
        tokens: the batch.
        acts: [batch, position, 1], where states are changed.
        row, column: of the tokens whose next one belongs to an answer.
        target: the tokens of the answers.
    """

    members: tuple[int, ...]
    tokens: Tokens
    acts: Float[Tensor, "batch position 1"]
    row: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    target: Int[Tensor, " token"]

    @classmethod
    def of(cls, examples: Sequence[Example], members: Sequence[int]) -> Batch:
        """The examples of these numbers."""
        chosen = [examples[member] for member in members]
        tokens = Tokens.of_ids([example.ids for example in chosen])
        acts = torch.zeros(len(chosen), tokens.width, 1)
        for row, example in enumerate(chosen):
            acts[row, : len(example.acts), 0] = torch.tensor(example.acts, dtype=torch.float32)
        places = [
            (row, column)
            for row, example in enumerate(chosen)
            for column in range(example.start - 1, len(example.ids) - 1)
        ]
        row, column = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
        return cls(tuple(members), tokens, acts, row, column, tokens.input_ids[row, column + 1])


def examples_of(
    model: LanguageModel, prompts: Sequence[Any], answers: Sequence[Any], positions: Selector
) -> list[Example]:
    """Prompts with the tokens behind each; the answer begins where the joined text stops to be the prompt's tokens.

    Raises:
        PromptError: an answer that is empty, or no text and no token ids.
    """
    given = model.as_prompts(prompts)
    if len(given) != len(answers):
        raise PromptError(f"{len(given)} prompts came with {len(answers)} answers; give one a prompt.")
    found = []
    for number, (prompt, answer) in enumerate(zip(map(as_prompt, given), answers, strict=True)):
        tokens = model.tokenize([prompt], padding_side="right")
        before: list[int] = tokens.input_ids[0].tolist()
        ids = _joined(model, prompt, before, answer, number)
        start = next((at for at, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
        start = min(start, len(before))
        if start >= len(ids) or start < 1:
            raise PromptError(f"Answer {number} adds no token to its prompt; give it a text.")
        inside = set(positions.resolve(tokens, 0))
        prompt_acts = [at in inside for at in range(min(start, len(before)))]
        later = [
            positions.generated and bool(positions.selects(step, len(before)))
            for step in range(len(ids) - start)
        ]
        found.append(Example(tuple(ids), start, (*prompt_acts, *later)))
    if not any(any(example.acts) for example in found):
        raise SteeringError(f"The positions {positions} name no token of the examples; choose others.")
    return found


def batches_of(examples: Sequence[Example], members: Sequence[int], token_budget: int) -> list[Batch]:
    """The members in batches of like length."""
    lengths = [len(examples[member].ids) for member in members]
    return [
        Batch.of(examples, [members[at] for at in some]) for some in batches_by_length(lengths, token_budget)
    ]


@contextmanager
def frozen(model: LanguageModel) -> Iterator[None]:
    """Gradients go through the model and not into it; its parameters and its mode are as before afterwards."""
    if model.is_remote:
        raise SteeringError(f"{model.name} runs elsewhere, so no gradient comes back; load it here.")
    model.engine.check()
    learning = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    with model.lock, torch.inference_mode(False), torch.enable_grad(), evaluating(model.model):
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


def log_probabilities(
    model: LanguageModel, site: Site, change: Change | None, batch: Batch
) -> Float[Tensor, " token"]:
    """ln P of each answer's token, with a change at a site; float32, gradients where they are on."""
    hidden = hidden_states(model, site, change, batch)
    target = batch.target.to(hidden.device)

    def of_slice(states: Tensor, some: slice) -> Tensor:
        logits = unembedded(model, states)
        return logits.log_softmax(dim=-1).gather(1, target[some][:, None])[:, 0]

    # Logits of all tokens are large: each slice is made anew for its gradient.
    slices = [slice(start, start + model.rows_at_once) for start in range(0, len(hidden), model.rows_at_once)]
    return torch.cat([checkpoint(of_slice, hidden[some], some, use_reentrant=False) for some in slices])


def unembedded(model: LanguageModel, states: Float[Tensor, "row width"]) -> Float[Tensor, "row vocab"]:
    """Float32 logits of what the unembedding reads."""
    logits: Tensor = model.anatomy.logits_of(states)[..., : model.vocab_size].float()
    return logits


def hidden_states(
    model: LanguageModel, site: Site, change: Change | None, batch: Batch
) -> Float[Tensor, "token width"]:
    """What the unembedding reads at the tokens before those of the answers."""
    tokens = batch.tokens.to(model.device)
    acts = batch.acts.to(model.device)
    arguments: dict[str, Any] = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    if model.takes_positions:
        arguments["position_ids"] = tokens.position_ids

    def run() -> Tensor:
        with model.frames.of(batch.tokens):
            states: Tensor = model.anatomy.base(
                **arguments, use_cache=False, return_dict=True
            ).last_hidden_state
        return states[batch.row.to(states.device), batch.column.to(states.device)]

    if change is None:
        return run()
    trained = change
    with model.edit(site, lambda state: trained(state, acts.to(state))):
        return run()


def held_out_members(
    groups: Sequence[Any] | None, n: int, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Numbers to train on and numbers held out, whole groups; none held out where there are fewer than four groups."""
    names = list(range(n)) if groups is None else list(groups)
    if len(names) != n:
        raise SteeringError(f"{n} prompts came with {len(names)} groups; give one a prompt.")
    if not 0 <= share < 1:
        raise SteeringError(f"The share held out lies from 0 to below 1, and is not {share!r}.")
    unique = list(dict.fromkeys(names))
    count = round(share * len(unique)) if len(unique) >= 4 else 0
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).tolist()
    apart = {unique[at] for at in order[:count]}
    return [at for at in range(n) if names[at] not in apart], [at for at in range(n) if names[at] in apart]


def _joined(model: LanguageModel, prompt: Prompt, before: list[int], answer: Any, number: int) -> list[int]:
    """Token ids of a prompt and its answer."""
    if isinstance(answer, str):
        if not answer:
            raise PromptError(f"Answer {number} is empty; give it a text.")
        whole = Prompt(prompt.text + answer, has_special_tokens=prompt.has_special_tokens)
        return model.token_ids([whole])[0]
    if isinstance(answer, Sequence) and answer and all(isinstance(token, int) for token in answer):
        return [*before, *answer]
    raise PromptError(f"Answer {number} is {kind_of(answer)}; give a text, or a list of token ids.")
