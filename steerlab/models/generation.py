"""Text from the model: greedy or sampled, batched, with the KV cache.

transformers' own `generate` does the work. The checkpoint's recommended sampling settings (repetition
penalty, top-k, ...) are set aside, so that greedy means greedy and sampling means the law that was asked
for; its end tokens are kept. What is sampled goes by seed, prompt and step alone (`drawing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

from steerlab.errors import SteerlabError
from steerlab.models.batches import run_in_batches
from steerlab.models.drawing import DrawnScores, Sampler, new_seed
from steerlab.models.hooks import Call
from steerlab.models.prompts import Prompt, Tokens, as_prompt, pad_token_id

if TYPE_CHECKING:
    from steerlab.models.language_model import LanguageModel


#: Is told the numbers of some prompts, the place of a new token, and the scores that it is chosen by [row, vocab].
Watch: TypeAlias = Callable[[list[int], int, Float[Tensor, "row vocab"]], None]


@dataclass(frozen=True)
class Generation:
    """What the model wrote after one prompt.

    Attributes:
        text: the continuation without special tokens.
        token_ids: its tokens, the end token included when there is one.
        finished: whether the model ended by itself.
        prompt: what it was written after, where that is known; `model.reread` needs it.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    prompt: Prompt | None = field(default=None, compare=False, repr=False)


