"""Generation by continuous batching: prompts of any length share packed forward passes, steered through slots.

transformers runs it in a thread of its own and packs sequences into one row, so hooks of `model.steering`, which
belong to their thread and go by rows and positions, do not act there (and say so). Slots act on every token of
every sequence, whatever the packing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from steerlab.errors import SteeringError
from steerlab.models import Generation, LanguageModel, Prompt
from steerlab.models.generation import end_token_ids

_PAGE = 64


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    *,
    max_new_tokens: int,
    max_batch_tokens: int = 1024,
    cache_tokens: int | None = None,
) -> list[Generation]:
    """Greedy continuations in prompt order; inside `slots.steering(...)` steered ones.

    Args:
        max_batch_tokens: tokens of one packed forward pass.
        cache_tokens: room of the shared cache; by default what all prompts with their continuations need, rounded up.

    Raises:
        SteeringError: inside `model.steering`, whose hooks would not act; or a request that failed, with its reason.
        ModelError: another backend.
    """
    if model.frames.watched:
        raise SteeringError(
            "model.steering(...) belongs to this thread and goes by rows, and continuous batching runs packed "
            "rows in another "
            "thread; put constant interventions into Slots(model, sites) and use slots.steering(...)."
        )
    if model.backend != "transformers":
        raise SteeringError(
            f"Continuous batching is transformers' own; load {model.name} with backend='transformers'."
        )
    if getattr(model.anatomy.config, "attn_logit_softcapping", None):
        raise SteeringError(
            f"{model.name} caps its attention scores, which the packed attention of this transformers leaves "
            f"out, so other "
            "tokens would come; use model.generate."
        )
    if max_new_tokens < 1:
        raise SteeringError(
            "Continuous batching writes at least one token; give max_new_tokens of one or more."
        )
    from transformers import ContinuousBatchingConfig, GenerationConfig

    tokens = model.tokenize(list(prompts))
    ids = [row[-length:].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]
    ends = end_token_ids(model)
    room = cache_tokens or sum(-(-(len(one) + max_new_tokens) // _PAGE) * _PAGE for one in ids)
    rows = int(model.anatomy.head.weight.shape[0])
    settings: Any = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(ends) or -1,
        pad_token_id=0,
        suppress_tokens=list(range(model.vocab_size, rows)) or None,  # rows that are no tokens
    )
    shared = ContinuousBatchingConfig(
        page_size=_PAGE, num_blocks=max(4, -(-room // _PAGE)), max_batch_tokens=max_batch_tokens
    )
    with model.lock, _without_hint():
        found = model.source.generate_batch(
            inputs=ids, generation_config=settings, continuous_batching_config=shared, warmup=False
        )
    if len(found) != len(ids):
        raise SteeringError(
            f"Continuous batching finished {len(found)} of {len(ids)} requests; give it more cache_tokens."
        )
    made = []
    for number, one in enumerate(
        sorted(found.values(), key=lambda each: int(each.request_id.rpartition("_")[2]))
    ):
        if one.error:
            raise SteeringError(f"Continuous batching failed on prompt {number}: {one.error}.")
        written = list(one.generated_tokens)
        text = model.tokenizer.decode(written, skip_special_tokens=True)
        made.append(
            Generation(text=text, token_ids=tuple(written), finished=bool(written) and written[-1] in ends)
        )
    return made


@contextmanager
def _without_hint() -> Iterator[None]:
    """transformers hints that it has not tried leaving out tokens in packed rows; it works element by element."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    logger.addFilter(_is_no_hint)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_hint)


def _is_no_hint(record: logging.LogRecord) -> bool:
    return "SuppressTokensLogitsProcessor" not in record.getMessage()
