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
from steerlab.models.generation import end_token_ids, rows_without_token
from steerlab.models.prompts import as_prompt

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
    _require_possible(model, max_new_tokens)
    from transformers import ContinuousBatchingConfig

    ids = model.token_ids(prompts)
    pages = sum(-(-(len(prompt) + max_new_tokens) // _PAGE) for prompt in ids)
    if cache_tokens:
        pages = -(-cache_tokens // _PAGE)
    shared = ContinuousBatchingConfig(
        page_size=_PAGE, num_blocks=max(4, pages), max_batch_tokens=max_batch_tokens
    )
    with model.lock, _without_hint():
        outputs = model.source.generate_batch(
            inputs=ids,
            generation_config=_settings(model, max_new_tokens),
            continuous_batching_config=shared,
            warmup=False,
        )
    if len(outputs) != len(ids):
        raise SteeringError(
            f"Continuous batching finished {len(outputs)} of {len(ids)} requests; give it more cache_tokens."
        )
    in_order = sorted(outputs.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
    return [
        _generation(model, number, output, as_prompt(prompts[number]))
        for number, output in enumerate(in_order)
    ]


def _require_possible(model: LanguageModel, max_new_tokens: int) -> None:
    """Raise `SteeringError` for what would run unsteered, or write other tokens than `generate`."""
    if model.frames.watched:
        raise SteeringError(
            "model.steering(...) belongs to this thread and goes by rows, and continuous batching runs packed "
            "rows in another thread; put constant interventions into Slots(model, sites) and use slots.steering(...)."
        )
    if model.backend != "transformers":
        raise SteeringError(
            f"Continuous batching is transformers' own; load {model.name} with backend='transformers'."
        )
    if "mixer_out" in model.site_names():
        raise SteeringError(
            f"Blocks of {model.name} have mixers besides attention, for which transformers packs no rows; use "
            "model.generate."
        )
    if getattr(model.anatomy.config, "attn_logit_softcapping", None):
        raise SteeringError(
            f"{model.name} caps its attention scores, which the packed attention of this transformers leaves "
            "out, so other tokens would come; use model.generate."
        )
    if max_new_tokens < 1:
        raise SteeringError(
            "Continuous batching writes at least one token; give max_new_tokens of one or more."
        )


def _settings(model: LanguageModel, max_new_tokens: int) -> Any:
    """Greedy decoding that ends at the model's end tokens and never writes a row that is no token."""
    from transformers import GenerationConfig

    build: Any = GenerationConfig
    return build(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(end_token_ids(model)) or -1,
        pad_token_id=0,
        suppress_tokens=rows_without_token(model) or None,
    )


def _generation(model: LanguageModel, number: int, output: Any, prompt: Prompt) -> Generation:
    if output.error:
        raise SteeringError(f"Continuous batching failed on prompt {number}: {output.error}.")
    written = tuple(output.generated_tokens)
    text = model.tokenizer.decode(list(written), skip_special_tokens=True)
    finished = bool(written) and written[-1] in end_token_ids(model)
    return Generation(text=text, token_ids=written, finished=finished, prompt=prompt)


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
