"""The tables of the branching study: factors, ratios, checks, positions, and the parts beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from steerlab.results import Table, with_rows
from steerlab.statistics import Estimate
from steerlab.studies._branching.parts_result import GAMMA, Parts

if TYPE_CHECKING:
    from steerlab.studies._branching.measures import Measured
    from steerlab.studies._branching.result import BranchingResult


def tables(result: BranchingResult) -> list[Table]:
    """Factors by model and rendering, paired ratios with controls, checks, the curve by position, and the parts."""
    own = [_factors(result), _ratios(result), _checks(result), _positions(result)]
    return own + (parts_tables(result.parts) if result.parts else [])


def parts_tables(parts: Parts) -> list[Table]:
    """One table for each part that was run."""
    return with_rows(
        _prompt_sets(parts),
        _attribution(parts),
        _legacy(parts),
        _nudging(parts),
        _resampling(parts),
        _votes(parts),
    )


# -- private, in the order of the page --


def _factors(result: BranchingResult) -> Table:
    return Table.of(
        "branching_factor",
        "Branching factor",
        result.measured,
        {
            "model and rendering": "name",
            "BF": "factor",
            "mean of BF": "factor_mean",
            "by tokens": "factor_tokens",
            "by surprisal": "factor_surprisal",
            "first answer": "first_answer",
            "no loops": "unlooped",
            "entropy an output (nats)": "total",
            "length (tokens)": "length",
            "nats per byte": "nats_per_byte",
        },
        note=f"Sampled at {result.law}; at most {result.steps} new tokens. BF: exp of the mean log factor over "
        "prompts; 95 % cluster bootstrap over prompts.",
    )


def _ratios(result: BranchingResult) -> Table:
    return Table.of(
        "ratios",
        "Paired ratios of branching factors",
        result.contrasts,
        {"ratio": "name", "kind": "kind", "value": "ratio"},
        note="Paired by prompt; 1 means no difference.",
    )


def _checks(result: BranchingResult) -> Table:
    return Table.of(
        "checks",
        "Checks of the sampling",
        result.measured,
        {
            "model and rendering": "name",
            "prompts": "n_prompts",
            "sequences": "n_sequences",
            "tokens": "n_tokens",
            "martingale z": "martingale_z",
            "ended by itself": "ended",
            "tokens kept a step": "kept",
            "BF before truncation": "untruncated",
            "repeated 4-grams": "repetition",
            "gain on the prompts (nats)": lambda row: result.gains[row.model],
        },
        note="z tests that the recorded law is the sampled one: |z| below 4 is chance. Sequences that did not end by "
        "themselves were cut at the limit. Gain: by how much the prompts' own next tokens are likelier than tokens "
        "from other places or by a uniform law.",
    )


def _positions(result: BranchingResult) -> Table:
    steps = result.steps
    columns: dict[str, Any] = {"position": lambda at: at + 1}
    for row in result.measured:
        columns[f"{row.name}: BF"] = lambda at, row=row: row.curve[at]
        columns[f"{row.name}: % alive"] = lambda at, row=row: round(100 * row.alive[at], 1)
        columns[f"{row.name}: BF, same sequences"] = lambda at, row=row: _same_sequences(row, at)
    return Table.of(
        "by_position",
        "Branching factor by position",
        sorted({*range(min(8, steps)), *range(7, steps, 8), steps - 1}),
        columns,
        note="Local values, not smoothed and not cumulative. The sequences alive change along the first curve; "
        "'same sequences' keeps those that reach its end.",
    )


def _same_sequences(row: Measured, at: int) -> Estimate | None:
    return row.cohort[at] if at < len(row.cohort) else None


def _prompt_sets(parts: Parts) -> Table:
    return Table.of(
        "prompt_sets",
        "Branching factor by prompt set and level",
        parts.sets,
        {
            "prompts": "name",
            "level": "level",
            "number": "prompts",
            "base": "base",
            "post": "post",
            "ratio": "ratio",
        },
        note="A level shows more of the same text. Ratios are paired by prompt.",
    )


def _attribution(parts: Parts) -> Table:
    return Table.of(
        "attribution",
        "What moves the branching factor",
        parts.attribution,
        {
            "factor": "factor",
            "from": lambda row: row.levels[0],
            "to": lambda row: row.levels[1],
            "factor on BF": lambda row: row.change.transform(math.exp),
            "p": "p_value",
            "published share": "share",
        },
        note="Paired within prompt and everything else; p by sign changes of whole prompts. The published share is "
        "unsigned and gives noise a part.",
    )


def _legacy(parts: Parts) -> Table:
    return Table.of(
        "legacy",
        "What the published aggregations would say of this record",
        parts.legacy,
        {"model": "model", "printed formula": "printed", "L0": "l0", "L1": "l1", "L2": "l2"},
        note="L0: position curves and bars of the first version; L1: AEP summary; L2: ratios of the revision. See the "
        "methods page for their defects.",
    )


def _nudging(parts: Parts) -> Table:
    return Table.of(
        "nudging",
        f"The base model, nudged where its likeliest token is below {GAMMA:g}",
        parts.nudging,
        {
            "nudged by": "name",
            "share nudged": "nudged",
            "BF of the process": "process",
            "BF of the base law": "base",
            "3 steps after a nudge": "away",
        },
        note="The process is narrower by construction: nudged steps have no entropy. Whether the base model becomes "
        "sure of itself is the last column.",
    )


def _resampling(parts: Parts) -> Table:
    return Table.of(
        "resampling",
        "Answers taken up again after t tokens (sums, right or wrong)",
        parts.resampling,
        {
            "model": "model",
            "t": "at.t",
            "right before": "at.before",
            "right after": "at.after",
            "change": "at.change",
            "commitment": "at.commitment",
            "had ended": "at.ended",
        },
        note="The change must be zero within its interval. Commitment: share of the variance of outcomes between "
        "prefixes of one question; empty where outcomes do not vary.",
    )


def _votes(parts: Parts) -> Table:
    return Table.of(
        "votes",
        "Majority of k sampled answers (sums)",
        parts.votes,
        {
            "model": "model",
            "k": "votes.k",
            "right": "votes.accuracy",
            "deviation": "votes.deviation",
            "beyond independent answers": "votes.excess",
            "BF": "factor",
        },
        note="The deviation (published measure) falls with accuracy by arithmetic; the next column takes that out.",
    )
