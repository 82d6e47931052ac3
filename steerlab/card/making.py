"""`steering_card`: measure everything that a person must know before using a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steerlab.activations.in_force import NONE, interventions_in_force
from steerlab.card import asking
from steerlab.card.doses import checked, doses_of, random_ones
from steerlab.card.effects import Measuring
from steerlab.card.harnesses import inspect_scores, lm_eval_scores
from steerlab.card.predictor import Predictor, Reading, predictor, reading
from steerlab.card.result import SteeringCard
from steerlab.card.robustness import robustness
from steerlab.card.utility import ASKED, utility
from steerlab.datasets import SteeringTask, contrast, plain_text, steering_task
from steerlab.datasets.steering_tasks import TaskGiven, benign_requests
from steerlab.environment import library_versions
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site
from steerlab.registry import Size, check_options
from steerlab.steering import Intervention

EXAMPLES = "after a few examples"


@dataclass(frozen=True)
class Amounts:
    """How much is measured: random directions at the strength given and elsewhere, passages, answers, facts."""

    randoms: int
    few: int
    texts: int
    requests: int
    new_tokens: int
    facts: int


AMOUNTS: dict[str, Amounts] = {
    "quick": Amounts(randoms=19, few=3, texts=12, requests=24, new_tokens=128, facts=48),
    "full": Amounts(randoms=99, few=19, texts=100, requests=24, new_tokens=256, facts=200),
}


# Long: most of it documents its options.
def steering_card(
    model: LanguageModel,
    interventions: Intervention | Sequence[Intervention],
    task: TaskGiven,
    *,
    doses: Sequence[float] | None = None,
    size: Size = "quick",
    predicted: Predictor | bool = True,
    lm_eval: Sequence[Any] = (),
    inspect: Sequence[Any] = (),
    limit: int | None = None,
    seed: int = 0,
    announce: Callable[[str], None] = lambda line: None,
) -> SteeringCard:
    """What a person must know before using a vector: effect, control, price, harm, robustness, and asking instead.

    Args:
        model: a loaded model, unsteered.
        interventions: one or several that act together, at the strength that is meant to be used.
        task: a `datasets.SteeringTask`, the name of a packaged one ("formal", "happy", "spanish", "concise",
            "refusing"), or a TOML file.
        doses: factors of that strength; by default a quarter, half, one, two and four, as far as the interventions
            take them.
        size: "full" measures against more random directions, on longer answers and more text.
        predicted: how well training pairs predict effects in this model: measured here, taken from another card of
            the same model (`card.predictor`), or left out (False).
        lm_eval: tasks of lm-evaluation-harness that the steered model takes as well (extra `eval`).
        inspect: tasks of inspect-ai likewise, on the baked model.
        limit: questions of each of these tasks.
        seed: of every draw.
        announce: is told, in a sentence, what begins.

    Returns:
        The card; `card.verdict` is a sentence, `card.save(folder)` writes card.html, card.json and card.md.

    Raises:
        SteeringError: no intervention, one without a direction, or doses that they cannot take.
        DatasetError: a task that is not sound.
        SteerlabError: the model is steered already, or a harness fails.

    Example:
        >>> card = steering_card(model, sl.Add(sl.extract(model, "happy")), "happy")  # doctest: +SKIP
        >>> card.verdict  # doctest: +SKIP
    """
    check_options("A steering card", size=size)
    asked, given = steering_task(task), checked(model, interventions)
    _require_unsteered(model)
    _require_plain(predicted, seed)
    lm_eval, inspect = _named(lm_eval), _named(inspect)
    levels, amounts = doses_of(given, doses), AMOUNTS[size]
    scores = lm_eval_scores(model, given, lm_eval, limit) if lm_eval else []
    scores += inspect_scores(model, given, inspect, limit) if inspect else []  # what fails, fails first
    randoms = random_ones(given, amounts.randoms, seed)
    probes = asking.plainly(model, asked)
    baselines = {ASKED: asking.with_wish(model, asked)}
    if (shown := asking.after_examples(model, asked)) is not None:
        baselines[EXAMPLES] = shown
    texts = plain_text()[: amounts.texts]
    announce("Steering the probes")
    effects = Measuring(model, probes, given, randoms, amounts.few, seed).effects(
        levels, baselines, texts, asked.probes
    )
    announce("Answering benign requests")
    useful = utility(
        model, benign_requests()[: amounts.requests], asked.wish, given, levels,
        new_tokens=amounts.new_tokens, n_facts=amounts.facts, seed=seed,
    )  # fmt: skip
    announce("Asking the probes otherwise")
    robust = robustness(model, *asking.otherwise(model, asked), given, randoms[: amounts.few], seed)
    sites = [site for one in given for site in one.sites]
    return SteeringCard(
        summary=[],
        model=model.name,
        fingerprint=model.fingerprint,
        task=asked.name,
        wish=asked.wish,
        interventions=[repr(one) for one in given],
        sites=list(dict.fromkeys(map(str, sites))),
        effects=effects,
        utility=useful,
        robustness=robust,
        predictor=_predictor(model, predicted, seed, announce),
        reading=_reading(model, asked, sites),
        scores=scores,
        facts={
            "size": size,
            "seed": seed,
            "dtype": str(model.dtype).removeprefix("torch."),
            **library_versions(),
        },
    ).with_sentences()


# -- private --


def _require_unsteered(model: LanguageModel) -> None:
    """A card is made of the model as it is; what steers it already would be in every number."""
    if (found := interventions_in_force(model)) != NONE:
        raise SteeringError(
            f"The model has {found.partition(' (')[0]}; leave model.steering(...) before a card of it is made."
        )


def _require_plain(predicted: object, seed: object) -> None:
    if not isinstance(predicted, bool | Predictor):
        raise SteeringError(f"predicted is True, False or a card's predictor, not {predicted!r:.80}.")
    if not isinstance(seed, int) or seed < 0:
        raise SteeringError(f"The seed is a whole number from 0 on, not {seed!r:.80}.")


def _named(tasks: Any) -> list[Any]:
    """Tasks as a list, which is read more than once; a name alone is one task."""
    return [tasks] if isinstance(tasks, str) else list(tasks)


def _predictor(
    model: LanguageModel, wanted: Predictor | bool, seed: int, announce: Callable[[str], None]
) -> Predictor | None:
    if isinstance(wanted, Predictor):
        if wanted.model != model.name:
            raise SteeringError(
                f"The predictor was measured in {wanted.model}, and this is {model.name}; measure it here."
            )
        return wanted
    if not wanted:
        return None
    announce("Measuring how well training pairs predict effects")
    return predictor(model, seed=seed)


def _reading(model: LanguageModel, task: SteeringTask, sites: Sequence[Site]) -> Reading | None:
    """What the task's contrast says where the interventions act, if that is in the residual stream."""
    place = next((site for site in sites if model.width(site) == model.d_model), None)
    if not task.contrast or place is None:
        return None
    return reading(model, task.contrast, contrast(task.contrast), place)
