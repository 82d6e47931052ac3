"""Does a capability direction of one model unlock another one, or would anything else have done the same?

The target answers test questions locked, with the unlocked prompt, steered by UNLOCK, by its own native direction,
and by what must not work: random directions, a carried random one, a rank-one map, a map of shuffled pairs, the
negated direction and one of another task, all at the same layers with the same strength. The first tokens of the
steered answer are forced on the unsteered target, since a direction may do no more than choose them. Where
vocabularies are equal, logit arithmetic stands beside.

Source: *The Master Key Hypothesis* (arXiv 2604.06377); controls of section 7.6 of the methods page are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from steerlab.alignment import Aligner, LayerMap, SvdRegression, r2_diff
from steerlab.alignment.paired import Rule
from steerlab.datasets import Task
from steerlab.directions import Direction
from steerlab.models import LanguageModel
from steerlab.progress import track
from steerlab.registry import Preset, Size, check_options
from steerlab.statistics import proportion
from steerlab.studies._pair import LARGE, Pair, amounts_note, amounts_of
from steerlab.studies._transfer.capability import Aggregator
from steerlab.studies._transfer.conditions import Trials, conditions_of, least_length
from steerlab.studies._transfer.result import UNLOCK, Setting, SweepCell, TransferResult
from steerlab.studies._transfer.sentences import headline, sentences
from steerlab.studies._transfer.sharpening import sharpening
from steerlab.studies._transfer.strength import GRID
from steerlab.studies._transfer.unlock import Steered, Unlocked, refitted, turn, unlock
from steerlab.studies._transfer.writing import write

__all__ = ["Amount", "TransferResult", "transfer", "transfer_amount"]


@dataclass(frozen=True)
class Amount:
    """Questions to align on, to choose on and to test on; random directions, and the sweep's ranks and rows."""

    fit: int
    dev: int
    test: int
    randoms: int
    ranks: tuple[int, ...]
    rows: tuple[int, ...]
    samples: int


_AMOUNTS: dict[str, Amount] = {
    "quick": Amount(200, 24, 48, 10, (1, 4, 16, 64), (16, 64, 150), 8),
    LARGE: Amount(160, 12, 32, 10, (4, 32), (120,), 4),
    "full": Amount(640, 100, 200, 20, (1, 4, 16, 64, 128, 256), (16, 64, 128, 256, 480), 16),
}


# Long: a third or more of it documents its options.
def transfer(
    source: tuple[LanguageModel, LanguageModel],
    target: LanguageModel,
    task: Task,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    aggregator: Aggregator = "mean",
    aligner: Aligner | None = None,
    layers: LayerMap | None = None,
    target_unlocked: LanguageModel | None = None,
    template: str = "plain",
    rule: Rule = "last_prompt",
    strength: float | None = None,
    steered: Steered = "identified",
    by: Literal["manner", "labels"] = "manner",
    seed: int = 0,
) -> TransferResult:
    """Carry the capability from `source` to `target` and hold it against its controls.

    Args:
        source: the locked and the unlocked source model; the same model twice contrasts the two wordings of the task.
        target: the model to be unlocked.
        task: questions with answers.
        size: "full" takes more questions, random directions and cells of the sweep.
        preset: as in `unlock`, and so are `aggregator`, `aligner`, `layers`, `template`, `rule` and `steered`.
        target_unlocked: a post-trained target, for its native direction where the contrast is one of weights.
        strength: α; None chooses it on dev questions.
        by: what chooses it: the share that answers in the unlocked manner (no labels), or right answers (published).
        seed: of splits, random directions and samples.

    Returns:
        The result; its `artefacts()` are the direction in the target and the alignment.

    Raises:
        DatasetError: fewer questions than the size takes.
        AlignmentError, DirectionError: as in `unlock`.
    """
    check_options("The transfer study", size=size, preset=preset, presets=get_args(Preset))
    amounts = amounts_of(size, Pair(source[0], target))
    amount = _AMOUNTS[amounts]
    fit, dev, test = task.split(amount.fit, amount.dev, amount.test, seed)
    by_weights = source[0] is not source[1]
    trials = Trials(target, dev, test, template, least_length(source[1], dev, template, by_weights))
    unlocked = unlock(
        source,
        target,
        (fit.locked, fit.locked if by_weights else fit.unlocked),
        preset=preset,
        aggregator=aggregator,
        aligner=aligner,
        layers=layers,
        target_unlocked=target_unlocked if by_weights else None,
        template=template,
        rule=rule,
        strength=strength,
        steered=steered,
        grid=GRID,
        score=lambda edits: trials.score(edits, by),
        seed=seed,
    )
    result = _tried(
        trials,
        source,
        unlocked,
        amount,
        by,
        seed,
        _setting(source, target, task, size, amount, seed, unlocked),
    )
    identified = result.beats_controls("behaves") or result.beats_controls("right")
    update = {
        "status": "done" if identified else "not identified",
        "summary": [*sentences(result), *amounts_note(amounts)],
        "headline": headline(result),
    }
    return result.model_copy(update=update).with_artefacts(
        {"unlock_direction": unlocked.direction, "unlock_alignment": unlocked.alignment}
    )


