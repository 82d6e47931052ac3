"""The tables of the refusal study: rates and effects, chosen places, cosines, projections, prices, form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from steerlab.judging import JudgeAgreement
from steerlab.readouts.agreement import COLUMNS, Agreement
from steerlab.readouts.dominance import DOMINANT
from steerlab.results import Table, with_rows
from steerlab.selection import Selection, way
from steerlab.statistics import Estimate, bootstrap_mean
from steerlab.studies._refusal.place import TEMPLATES

if TYPE_CHECKING:
    from steerlab.studies._refusal.result import Outcome, RefusalResult

_HALVES = (
    "Across halves: base found on one half of the prompts, post on the other. Ceiling: one model with itself across "
    "the same halves."
)


def tables(result: RefusalResult) -> list[Table]:
    """Every table that has a row, in reading order."""
    return with_rows(
        _rates(result),
        _judged(result),
        _choice(result),
        *(_candidates(f"selection_{model}", choice) for model, choice in result.choices.items()),
        *(_ways(f"ablation_{model}", choice) for model, choice in result.choices.items()),
        *(_cosine(key, title, rows) for key, title, rows in result.cosines()),
        *(_grid(template, result) for template in TEMPLATES),
        _projections(result),
        _price(result),
        _shared_means(result),
        _surface(result),
    )


# -- private, in the order of the page --


def _rates(result: RefusalResult) -> Table:
    tokens = "; ".join(
        f"{model}: {', '.join(words) or 'none'}" for model, words in result.setting.refusal_tokens.items()
    )
    corrected = result.setting.preset == "corrected"
    dose = f". Added with {result.setting.strength:g} class gaps" if result.setting.strength else ""
    judged = f"Who refuses is said by the judge {result.judge}. " if result.judge else ""
    end = ", at each of three points of the layer." if result.setting.preset == "published" else "."
    columns: dict[str, str | Callable[[Outcome], Any]] = {
        "model": "model",
        "prompts": "prompts",
        "intervention": "intervention",
        "direction": "direction",
        "refuses": "refused",
        "phrase at start": "start",
        "phrase anywhere": "anywhere",
        "refusal log-odds": "log_odds",
        "gibberish": lambda outcome: outcome.gibberish if corrected else None,
    }
    if any(row.unfinished for row in result.outcomes):
        columns["thinking unfinished"] = "unfinished"
    return Table.of(
        "rates",
        "Refusal rates on test prompts",
        result.outcomes,
        columns | {"change": "effect"},
        note=f"{judged}Change against the unsteered model: under ablation of the share that refuses or writes "
        "gibberish, under addition of the share that refuses in language. A direction is added at the layer where it "
        "was chosen, as long as the dose in class gaps of the steered model there, and so are its random controls; it "
        "is ablated in the way chosen for the steered model, and so are they. "
        f"Log-odds of the first token among: {tokens}{dose}{end}",
    )


def _judged(result: RefusalResult) -> Table:
    rows: list[tuple[str, str, str, str, JudgeAgreement]] = [
        (model, "all", "none", "none", agreement) for model, agreement in result.agreements.items()
    ]
    rows += [
        (row.model, row.prompts, row.intervention, row.direction, row.judged)
        for row in result.outcomes
        if row.judged
    ]
    return Table.of(
        "judge",
        f"The judge {result.judge} beside the refusal phrases",
        rows,
        {
            "model": lambda row: row[0],
            "prompts": lambda row: row[1],
            "intervention": lambda row: row[2],
            "direction": lambda row: row[3],
            "answers": lambda row: row[4].n,
            "judge: refused": lambda row: row[4].judged,
            "phrases: refused": lambda row: row[4].phrases,
            "both say the same": lambda row: row[4].same,
            "Cohen's kappa": lambda row: row[4].kappa,
        },
        note="Shares of the same answers. Kappa is the agreement beyond that of chance, 1 at most; it has no value "
        "where both say one and the same of every answer.",
    )


def _choice(result: RefusalResult) -> Table:
    return Table.of(
        "choice",
        "Where each model's refusal direction was read, chosen on validation prompts",
        result.choices.items(),
        {
            "model": lambda row: row[0],
            "template": lambda row: result.setting.templates[row[0]],
            "layer": lambda row: row[1].chosen.layer,
            "position": lambda row: row[1].chosen.position,
            "token": lambda row: repr(row[1].token),
            "ablated": lambda row: row[1].ablated(),
            "rule": lambda row: row[1].rule,
            "separation": lambda row: row[1].chosen.separation,
            "bypass": lambda row: row[1].chosen.bypass,
            "induce": lambda row: row[1].chosen.induce,
            "KL": lambda row: row[1].chosen.kl,
            "unanswered": lambda row: row[1].chosen.unanswered,
            "gap": lambda row: row[1].chosen.gap,
        },
        note="Single numbers of the selection, without intervals: they are not results. Position -1 is the last token.",
    )


def _candidates(key: str, selection: Selection) -> Table:
    return Table.of(
        key,
        f"Candidate directions of {selection.model}, scored on validation prompts",
        selection.candidates,
        {
            "layer": "layer",
            "position": "position",
            "gap": "gap",
            "separation": "separation",
            "bypass": "bypass",
            "induce": "induce",
            "KL": lambda place: f"at least {place.kl:.2f}" if place.kl_at_least else place.kl,
            "unanswered": "unanswered",
            "dropped": selection.verdict,
        },
        note=f"Read and added at {selection.site}; position -1 is the prompt's last token. Chosen: {selection.rule}. "
        "These scores have no interval: they are not results. Empty cells were not needed for the choice.",
    )


def _ways(key: str, selection: Selection) -> Table:
    return Table.of(
        key,
        f"Ways of ablation of {selection.model}, scored on validation prompts",
        selection.tried,
        {
            "layer": "layer",
            "position": "position",
            "ablated": lambda place: way(place, selection.kinds[1]),
            "bypass": "bypass",
            "KL": lambda place: f"at least {place.kl:.2f}" if place.kl_at_least else place.kl,
            "unanswered": "unanswered",
            "chosen": lambda place: "chosen" if place == selection.chosen else "",
        },
        note="Some candidates, removed toward 0 or toward the mean of the harmless class, in a window of layers. These "
        "scores have no interval: they are not results. Empty cells were not needed for the choice.",
    )


def _cosine(key: str, title: str, rows: tuple[Agreement, ...]) -> Table:
    return Table.of(key, title, rows, COLUMNS, note=_HALVES)


def _grid(template: str, result: RefusalResult) -> Table:
    return Table.of(
        f"grid_{template}",
        f"Cosine of the two refusal directions by layer and position, {TEMPLATES[template]}",
        result.cells(template),
        {"position": "position"} | {heading: f"agreement.{field}" for heading, field in COLUMNS.items()},
        note="Position -1 is the prompt's last token; where templates differ in length the shared positions from the "
        f"end are compared. {_HALVES}",
    )


def _projections(result: RefusalResult) -> Table:
    points, (positive, negative) = result.points, result.setting.kinds

    def mean(model: str, harmful: bool) -> Estimate:
        places = [point.places[model] for point in points if point.harmful == harmful]
        return bootstrap_mean(places, seed=result.setting.seed)

    return Table.of(
        "projections",
        "Test prompts along each model's own direction",
        list(points[0].places) if points else [],
        {
            "model": str,
            positive: lambda model: mean(model, True),
            negative: lambda model: mean(model, False),
            "AUROC": result.apart,
        },
        note="Mean place in class gaps from the middle of the training means: 0.5 and -0.5 are the training means.",
    )


def _price(result: RefusalResult) -> Table:
    return Table.of(
        "side_effects",
        "What steering refusal costs elsewhere",
        result.prices,
        {
            "model": "model",
            "intervention": "intervention",
            "direction": "direction",
            "loss change on plain text": "loss_change",
            "KL on plain text": "kl",
            "KL on harmless prompts": "prompt_kl",
            "statements labelled right": "task",
        },
        note="Nats a token, resampled by text; KL of the steered from the unsteered law. The edits act at every token. "
        "Random: mean of several directions of the same length, from the least to the greatest.",
    )


def _shared_means(result: RefusalResult) -> Table:
    return Table.of(
        "shared_mean",
        "How much of every token is one shared mean",
        [(model, row) for model, rows in result.shared_means.items() for row in rows],
        {
            "model": lambda row: row[0],
            "layer": lambda row: row[1].layer,
            "share of the norm": lambda row: row[1].share,
            "largest coordinate over the median one": lambda row: row[1].top,
            "first token over the others": lambda row: row[1].first,
        },
        note="Norm of the mean state over the mean norm, on plain text without each text's first token. Where it is "
        f"above {DOMINANT} in the middle layers, removing any direction toward 0 breaks the model.",
    )


def _surface(result: RefusalResult) -> Table:
    return Table.of(
        "surface",
        "Can form alone tell the two kinds of prompts apart?",
        [result.surface] if result.surface else [],
        {
            "classifier of length and final punctuation": "accuracy",
            "chance": "chance",
            "words": lambda form: " / ".join(f"{count:.1f}" for count in form.words),
            "end in punctuation": lambda form: " / ".join(
                f"{share:.0%}" for share in form.ends_in_punctuation
            ),
        },
        note=f"Held-out accuracy over five folds; words and punctuation of {result.setting.kinds[0]} / "
        f"{result.setting.kinds[1]} prompts.",
    )
