"""How much one model by itself spreads what it writes, in its own format and in the plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.datasets import StudyData
from steerlab.errors import PromptError
from steerlab.models import LanguageModel
from steerlab.readouts.laws import SamplingLaw
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.readouts.samples import rendered, sample, steps_left
from steerlab.registry import Size
from steerlab.studies._branching.amounts import BUDGETS
from steerlab.studies._branching.measures import Sampled
from steerlab.studies._pair import Pair, amounts_of

if TYPE_CHECKING:
    from steerlab.models.prompts import Template


def stage(model: LanguageModel, data: StudyData, *, size: Size = "quick", seed: int = 0) -> list[Reading]:
    """ln of the branching factor of each prompt, by top-p 0.9 at temperature 1.

    Raises:
        PromptError: no prompt, or one that leaves no room for an output.
    """
    budget = BUDGETS[amounts_of(size, Pair(model, model))]
    texts = list(dict.fromkeys(data.open_prompts))[: budget.prompts]
    if not texts:
        raise PromptError("The branching factor needs at least one prompt; give it some.")
    formats: dict[str, Template] = {"in its own format": "auto", "in the plain format": "plain"}
    made, known = [], {}
    for name, template in formats.items():
        ids = rendered(model, texts, template)
        key = repr(ids)
        if key not in known:  # a template that writes the plain form is run once
            law = SamplingLaw(1.0, "top_p", 0.9)
            runs = sample(
                model,
                ids,
                samples=budget.samples,
                max_new_tokens=steps_left(model, ids, budget.steps),
                law=law,
                seed=seed,
                rows=budget.rows,
                description=f"branching {name}",
            )
            record = Sampled(model.tokenizer, runs, seed)
            known[key] = record.by_prompt(runs.entropy)
        quantity = Quantity(
            study="branching",
            of=f"open prompts {name}",
            measure="ln of the branching factor",
            unit="nats",
            per_token=True,
        )
        made.append(Reading.of(quantity, unit_names(texts), known[key]))
    return made
