"""The tables of the confidence study: texts, answers, choices, changes, neurons, and what explains the entropy gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steerlab.readouts.questions import spoken
from steerlab.results import Table, with_rows
from steerlab.studies._confidence.choices import Choices
from steerlab.studies._confidence.depth import Depth
from steerlab.studies._confidence.temperature import TEMPERATURES

if TYPE_CHECKING:
    from steerlab.studies._confidence.result import ConfidenceResult

_CALIBRATION_NOTE = (
    "Calibration error: ten bins of equal width (adaptive: of equal count); floor: the error a perfectly calibrated "
    "model would show on as many answers."
)


def _above_chance(field: str, otherwise: str | None = None) -> Callable[[Any], Any]:
    """A field such as "calibration.error" of a row whose accuracy lies above chance."""
    part, _, name = field.partition(".")
    return lambda row: getattr(getattr(row, part), name) if row.above_chance else otherwise


_ANSWERED: dict[str, Any] = {
    "model": "model",
    "n": "n",
    "accuracy": "accuracy",
    "chance": "chance",
    "confidence": "confidence",
    "Brier": "brier",
    "calibration error": _above_chance("calibration.error", "not identified: at chance"),
    "adaptive": _above_chance("calibration.adaptive"),
    "floor": _above_chance("calibration.floor"),
}


def tables(result: ConfidenceResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    depth = result.depth
    return with_rows(
        _texts(result),
        _answers(result),
        _changes(result),
        *([choices_table(result.choices)] if result.choices else ()),
        _overlap(result),
        _effects(result),
        _candidates(result),
        *([_gap(depth), _cross(depth), _frequency(depth), _temperature(depth)] if depth else ()),
    )


# -- private, in the order of the page --


def _texts(result: ConfidenceResult) -> Table:
    return Table.of(
        "text_confidence",
        "Confidence on plain text",
        result.texts,
        {
            "model": "model",
            "texts": "n_texts",
            "tokens": "n_tokens",
            "entropy (nats a token)": "entropy",
            "entropy (nats a byte)": "entropy_per_byte",
            "largest probability": "p_max",
            "loss (nats a token)": "loss",
            "next token right": "accuracy",
            "gain over its controls": "gain",
            "calibration error": "calibration.error",
            "adaptive": "calibration.adaptive",
            "floor": "calibration.floor",
        },
        note="Texts as they are, without a template, in both models. " + _CALIBRATION_NOTE,
    )


def _answers(result: ConfidenceResult) -> Table:
    both = " and ".join(word.strip() for word in result.words)
    return Table.of(
        "answer_confidence",
        f"Confidence in {spoken(result.words)} on labelled statements ({result.form})",
        result.answers,
        {
            **_ANSWERED,
            "mass on both answers": "mass",
        },
        note=f"Probabilities are renormalised over {both}; always saying one half has a Brier score of 0.25. "
        + _CALIBRATION_NOTE,
    )


def _changes(result: ConfidenceResult) -> Table:
    return Table.of(
        "changes",
        "Post minus base",
        [*result.changes, *(result.choices.changes if result.choices else ())],
        {
            "quantity": "what",
            "change": "value",
            "control: base and post swapped at random": "control",
            "verdict": lambda change: "changed" if change.identified else "not identified",
        },
        note="Paired by text, statement or question.",
    )


def choices_table(choices: Choices) -> Table:
    low, high = TEMPERATURES
    at_bound = [row.model for row in choices.answers if not 1.1 * low < row.temperature < high / 1.1]
    bound = f"; {' and '.join(at_bound)} at the bound of the search, {low} to {high:g}" if at_bound else ""
    return Table.of(
        "choice_confidence",
        f"Confidence on multiple choice ({choices.form})",
        choices.answers,
        {
            **_ANSWERED,
            "temperature": "temperature",
            "Brier after": "brier_after",
            "calibration error after": _above_chance("after.error"),
            "adaptive after": _above_chance("after.adaptive"),
        },
        note=f"{choices.source} Probabilities are normalised over a question's answers; Brier runs from 0 to 2. After: "
        f"with one temperature, fitted on the other half of the subjects{bound}. Floor: the error of a perfectly "
        "calibrated model with as many answers.",
    )


def _overlap(result: ConfidenceResult) -> Table:
    return Table.of(
        "neuron_overlap",
        "Overlap of the entropy-neuron candidates, beside its controls",
        result.neurons.agreements,
        {"quantity": "name", "kind": "kind", "value": "value"},
        note="Overlap: intersection over union of ten neurons chosen in each model. Where a control overlaps as "
        "much, the overlap says that weights hardly moved, and nothing about confidence.",
    )


def _effects(result: ConfidenceResult) -> Table:
    return Table.of(
        "neuron_effects",
        "Mean ablation of single last-layer neurons: |change in entropy|, nats a token",
        result.neurons.effects,
        {
            "model": "model",
            "neurons": "group",
            "n": "n",
            "norm recomputed": "total",
            "norm's scale frozen": "direct",
            "share through the norm": "through_norm",
        },
        note="An entropy neuron acts through the final norm: its share should exceed that of random neurons.",
    )


def _candidates(result: ConfidenceResult) -> Table:
    sizes = ", ".join(f"{chosen.model} {chosen.null_size} directions" for chosen in result.neurons.sets)
    return Table.of(
        "entropy_neurons",
        "Entropy-neuron candidates of the last layer",
        [(chosen, neuron) for chosen in result.neurons.sets for neuron in chosen.candidates],
        {
            "model": lambda row: row[0].model,
            "neuron": lambda row: f"{row[0].layer}.{row[1].neuron}",
            "|w_out|": lambda row: row[1].norm,
            "LogitVar": lambda row: row[1].logit_var,
            "share in the null space": lambda row: row[1].null_share,
            "in both": lambda row: row[1].shared,
            "by null space": lambda row: row[1].neuron in row[0].by_null_space,
        },
        note="Of the quarter of neurons with the largest output weights, the ten with the lowest variance of cosine "
        "over the vocabulary. By null space: also among the ten with the largest share of w_out in the null space "
        f"({sizes}).",
    )


def _gap(depth: Depth) -> Table:
    gap = depth.gap
    entropies = (
        f"Entropy {gap.base} base and {gap.post} post, nats a token over the same texts; gap {gap.gap}. "
        if gap
        else ""
    )
    return Table.of(
        "entropy_gap",
        "How much of the entropy gap the neurons explain",
        gap.explained if gap else (),
        {
            "neurons": "neurons",
            "number": "n",
            "exchange": "way",
            "share explained": "share",
            "random sets of like norm": "random",
        },
        note=f"{entropies}1 means that the gap is gone; negative that it grows.",
    )


def _cross(depth: Depth) -> Table:
    return Table.of(
        "cross_ablation",
        "Ablating one model's entropy neurons in both models",
        depth.gap.crossed if depth.gap else (),
        {
            "neurons": "neurons",
            "in": "model",
            "change of entropy": "change",
            "random sets of like norm": "random",
        },
        note="All neurons of the set at their means at once; nats a token.",
    )


def _frequency(depth: Depth) -> Table:
    return Table.of(
        "frequency_neurons",
        "Neurons along the token-frequency direction",
        depth.frequency,
        {
            "model": "model",
            "neuron": "neuron",
            "cosine": "cosine",
            "|Δloss|": "total",
            "share": "share",
            "ΔKL(model ‖ unigram)": "kl_model_unigram",
            "ΔKL(unigram ‖ model)": "kl_unigram_model",
        },
        note="Share: what of the effect on the loss goes when the logits' component along frequency is held. Counts "
        "are those of the texts that were read.",
    )


def _temperature(depth: Depth) -> Table:
    return Table.of(
        "temperature",
        "Calibration on statements, before and after one temperature",
        depth.tempered,
        {
            "model": "model",
            "temperature": "temperature",
            "calibration error": "error",
            "after": "error_after",
            "Brier score": "brier",
            "Brier after": "brier_after",
        },
        note="Temperatures are fitted on one half of the subjects and used on the other.",
    )
