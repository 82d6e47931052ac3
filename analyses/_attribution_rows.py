"""How near attribution patching comes to the exact sweep: causal tracing of facts that the model knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from _local_copies import data_files
from _script import named
from scipy import stats

import steerlab as sl
from steerlab.activations import (
    LogProbability,
    Noise,
    PatchAttribution,
    PatchResult,
    PatchSweep,
    Run,
    StatePatch,
)
from steerlab.datasets import StatementSet, read_facts
from steerlab.models import LanguageModel, Site, Span
from steerlab.statistics import bootstrap_mean
from steerlab.studies import facts_of
from steerlab.studies._knowledge.noise_effects import LEVEL, Fact, known_facts

Row = dict[str, Any]
KINDS = ("resid_post", "attn_out", "mlp_out")
TOP = 5  # cells of a fact


def attribution_rows(model: LanguageModel, plan: Mapping[str, Any]) -> list[Row]:
    """A row a kind of state: correlations over a fact's cells, the top cells found, and the largest error."""
    amounts, seed = plan["attribution"], plan["seed"]
    facts = traced(model, plan)
    prompts = [fact.prompt for fact in facts]
    clean, noise = Run(model, prompts), Noise(LEVEL * spread(model, facts), seed)
    base, cells = [], {kind: [] for kind in KINDS}
    for fact in facts:
        subject = Span("subject").resolve(model.tokenize([fact.prompt]), 0)
        base.append((StatePatch(Site("embed"), tuple(subject), noise),))
        ends = range(subject[0], model.lengths([fact.prompt])[0])
        for kind, listed in cells.items():
            layers = range(0, model.n_layers, amounts["every"])
            listed.append([(StatePatch(Site(kind, layer), (at,), clean),) for layer in layers for at in ends])
    rows = []
    for kind, listed in cells.items():
        sweep = PatchSweep(model, prompts, listed, LogProbability([fact.answer for fact in facts]), base=base)
        begun = time.perf_counter()
        preview = sweep.attribution()
        halfway = time.perf_counter()
        exact = sweep.run()
        took = {"seconds_preview": halfway - begun, "seconds_exact": time.perf_counter() - halfway}
        rows.append({"kind": kind, "facts": len(facts), **took} | compared(preview, exact, seed))
    return rows


def compared(preview: PatchAttribution, exact: PatchResult, seed: int) -> Row:
    """Fact by fact how the preview's effects go with the exact ones, and with those of another fact's."""
    right, found = exact.values - exact.plain[:, None], preview.effects
    agreement = preview.against(exact, k=TOP)
    row: Row = {"cells": agreement.cells, "largest_error": agreement.largest_error, "top": TOP}
    row |= {"largest_effect": agreement.largest_effect, "pearson_of_all": agreement.pearson}
    rng = np.random.default_rng(seed)
    by_fact: dict[str, list[float]] = {
        name: [] for name in ("pearson", "spearman", "top_found", "shuffled_top_found")
    }
    for number in range(len(right)):
        known = np.isfinite(right[number]) & np.isfinite(found[number])
        a, b = right[number][known], found[number][known]
        by_fact["pearson"].append(float(stats.pearsonr(a, b).statistic))
        by_fact["spearman"].append(float(stats.spearmanr(a, b).statistic))
        by_fact["top_found"].append(top_found(a, b))
        by_fact["shuffled_top_found"].append(
            float(np.mean([top_found(a, rng.permutation(b)) for _ in range(20)]))
        )
    for name, values in by_fact.items():
        row |= named(name, bootstrap_mean(values, seed=seed))
    return row


def top_found(right: np.ndarray, found: np.ndarray) -> float:
    """Of the cells with the largest exact effects, the share that is among the largest of the preview."""
    tops = [set(np.argsort(-np.abs(values), kind="stable")[:TOP].tolist()) for values in (right, found)]
    return len(tops[0] & tops[1]) / min(TOP, len(right))


def traced(model: LanguageModel, plan: Mapping[str, Any]) -> list[Fact]:
    """Short facts that the model knows, as many as the plan says."""
    amounts = plan["attribution"]
    every = read_facts(next(iter(data_files(plan["data"]["facts"]).values())))
    order = np.random.default_rng(plan["seed"]).permutation(len(every))[: amounts["asked"]]
    asked = facts_of(model, StatementSet(every[int(row)] for row in order))
    short = [fact for fact in asked if model.lengths([fact.prompt])[0] <= amounts["most_tokens"]]
    return known_facts(model, short)[: amounts["facts"]]


def spread(model: LanguageModel, facts: list[Fact]) -> float:
    """Standard deviation of all elements of the subjects' embeddings."""
    states = sl.capture(model, [fact.prompt for fact in facts], Site("embed"), positions=Span("subject"))
    return float(states[Site("embed")].double().std(correction=0))
