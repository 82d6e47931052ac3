"""Several directions of refusal: how many held-out requests choose, what the span takes out, who leans on whom."""

from __future__ import annotations

from typing import Any

import numpy as np
from _refusal_prompts import Refusal, random_directions
from _script import named

import steerlab as sl
from steerlab.directions import ClusterDirections, ConceptCone, fit_direction
from steerlab.errors import DirectionError
from steerlab.statistics import bootstrap_mean, mean_and_extremes
from steerlab.steering import effects_by_category, independence, side_effects

Row = dict[str, Any]
KINDS = {"clusters": ClusterDirections, "cone": ConceptCone}
_CONTROL = "mean and extremes of {n} random spans"


def several_rows(refusal: Refusal) -> dict[str, list[Row]]:
    """Rows by file: `several` (a kind and a k), `leaning` (an ordered pair) and `categories`."""
    before = refusal.odds(refusal.model, refusal.test)
    found: dict[str, list[Row]] = {"several": [], "leaning": [], "categories": []}
    for kind in KINDS:
        found["several"] += span_rows(refusal, kind, before)
    direction = fitted(refusal, "cone", 2) or fitted(refusal, "clusters", 2)
    if direction is not None:
        found["leaning"] = leaning_rows(refusal, direction)
        found["categories"] = category_rows(refusal, direction)
    return found


def fitted(refusal: Refusal, kind: str, k: int) -> sl.Direction | None:
    """So many directions at the layer of the single one, or None where the states have no such."""
    states, labels = refusal.states
    (site,) = refusal.choice.direction.sites
    try:
        return fit_direction(states, labels, KINDS[kind](k), hold_out=False).at(site)
    except DirectionError:
        return None


def span_rows(refusal: Refusal, kind: str, before: np.ndarray) -> list[Row]:
    """By k the held-out separation, and what ablating the span does beside random spans of as many directions."""
    states, labels = refusal.states
    (site,) = refusal.choice.direction.sites
    automatic = KINDS[kind](most=refusal.plan["several"]["most"])
    automatic.fit(states[site].double().numpy(), np.array(labels))
    seed, rows = refusal.plan["seed"], list[Row]()
    for k, (apart, error) in automatic.separability_.items():
        row: Row = {"kind": kind, "site": str(site), "k": k, "separation": apart, "standard_error": error}
        row["chosen"] = "yes" if k == len(automatic.components_) else "no"
        direction = fitted(refusal, kind, k)
        if direction is not None:
            edits = [sl.Ablate(direction)]
            edits += [
                sl.Ablate(one)
                for one in random_directions(direction, k, refusal.plan["several"]["randoms"], seed)
            ]
            own, *others = (refusal.changes(edit, refusal.test, before) for edit in edits)
            prices = side_effects(
                refusal.model, refusal.texts, {str(at): [edit] for at, edit in enumerate(edits)}
            )
            row |= {"n": len(own), "draws": len(others)} | named("change", bootstrap_mean(own, seed=seed))
            row |= named("kl", prices["0"].kl)
            row |= named("random_change", mean_and_extremes([float(one.mean()) for one in others], _CONTROL))
            random = [price.kl.value for name, price in prices.items() if name != "0"]
            row |= named("random_kl", mean_and_extremes(random, _CONTROL))
        rows.append(row)
    return rows


def leaning_rows(refusal: Refusal, direction: sl.Direction) -> list[Row]:
    """For each ordered pair the largest change of the cosine over layers, and that of the kept one's own effect."""
    amounts = refusal.plan["several"]
    found = independence(
        refusal.model, direction, refusal.harmless_test[: amounts["prompts"]], refusal.odds,
        randoms=amounts["randoms"], seed=refusal.plan["seed"],
    )  # fmt: skip
    rows = []
    for pair in found.pairs:
        site = max(pair.cosine, key=lambda name: abs(pair.cosine[name].value))
        row: Row = {"ablated": pair.ablated, "kept": pair.kept, "prompts": found.prompts, "site": site}
        row |= {"sites_beyond": len(pair.moved), "sites": len(pair.cosine), "effect_beyond": pair.leans}
        row |= {"draws": amounts["randoms"]} | named("own_effect", found.effects[pair.kept])
        row |= named("cosine", pair.cosine[site]) | named("random_cosine", pair.cosine_control[site])
        rows.append(row | named("effect", pair.effect) | named("random_effect", pair.effect_control))
    return rows


def category_rows(refusal: Refusal, direction: sl.Direction) -> list[Row]:
    """What ablating each direction does to each kind of request, beside random directions."""
    amounts = refusal.plan["several"]
    chosen = [
        (text, kind)
        for kind in amounts["categories"]
        for text in [text for text, its in refusal.others if its == kind][: amounts["per_category"]]
    ]
    if not chosen:
        return []
    prompts = [refusal.model.instruction_prompt(text) for text, _ in chosen]
    table = effects_by_category(
        refusal.model, direction, prompts, [kind for _, kind in chosen], refusal.odds,
        randoms=amounts["randoms"], seed=refusal.plan["seed"],
    )  # fmt: skip
    return [
        {"direction": row.direction, "category": row.category, "n": row.prompts, "draws": amounts["randoms"]}
        | named("change", row.effect)
        | named("random", row.control)
        | {"beyond_random": row.identified}
        for row in table.rows
    ]
