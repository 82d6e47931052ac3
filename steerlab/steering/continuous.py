"""Generation by continuous batching: prompts of any length share packed forward passes, steered through slots.

transformers runs it in a thread of its own and packs sequences into one row, so hooks of `model.steering`, which
belong to their thread and go by rows and positions, do not act there (and say so). Slots act on every token of
every sequence, whatever the packing; a table (`PerRow`) gives each prompt interventions of its own.
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
from steerlab.steering.packed import Announced, PackedRows, Pass, Row
from steerlab.steering.per_row import PerRow

_PAGE = 64


def generate_batch(
    model: LanguageModel,
    prompts: Sequence[str | Prompt],
    *,
    max_new_tokens: int,
    table: PerRow | None = None,
    max_batch_tokens: int = 1024,
    cache_tokens: int | None = None,
) -> list[Generation]:
    """Greedy continuations in prompt order; inside `slots.steering(...)` steered ones.

    Args:
        table: a row of interventions for each prompt, () for one that is left alone.
        max_batch_tokens: tokens of one packed forward pass.
        cache_tokens: room of the shared cache; by default what all prompts with their continuations need, rounded up.

    Raises:
        SteeringError: inside `model.steering`, whose hooks would not act; a table with other rows than prompts, or with
            an intervention that depends on a condition or never acted; or a request that failed, with its reason.
        ModelError: another backend.
    """
    _require_possible(model, max_new_tokens)
    from transformers import ContinuousBatchingConfig

    ids = model.token_ids(prompts)
    rows = [] if table is None else _rows(model, prompts, table)
    pages = sum(-(-(len(prompt) + max_new_tokens) // _PAGE) for prompt in ids)
    if cache_tokens:
        pages = -(-cache_tokens // _PAGE)
    shared = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=max(4, pages),
        max_batch_tokens=max_batch_tokens,
        # A prompt's beginning has other states under other interventions.
        **({"allow_block_sharing": False, "use_cuda_graph": False} if rows else {}),
    )
    with model.lock, _without_hint(), _steered_by_row(model, rows):
        outputs = model.source.generate_batch(
            inputs=ids,
            generation_config=_settings(model, max_new_tokens),
            continuous_batching_config=shared,
            warmup=False,
        )
    for row in rows:
        row.require_acted()
    if len(outputs) != len(ids):
        raise SteeringError(
            f"Continuous batching finished {len(outputs)} of {len(ids)} requests; give it more cache_tokens."
        )
    in_order = sorted(outputs.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
    return [
        _generation(model, number, output, as_prompt(prompts[number]))
        for number, output in enumerate(in_order)
    ]


def _rows(model: LanguageModel, prompts: Sequence[str | Prompt], table: PerRow) -> list[Row]:
    """The table's rows, each with its prompt."""
    if len(table.rows) != len(prompts):
        raise SteeringError(
            f"The table of interventions has {len(table.rows)} rows for {len(prompts)} prompts; give one row a prompt, "
            "() for a prompt left alone."
        )
    return [
        Row(edits, model, model.tokenize([prompt])) for edits, prompt in zip(table.rows, prompts, strict=True)
    ]


@contextmanager
def _steered_by_row(model: LanguageModel, rows: Sequence[Row]) -> Iterator[None]:
    """Requests are steered by their numbers: transformers names them in the order in which they are given."""
    if not rows:
        yield
        return
    now = Pass()
    packed = PackedRows(model, [site for row in rows for site in row.sites], now)
    for number, row in enumerate(rows):
        packed.assign(f"req_{number}", row)
    start = model.source.init_continuous_batching

    def announced(*args: Any, **kwargs: Any) -> Any:
        manager = start(*args, **kwargs)
        manager.logit_processor = Announced(manager.logit_processor, now.begin)
        return manager

    model.source.init_continuous_batching = announced
    try:
        yield
    finally:
        del model.source.init_continuous_batching
        packed.remove()
    if bad := packed.not_finite():
        first = min(int(name.rpartition("_")[2]) for name in bad)
        raise SteeringError(
            f"The interventions of prompt {first} give numbers that are not finite; steer less."
        )


def _require_possible(model: LanguageModel, max_new_tokens: int) -> None:
    """Raise `SteeringError` for what would run unsteered, or write other tokens than `generate`."""
    if model.frames.watched:
        raise SteeringError(
            "model.steering(...) belongs to this thread and goes by rows, and continuous batching runs packed "
            "rows in another thread; put constant interventions into Slots(model, sites) and use slots.steering(...), "
            "or give generate_batch(table=PerRow(...))."
        )
    require_packable(model)
    if max_new_tokens < 1:
        raise SteeringError(
            "Continuous batching writes at least one token; give max_new_tokens of one or more."
        )


def require_packable(model: LanguageModel) -> None:
    """Raise `SteeringError` for a model whose texts cannot be packed, or would write other tokens than `generate`."""
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
