"""How a task's probes are asked: plainly, with the wish written in, after examples, and in other forms.

Every form is a list of prompts with the two continuations of each. Forms that a model cannot take (no template takes a
system message) are left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from steerlab.datasets import SteeringTask, plain_text
from steerlab.datasets.steering_tasks import Probe
from steerlab.errors import PromptError
from steerlab.models import LanguageModel, Prompt
from steerlab.models.prompts import Template
from steerlab.models.templates import has_chat_template
from steerlab.readouts.scoring import continuation_log_odds

_ROLE = "I run a small ferry and read this to my passengers. "
_SYSTEM = "You are an assistant in a public library."
_FEWEST = 5  # pairs of continuations
_LONG = 6  # passages before the request


@dataclass(frozen=True)
class Asked:
    """Prompts, and of each the continuation that the steering points to and the one on the other side."""

    prompts: list[Prompt]
    towards: list[str]
    away: list[str]

    def log_odds(self, model: LanguageModel) -> Float[np.ndarray, " prompt"]:
        """ln P(towards) - ln P(away) of each prompt, nats, under whatever steers the model."""
        return continuation_log_odds(model, self.prompts, self.towards, self.away)

    @property
    def clusters(self) -> list[int]:
        """A number a prompt, the same where the continuations are: they are no new evidence.

        A task with fewer than five pairs of continuations is about these, so every prompt stands alone.
        """
        pairs = list(zip(self.towards, self.away, strict=True))
        known = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        return [known[pair] for pair in pairs] if len(known) >= _FEWEST else list(range(len(pairs)))


def plainly(model: LanguageModel, task: SteeringTask) -> Asked:
    """The probes as they are."""
    return _asked(model, task, task.probes, task.wording)


def with_wish(model: LanguageModel, task: SteeringTask) -> Asked:
    """The probes with the wish written into the prompt: what a person would do who does not steer."""
    return _asked(model, task, task.probes, f"{task.wish} {task.wording}")


def after_examples(model: LanguageModel, task: SteeringTask) -> Asked | None:
    """The probes after a few answers of the wished kind; None where the task has none."""
    if not task.examples:
        return None
    shown: list[dict[str, str]] = []
    for text, answer in task.examples:
        shown.append({"role": "user", "content": task.wording.replace("{text}", text)})
        shown.append({"role": "assistant", "content": text + answer if task.opened else answer})

    def render(probe: Probe) -> Prompt:
        asked = [*shown, {"role": "user", "content": task.wording.replace("{text}", probe.text)}]
        if task.opened:
            asked.append({"role": "assistant", "content": probe.text})
        return model.conversation_prompt(asked, think=False)

    return _pairs([render(probe) for probe in task.probes], task.probes)


def otherwise(model: LanguageModel, task: SteeringTask) -> tuple[dict[str, Asked], dict[str, str]]:
    """The probes in every other form that the model and the task have, and why the others are left out."""
    forms: dict[str, Asked] = {}
    missing: dict[str, str] = {}
    if task.rewording:
        forms["other words"] = _asked(model, task, task.probes, task.rewording)
    else:
        missing["other words"] = "The task has no rewording."
    forms["another role"] = _asked(model, task, task.probes, _ROLE + task.wording)
    try:
        forms["a system message"] = _asked(model, task, task.probes, task.wording, system=_SYSTEM)
    except PromptError as error:
        missing["a system message"] = str(error)
    if len(task.other_probes) == 1:
        missing["another language"] = "The task has one probe in another language, and an interval needs two."
    elif task.other_probes:
        forms["another language"] = _asked(model, task, task.other_probes, task.other_wording)
    else:
        missing["another language"] = "The task has no probes in another language."
    bare: Template = "plain" if has_chat_template(model.tokenizer) else "none"
    forms["another template"] = _asked(model, task, task.probes, task.wording, template=bare)
    before = " ".join(plain_text()[-_LONG:])
    forms["a long prompt"] = _asked(model, task, task.probes, f"{before}\n\n{task.wording}")
    return forms, missing


# -- private --


def _asked(
    model: LanguageModel,
    task: SteeringTask,
    probes: Sequence[Probe],
    wording: str,
    *,
    system: str | None = None,
    template: Template = "auto",
) -> Asked:
    """Probes in a wording; a text that is how the answer begins is put behind the template."""
    prompts = [
        model.instruction_prompt(
            wording.replace("{text}", probe.text),
            system=system,
            template=template,
            response=probe.text if task.opened else "",
            think=False,
        )
        for probe in probes
    ]
    return _pairs(prompts, probes)


def _pairs(prompts: list[Prompt], probes: Sequence[Probe]) -> Asked:
    return Asked(prompts, [probe.towards for probe in probes], [probe.away for probe in probes])