def transfer_amount(size: Size = "quick") -> Amount:
    """How many questions, random directions and cells a size takes; a quick run of large models takes fewer."""
    return _AMOUNTS[size]


# -- private, in the order they are called --


def _tried(
    trials: Trials,
    source: tuple[LanguageModel, LanguageModel],
    unlocked: Unlocked,
    amount: Amount,
    by: str,
    seed: int,
    setting: Setting,
) -> TransferResult:
    """Every condition, the sweep over ranks and questions, and the target's own samples."""
    missing: dict[str, str] = {}
    conditions = conditions_of(
        trials, source, unlocked, randoms=amount.randoms, by=by, missing=missing, seed=seed
    )
    return TransferResult(
        summary=[],
        setting=setting,
        conditions=tuple(conditions),
        report=unlocked.report,
        curve=unlocked.chosen.tried,
        sweep=tuple(_sweep(trials, unlocked, amount)),
        sharpening=sharpening(
            trials.target,
            trials.testing,
            trials.test,
            unlocked.direction,
            unlocked.strength,
            steered=trials.kept[UNLOCK].right,
            k=amount.samples,
            seed=seed,
        ),
        missing=missing,
    )


def _sweep(trials: Trials, result: Unlocked, amount: Amount) -> list[SweepCell]:
    """Truncated maps by rank and number of questions, at the strength and layers of the study."""
    fitted = len(result.pairs.splits["fit"])
    cells = [(rank, n) for n in amount.rows for rank in amount.ranks if rank < n <= fitted]
    made = []
    for rank, n in track(cells, "rank and samples", len(cells)):
        direction, again = refitted(result, SvdRegression(rank), rows=n)
        answers = write(
            trials.target, trials.choosing, trials.dev, turn(direction, result.strength), least=trials.least
        )
        made.append(
            SweepCell(
                rank=rank,
                rows=n,
                behaves=proportion(answers.behaves),
                right=proportion(answers.right),
                **_diagnosed(result, again, direction),
            )
        )
    return made


def _diagnosed(result: Unlocked, again: Any, direction: Direction) -> dict[str, float]:
    """Means over the steered layers."""
    r2, cosine, energy = [], [], []
    for site in direction.sites:
        source = again.sources[site]
        r2.append(r2_diff(again.aligners[site], *result.pairs.layer(source, site, "dev")))
        energy.append(again.aligners[site].energy_in(result.source[source]))
        if result.native is not None and site in result.native.vectors:
            cosine.append(float(torch.cosine_similarity(direction[site], result.native[site], dim=0)))
    return {
        "r2_diff": float(np.mean(r2)),
        "cos_native": float(np.mean(cosine)) if cosine else float("nan"),
        "energy_in": float(np.mean(energy)),
    }


def _setting(
    source: tuple[LanguageModel, LanguageModel],
    target: LanguageModel,
    task: Task,
    size: Size,
    amount: Amount,
    seed: int,
    unlocked: Unlocked,
) -> Setting:
    return Setting(
        size=size,
        seed=seed,
        preset=unlocked.preset,
        contrast="prompt" if source[0] is source[1] else "weights",
        source=(source[0].name, source[1].name),
        target=target.name,
        task=task.name,
        fit=amount.fit,
        dev=amount.dev,
        test=amount.test,
        layers=tuple(site.layer or 0 for site in unlocked.direction.sites),
        strength=unlocked.strength,
        how=unlocked.chosen.how,
        aggregator=unlocked.aggregator,
        aligner=repr(next(iter(unlocked.alignment.aligners.values()))),
    )
