"""The tables of the transfer study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerlab.results import Table, with_rows

if TYPE_CHECKING:
    from steerlab.studies._transfer.result import Sharpening, TransferResult


def tables(result: TransferResult) -> list[Table]:
    """Conditions, the map, the sweep, sharpening."""
    return with_rows(
        _conditions(result),
        _alignment(result),
        _sweep(result),
        *([_sharpening(result.sharpening)] if result.sharpening else ()),
    )


# -- private, in the order of the page --


def _conditions(result: TransferResult) -> Table:
    return Table.of(
        "conditions",
        f"{result.setting.target} on {result.setting.test} test questions",
        result.conditions,
        {
            "condition": "name",
            "kind": "role",
            "strength": "strength",
            "right": "right",
            "change": "right_change",
            "McNemar p": "p_value",
            "unlocked manner": "behaves",
            "change of manner": "behaves_change",
            "furthest random": lambda row: max(row.draws) if row.draws else None,
            "tokens": "length",
            "repeated": "repeats",
            "first-token KL": "first_kl",
        },
        note="Changes are paired with the locked target on the same questions. Controls are steered at the same "
        "layers with the same strength. KL in nats from the locked law of the first token.",
    )


def _alignment(result: TransferResult) -> Table:
    return Table.of(
        "alignment",
        f"The map into the target, on held-out questions ({result.report.aligner})",
        result.report.layers,
        {
            "layer": "target",
            "source layer": "source",
            "verdict": "verdict",
            "rank": "rank",
            "R² points": "r2_point",
            "R² differences": "r2_diff",
            "shuffled pairs": "r2_shuffled",
            "CKA": "cka",
            "CKA p": "cka_p",
            "energy in": "energy_in",
            "gain": "gain",
            "specificity": "specificity",
            "split half": "split_half",
            "cosine native": "cos_native",
            "cosine mean state": "cos_mean",
        },
        note=result.report.sentence,
    )


def _sweep(result: TransferResult) -> Table:
    return Table.of(
        "sweep",
        "Rank and samples of a truncated map, on dev questions",
        result.sweep,
        {
            "rank": "rank",
            "questions": "rows",
            "unlocked manner": "behaves",
            "right": "right",
            "R² differences": "r2_diff",
            "cosine native": "cos_native",
            "energy in": "energy_in",
        },
        note="Rank 1 sends every direction to plus or minus one vector of the target: a control, not a transfer.",
    )


def _sharpening(samples: Sharpening) -> Table:
    values = {
        f"right in {samples.k} samples at temperature {samples.temperature:g}": samples.at_k,
        "right in one sample": samples.at_1,
        "right when steered, greedy": samples.steered,
        "change of log-probability of its right samples": samples.correct,
        "change of log-probability of its wrong samples": samples.wrong,
    }
    return Table.of(
        "sharpening",
        "Was it there before? The locked target's own samples",
        values.items(),
        {"what": lambda row: row[0], "value": lambda row: row[1]},
        note="Sharpening predicts: steered at most what k samples reach, and a larger change for right samples.",
    )
