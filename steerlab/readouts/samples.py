"""What a loaded model writes after texts in its own format: samples with their law, from `sampling`.

A text becomes the token ids of its rendering; an answer ends at the model's end tokens, or where its context does.
"""

from __future__ import annotations

from collections.abc import Sequence

from steerlab.errors import PromptError, SteeringError
from steerlab.models import LanguageModel
from steerlab.models.generation import end_token_ids
from steerlab.models.prompts import Template
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.sampling import Trajectories, sample_tokens


def rendered(model: LanguageModel, texts: Sequence[str], template: Template = "auto") -> list[list[int]]:
    """Token ids of every text in the model's rendering, a thinking block closed, so that what follows is the answer.

    Raises PromptError as `instruction_prompt` and `tokenize`.
    """
    return model.token_ids([model.instruction_prompt(text, template=template, think=False) for text in texts])


def steps_left(model: LanguageModel, prompts: Sequence[Sequence[int]], wanted: int) -> int:
    """New tokens that fit into the model's context behind its longest prompt, at most `wanted`.

    Raises:
        PromptError: none fits.
    """
    longest = max(map(len, prompts))
    steps = wanted if model.context is None else min(wanted, model.context - longest)
    if steps < 1:
        raise PromptError(
            f"A prompt of {longest} tokens fills the whole context of {model.name} and leaves no room for an output; "
            "shorten it."
        )
    return steps


def sample(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    law: SamplingLaw | None = None,
    seed: int = 0,
    rows: int = 256,
    numbers: Sequence[int] | None = None,
    description: str = "sampling",
) -> Trajectories:
    """`sample_tokens` with the model's own vocabulary and end tokens; an intervention in force acts on all of it.

    Raises:
        PromptError: as `sample_tokens`.
        SteeringError: inside a steering that goes by the rows of a batch, which are repeated and dropped here.
    """
    by_row = [name for entry in model.frames.by_row.here() for name in entry.value]
    if by_row:
        raise SteeringError(
            f"{by_row[0]} goes by the rows of a batch, and sampling repeats and drops rows; steer each prompt in a "
            "context of its own, let the condition be read at every token, or write with model.generate."
        )
    return sample_tokens(
        model.model,
        prompts,
        vocab_size=model.vocab_size,
        stop_ids=end_token_ids(model),
        samples=samples,
        max_new_tokens=max_new_tokens,
        law=law,
        seed=seed,
        rows=rows,
        numbers=numbers,
        description=description,
    )
