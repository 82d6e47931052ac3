"""What one model by itself does with requests: the share it refuses of either kind, and the first token's odds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.datasets import StudyData
from steerlab.models import LanguageModel
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.registry import Size
from steerlab.studies._pair import Pair, amounts_of
from steerlab.studies._refusal.parts import METHODS
from steerlab.studies._refusal.study import AMOUNTS, splits_of, subject_of

if TYPE_CHECKING:
    from steerlab.models.prompts import Template


def stage(model: LanguageModel, data: StudyData, *, size: Size = "quick", seed: int = 0) -> list[Reading]:
    """Refused requests of each kind on the test split, and log-odds that an answer begins with a refusal.

    Asked in the model's own format, and in the plain one, which every stage has: a step that brings a chat template
    changes the format along with the weights.

    Raises:
        SteerlabError: requests without splits, or that this model cannot be given.
    """
    own = _asked(model, data, "auto", "in its own format", size, seed)
    if not model.has_chat_template:
        return own + [_renamed(one, "in its own format", "in the plain format") for one in own]
    return own + _asked(model, data, "plain", "in the plain format", size, seed)


# -- private --


def _asked(
    model: LanguageModel, data: StudyData, template: Template, where: str, size: Size, seed: int
) -> list[Reading]:
    requests = data.requests
    splits = splits_of(requests, AMOUNTS[amounts_of(size, Pair(model, model))], seed)
    subject = subject_of("model", model, splits, METHODS["corrected"], seed, {}, None, template)
    kinds = (
        (requests.positive_name, subject.test.harmful, splits["test"].positive),
        (requests.negative_name, subject.test.harmless, splits["test"].negative),
    )
    made = []
    for name, prompts, texts in kinds:
        of = f"{name} requests {where}"
        verdicts, units = subject.judge.verdicts(prompts), unit_names(texts)
        refused = Quantity(study="refusal", of=of, measure="refused", share=True)
        made.append(Reading.of(refused, units, verdicts.refused))
        odds = Quantity(study="refusal", of=of, measure="log-odds of a refusal's first token", unit="nats")
        made.append(
            Reading.of(odds, units, verdicts.odds)
            if subject.words
            else Reading.absent(odds, f"No token of {model.name} begins a refusal as a whole word.")
        )
    return made


def _renamed(reading: Reading, was: str, now: str) -> Reading:
    """The same reading of a model whose own format is the plain one."""
    quantity = reading.quantity
    return reading.model_copy(
        update={"quantity": quantity.model_copy(update={"of": quantity.of.replace(was, now)})}
    )
