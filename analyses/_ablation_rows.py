"""Norm-preserving and plain ablation of one direction at equal bypass: what else each of them changes.

Plain ablation gets the strength at which it takes as much refusal from the development requests as the norm-preserving
one, once at all writes to the stream and once at the maps that the other changes (attn_out, mlp_out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from _refusal_prompts import Refusal, random_directions
from _script import named

import steerlab as sl
from steerlab.models import Edit, LanguageModel, Prompt
from steerlab.readouts.refusals import Verdicts
from steerlab.readouts.repetition import loops
from steerlab.readouts.scoring import continuation_log_odds
from steerlab.statistics import bootstrap_mean, mean_and_extremes, paired_difference, proportion
from steerlab.steering import side_effects

Row = dict[str, Any]
NORM, STREAM, MAPS = "norm-preserving", "plain, whole stream", "plain, same maps"
COMPARED = ("change", "kl", "loss_change", "length", "refused", "right", "loops")
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)
_CONTROL = "mean and extremes of {n} random directions"


@dataclass(frozen=True, eq=False)
class Measured:
    """What a way of ablation does: by request, by plain text, by pair of statements and by benign answer."""

    change: np.ndarray
    verdicts: Verdicts
    kl: np.ndarray
    loss: np.ndarray
    right: np.ndarray
    loops: np.ndarray
    length: np.ndarray


def ablation_rows(refusal: Refusal) -> list[Row]:
    """A row a way, one for nothing ablated and two for random directions."""
    model, plan, found = refusal.model, refusal.plan, refusal.choice
    norm = sl.Ablate(found.direction, preserve="norm")
    target = float(refusal.changes(norm, refusal.dev, refusal.plain_dev).mean())
    maps = [f"{name}.{layer}" for layer in range(model.n_layers) for name in ("attn_out", "mlp_out")]
    ways: dict[str, tuple[Edit, float, float]] = {NORM: (norm, 1.0, target)}
    for name, plain in ((STREAM, sl.Ablate(found.direction)), (MAPS, sl.Ablate(found.direction, sites=maps))):
        ways[name] = matched(refusal, plain, target)
    before = refusal.odds(model, refusal.test)
    measured = {name: measure(refusal, edit, before) for name, (edit, _, _) in ways.items()}
    nothing = measure(refusal, None, before)
    shared = {
        "site": str(found.direction.sites[0]),
        "made": found.made,
        "n": len(before),
    }
    rows = [shared | {"way": "nothing"} | absolute(nothing, plan["seed"])]
    for name, one in measured.items():
        _, strength, on_dev = ways[name]
        row = shared | {"way": name, "strength": strength, "dev_change": on_dev}
        row |= absolute(one, plan["seed"]) | beside(one, nothing, "less_none", plan["seed"])
        rows.append(row | (beside(one, measured[NORM], "less_norm", plan["seed"]) if name != NORM else {}))
    drawn = random_directions(found.direction, 1, plan["ablation"]["randoms"], plan["seed"])
    for name, edits in (
        (f"{NORM}, random", [sl.Ablate(one, preserve="norm") for one in drawn]),
        (f"{STREAM}, random", [sl.Ablate(one) for one in drawn]),
    ):
        rows.append(shared | {"way": name, "strength": 1.0} | random_row(refusal, edits, before))
    return rows


def matched(refusal: Refusal, plain: sl.Ablate, target: float) -> tuple[Edit, float, float]:
    """The plain edit at the strength that takes most nearly as much as the target, that strength, and what it takes."""
    found = sl.calibrate_strength(
        refusal.model, plain, refusal.dev, refusal.texts[:4], effect=refusal.odds,
        target=float(refusal.plain_dev.mean()) + target, strengths=STRENGTHS, refinements=3, seed=refusal.plan["seed"],
    )  # fmt: skip
    wanted = found.unsteered.value + target
    nearest = min(found.trials, key=lambda trial: (abs(trial.effect.value - wanted), trial.kl.value))
    taken = nearest.effect.value - found.unsteered.value
    return replace(plain, strength=nearest.strength), nearest.strength, taken


def measure(refusal: Refusal, edit: Edit | None, before: np.ndarray) -> Measured:
    """Everything of one way."""
    model, plan = refusal.model, refusal.plan
    edits = [] if edit is None else [edit]
    verdicts = refusal.judge.verdicts(refusal.test, edits)
    kl, loss = prices(model, refusal.texts, edits)
    with model.steering(*edits) if edits else nullcontext():
        change = refusal.odds(model, refusal.test) - before
        right = statements_right(model, plan["ablation"]["statements"], plan["seed"])
        written = model.generate(open_prompts(model, plan), max_new_tokens=plan["ablation"]["new_tokens"])
    lengths = np.array([len(answer.token_ids) for answer in written], dtype=float)
    return Measured(change, verdicts, kl, loss, right, loops(written), lengths)


def prices(
    model: LanguageModel, texts: Sequence[str], edits: Sequence[Edit]
) -> tuple[np.ndarray, np.ndarray]:
    """By text KL and change of loss, nats a token."""
    if not edits:
        return np.zeros(len(texts)), np.zeros(len(texts))
    each = [side_effects(model, [text], {"": edits})[""] for text in texts]
    changes = [one.loss_change.value if one.loss_change else np.nan for one in each]
    return np.array([one.kl.value for one in each]), np.array(changes)


def statements_right(model: LanguageModel, count: int, seed: int) -> np.ndarray:
    """By pair of packaged statements of one subject, whether the true object is likelier than the false one."""
    affirmed = [item for item in sl.datasets.statements() if item.polarity > 0]
    pairs = sl.datasets.match(
        affirmed, lambda item: (item.topic, item.text[: item.spans["object"][0]]), seed=seed
    )
    chosen = [pairs[at] for at in np.random.default_rng(seed).permutation(len(pairs))[:count]]
    openings = [Prompt(pair.true.text[: pair.true.spans["object"][0]].rstrip()) for pair in chosen]
    ends = [
        [item.text[len(opening.text) :] for item, opening in zip(items, openings, strict=True)]
        for items in ([pair.true for pair in chosen], [pair.false for pair in chosen])
    ]
    right: np.ndarray = continuation_log_odds(model, openings, *ends) > 0
    return right


def open_prompts(model: LanguageModel, plan: Mapping[str, Any]) -> list[Prompt]:
    """Benign prompts, as the model is asked them."""
    texts = sl.datasets.open_prompts()[::3][: plan["ablation"]["answers"]]
    return [model.instruction_prompt(text) for text in texts]


def absolute(one: Measured, seed: int) -> Row:
    """What one way does, with intervals."""
    row: Row = {}
    for name, values in (
        ("change", one.change),
        ("kl", one.kl),
        ("loss_change", one.loss),
        ("length", one.length),
    ):
        row |= named(name, bootstrap_mean(values, seed=seed))
    shares = {"refused": one.verdicts.refused, "gibberish": one.verdicts.gibberish}
    for name, marks in {**shares, "right": one.right, "loops": one.loops}.items():
        row |= named(name, proportion(marks))
    return row


def beside(one: Measured, other: Measured, end: str, seed: int) -> Row:
    """One way less another over the same requests, texts, statements and answers; columns that end so."""
    row: Row = {}
    for name, mine, its in zip(COMPARED, compared(one), compared(other), strict=True):
        row |= named(f"{name}_{end}", paired_difference(mine, its, seed=seed))
    return row


def compared(one: Measured) -> list[np.ndarray]:
    """The numbers of `COMPARED`, case by case."""
    shares = (one.verdicts.refused, one.right, one.loops)
    return [one.change, one.kl, one.loss, one.length, *(marks.astype(float) for marks in shares)]


def random_row(refusal: Refusal, edits: Sequence[Edit], before: np.ndarray) -> Row:
    """Mean and extremes of random directions treated the same way."""
    changes = [float(refusal.changes(edit, refusal.test, before).mean()) for edit in edits]
    found = side_effects(refusal.model, refusal.texts, {str(at): [edit] for at, edit in enumerate(edits)})
    row: Row = {"draws": len(edits)} | named("change", mean_and_extremes(changes, _CONTROL))
    return row | named("kl", mean_and_extremes([price.kl.value for price in found.values()], _CONTROL))