def generate(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    *,
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_p: float,
    seed: int | None,
    num_beams: int,
    assistant: LanguageModel | None,
    token_budget: int,
    watch: Watch | None = None,
) -> list[Generation]:
    """See `LanguageModel.generate`."""
    require_settings(max_new_tokens, do_sample, temperature, top_p)
    if watch is not None and (num_beams > 1 or assistant is not None or model.is_remote):
        raise SteerlabError(
            "Scores are watched where tokens are chosen here, one by one; leave out watch, or the search."
        )
    _require_search(model, do_sample, num_beams, assistant)
    lengths = model.lengths(prompts)
    chosen = new_seed() if do_sample and seed is None else seed
    settings: dict[str, object] = {"num_beams": num_beams}
    if do_sample and model.is_remote:  # the server draws
        settings |= {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    results: dict[int, tuple[int, ...]] = {}
    call = Call([as_prompt(prompt) for prompt in prompts])

    def write(rows: list[int], room: int) -> None:
        tokens = model.tokenize([prompts[row] for row in rows], padding_side="left").of_rows(rows)
        processors: list[Any] = []
        if do_sample and not model.is_remote:
            sampler = Sampler(chosen, rows, room, temperature=temperature, top_p=top_p)
            processors.append(DrawnScores(sampler, tokens.width))
        if watch is not None:
            processors.insert(0, _Watched(model, watch, rows, tokens.width))
        written = _continue(model, tokens, {**settings, "max_new_tokens": room}, assistant, processors)
        results.update(zip(rows, written, strict=True))
        call.written.update({row: len(ids) for row, ids in zip(rows, written, strict=True)})

    with model.frames.call.holding(call):
        for rows, room in _by_room(model, lengths, max_new_tokens):
            if not room:
                results.update(dict.fromkeys(rows, ()))
                call.written.update(dict.fromkeys(rows, 0))
                continue
            # transformers' assisted decoding takes one prompt at a time
            for some in [rows] if assistant is None else [[row] for row in rows]:
                run_in_batches(
                    lambda batch, some=some, room=room: write([some[index] for index in batch], room),  # type: ignore[misc]
                    [(lengths[row] + room) * num_beams for row in some],
                    token_budget,
                )
    return [_generation(model, results[row], prompt) for row, prompt in enumerate(call.prompts)]


class _Watched:
    """For transformers' `generate`: hands the scores of real tokens on and changes nothing."""

    def __init__(self, model: LanguageModel, watch: Watch, rows: list[int], width: int) -> None:
        self._vocab_size, self._watch, self._rows, self._width = model.vocab_size, watch, rows, width

    def __call__(
        self, input_ids: Int[Tensor, "row position"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        self._watch(self._rows, input_ids.shape[1] - self._width, scores[:, : self._vocab_size].float())
        return scores


def require_settings(max_new_tokens: int, do_sample: bool, temperature: float, top_p: float) -> None:
    """Raise `SteerlabError` for settings that would write nothing or mean no law."""
    if not hasattr(max_new_tokens, "__index__"):
        raise SteerlabError(f"The number of new tokens is {max_new_tokens!r}; write max_new_tokens=64.")
    if max_new_tokens < 1:
        raise SteerlabError(
            f"Generating {max_new_tokens} new tokens writes nothing; ask for max_new_tokens of at least one."
        )
    if not do_sample and (temperature != 1 or top_p != 1):
        raise SteerlabError(
            f"Greedy text has no temperature or top_p ({temperature} and {top_p}); add do_sample=True to sample."
        )
    if do_sample and not (temperature > 0 and 0 < top_p <= 1):
        raise SteerlabError(
            f"Sampling needs temperature > 0 and 0 < top_p <= 1, not {temperature} and {top_p}; "
            "for greedy text use do_sample=False."
        )


def end_token_ids(model: LanguageModel) -> tuple[int, ...]:
    """Every id that ends a text for this model."""
    settings = (getattr(model.model, "generation_config", None), model.tokenizer)
    sources = (*settings, model.model.config, model.anatomy.config)
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    return ()


def rows_without_token(model: LanguageModel) -> list[int]:
    """Rows that pad the unembedding: they stand for no token and must not be written."""
    return list(range(model.vocab_size, model.anatomy.n_rows))


def _by_room(
    model: LanguageModel, lengths: Sequence[int], new_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """Rows by how many tokens each may add: no text outgrows the model's context.

    Rows whose room is short run with rows of their own length only, so that what a prompt gets never
    depends on its neighbours.
    """
    context = model.context or max(lengths) + new_tokens
    rooms = [min(new_tokens, context - length) for length in lengths]
    for room in sorted(set(rooms), reverse=True):
        yield [row for row, own in enumerate(rooms) if own == room], room


def _require_search(
    model: LanguageModel, do_sample: bool, num_beams: int, assistant: LanguageModel | None
) -> None:
    if num_beams < 1:
        raise SteerlabError(f"A search needs at least one beam, not {num_beams}.")
    if num_beams == 1 and assistant is None:
        return
    if do_sample or (num_beams > 1 and assistant is not None):
        raise SteerlabError(
            "Beam search and assisted decoding are greedy, and exclude each other; sample with neither, or give one."
        )
    if model.is_remote:
        raise SteerlabError(
            f"{model.name} is run by a server, which decodes one token at a time; leave beams and assistants."
        )
    # A cache that keeps a running state cannot take back tokens that were proposed in vain.
    stateful = [
        each.name for each in (model, assistant) if each and getattr(each.model, "_is_stateful", False)
    ]
    if assistant is not None and stateful:
        raise SteerlabError(
            f"{stateful[0]} keeps a running state, from which proposed tokens cannot be taken back; leave the "
            "assistant out."
        )
    if assistant is not None and assistant.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise SteerlabError(
            f"{assistant.name} has another vocabulary than {model.name}, so its tokens cannot be proposed; take an "
            "assistant with the same tokenizer."
        )


def _continue(
    model: LanguageModel,
    tokens: Tokens,
    settings: dict[str, object],
    assistant: LanguageModel | None,
    processors: Sequence[Any],
) -> list[tuple[int, ...]]:
    from transformers import GenerationConfig

    ends = end_token_ids(model)
    pad = pad_token_id(model.tokenizer)
    if pad >= model.anatomy.n_rows:  # added without a row of its own
        pad = min(ends, default=0)
    build: Any = GenerationConfig
    config = build(
        **settings,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        suppress_tokens=rows_without_token(model) or None,
    )
    output = model.continued(tokens, config, assistant, processors)
    return [_until_end(row, ends) for row in output[:, tokens.width :].tolist()]


def _until_end(ids: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)


def _generation(model: LanguageModel, ids: tuple[int, ...], prompt: Prompt) -> Generation:
    finished = bool(ids) and ids[-1] in end_token_ids(model)
    text = model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Generation(text=text, token_ids=ids, finished=finished, prompt=prompt)
