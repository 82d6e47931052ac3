"""Does a capability direction of one model unlock another one, or would anything else have done the same?

The target answers test questions locked, with the unlocked prompt, steered by UNLOCK, by its own native direction,
and by what must
not work: random directions, a rank-one map, a map of shuffled pairs, the negated direction and one of another
task, all at the same layers with the same strength. The first tokens of the steered answer are forced on the
unsteered target, since a direction may do no more than choose them. Where vocabularies are equal, logit arithmetic
stands beside.

Source: *The Master Key Hypothesis* (arXiv 2604.06377); controls of section 7.6 of the methods page are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from sklearn.base import clone

from steerlab.alignment import Aligner, LayerMap, ShuffledPairs, SvdRegression
from steerlab.datasets import Task, requests
from steerlab.directions import Direction
from steerlab.errors import AlignmentError, DirectionError
from steerlab.models import Edit, LanguageModel
from steerlab.progress import track
from steerlab.statistics import Estimate, mcnemar, paired_difference, proportion
from steerlab.steering import side_effects
from steerlab.studies._pair import Preset, Size, require_known
from steerlab.studies._transfer.capability import Aggregator, capability_direction, deltas
from steerlab.studies._transfer.proxy import arithmetic, same_vocabulary
from steerlab.studies._transfer.result import (
    UNLOCK,
    Condition,
    Role,
    Setting,
    SweepCell,
    TransferResult,
    headline,
    sentences,
)
from steerlab.studies._transfer.sharpening import sharpening
from steerlab.studies._transfer.strength import choose_strength
from steerlab.studies._transfer.unlock import Steered, Unlocked, _read, refitted, turn, unlock
from steerlab.studies._transfer.writing import Answers, asked, judged, write

__all__ = ["Amount", "TransferResult", "transfer", "transfer_amount"]

STRENGTHS = (0.1, 0.2, 0.5, 1.0)


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


_AMOUNTS: dict[Size, Amount] = {
    "quick": Amount(200, 24, 48, 10, (1, 4, 16, 64), (16, 64, 150), 8),
    "full": Amount(640, 100, 200, 20, (1, 4, 16, 64, 128, 256), (16, 64, 128, 256, 480), 16),
}


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
        preset: as in `unlock`, and so are `aggregator`, `aligner`, `layers`, `template` and `steered`.
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
    require_known("transfer", "size", size, _AMOUNTS)
    amount = _AMOUNTS[size]
    fit, dev, test = task.split(amount.fit, amount.dev, amount.test, seed)
    by_weights = source[0] is not source[1]
    least = _least(source[1], dev, template, by_weights)
    run = _Run(target, dev, test, template, least)
    result = unlock(
        source,
        target,
        (fit.locked, fit.locked if by_weights else fit.unlocked),
        preset=preset,
        aggregator=aggregator,
        aligner=aligner,
        layers=layers,
        target_unlocked=target_unlocked if by_weights else None,
        template=template,
        strength=strength,
        steered=steered,
        grid=STRENGTHS,
        score=lambda edits: run.score(edits, by),
        seed=seed,
    )
    missing: dict[str, str] = {}
    conditions = _conditions(run, source, result, amount, by, by_weights, missing, seed)
    found = TransferResult(
        summary=[],
        setting=_setting(
            source, target, task, amount, result, size, seed, "weights" if by_weights else "prompt"
        ),
        conditions=tuple(conditions),
        report=result.report,
        curve=result.chosen.tried,
        sweep=tuple(_sweep(run, result, amount)),
        sharpening=sharpening(
            target,
            asked(target, test.locked, template),
            test,
            result.direction,
            result.strength,
            steered=run.kept[UNLOCK].right,
            k=amount.samples,
            seed=seed,
        ),
        missing=missing,
    )
    identified = found.beats_controls("behaves") or found.beats_controls("right")
    update = {
        "status": "done" if identified else "not identified",
        "summary": sentences(found),
        "headline": headline(found),
    }
    return found.model_copy(update=update).with_artefacts(
        {"unlock_direction": result.direction, "unlock_alignment": result.alignment}
    )


def transfer_amount(size: Size = "quick") -> Amount:
    """How many questions, random directions and cells a size takes."""
    return _AMOUNTS[size]


# -- private, in the order they are called --


class _Run:
    """The target with its questions, and what it has written under each condition."""

    def __init__(self, target: LanguageModel, dev: Task, test: Task, template: str, least: float) -> None:
        self.target, self.dev, self.test, self.template, self.least = target, dev, test, template, least
        self.choosing = asked(target, dev.locked, template)
        self.testing = asked(target, test.locked, template)
        self.kept: dict[str, Answers] = {}

    def score(self, edits: Sequence[Edit], by: str) -> tuple[float, float]:
        """Outcome and repetition on dev questions."""
        found = write(self.target, self.choosing, self.dev, edits, least=self.least)
        return float((found.right if by == "labels" else found.behaves).mean()), float(found.repeats.mean())

    def steered(self, edits: Sequence[Edit]) -> Answers:
        """Answers to the test questions."""
        return write(self.target, self.testing, self.test, edits, least=self.least)


def _least(unlocked: LanguageModel, dev: Task, template: str, by_weights: bool) -> float:
    """Half of the median length of the unlocked source's own answers, where the task does not say how they begin."""
    if dev.behaviour is not None:
        return 0.0
    texts = dev.locked if by_weights else dev.unlocked
    return float(np.median(write(unlocked, asked(unlocked, texts, template), dev).length)) / 2


def _conditions(
    run: _Run,
    source: tuple[LanguageModel, LanguageModel],
    result: Unlocked,
    amount: Amount,
    by: str,
    by_weights: bool,
    missing: dict[str, str],
    seed: int,
) -> list[Condition]:
    target, alpha = run.target, result.strength
    made: list[Condition] = []

    def add(
        name: str, role: Role, answers: Answers, *, edits: Sequence[Edit] = (), alpha: float = float("nan")
    ) -> None:
        run.kept[name] = answers
        made.append(_condition(run, name, role, answers, alpha, _first_kl(run, edits, seed), seed))

    add("locked", "locked", run.steered(()))
    if not by_weights:
        prompts = asked(target, run.test.unlocked, run.template)
        add("unlocked prompt", "ceiling", write(target, prompts, run.test, least=run.least))
    directions = _directions(result, source, run, missing)
    for name, role, direction, sign in directions:
        edits = turn(direction, sign * alpha)
        add(name, role, run.steered(edits), edits=edits, alpha=sign * alpha)
    if result.native is not None:
        native = result.native
        own = choose_strength(lambda a: run.score(turn(native, a), by), STRENGTHS)
        edits = turn(native, own.strength)
        add(
            "native, all layers, own strength", "ceiling", run.steered(edits), edits=edits, alpha=own.strength
        )
    made.append(_random(run, result, amount, seed))
    for count in (1, 4):
        add(f"first {count} forced", "forced", _forced(run, count))
    if all(same_vocabulary(target, one) for one in source) and source[0] is not source[1]:
        found = arithmetic(target, source[0], source[1], run.testing, run.test.max_new_tokens)
        add("logit arithmetic", "ceiling", judged(found, run.test, least=run.least))
    else:
        missing["logit arithmetic"] = (
            "Logit arithmetic was not run: it needs a locked and an unlocked source model with the target's vocabulary."
        )
    return made


def _directions(
    result: Unlocked, source: tuple[LanguageModel, LanguageModel], run: _Run, missing: dict[str, str]
) -> list[tuple[str, Role, Direction, int]]:
    """UNLOCK, the native direction at the same layers, and directions that must not work."""
    found: list[tuple[str, Role, Direction, int]] = [(UNLOCK, "transfer", result.direction, 1)]
    sites = result.direction.sites
    if result.native is not None and all(site in result.native.vectors for site in sites):
        found.append(("native, same layers", "ceiling", result.native.at(*sites), 1))
    own = next(iter(result.alignment.aligners.values()))
    for name, aligner in (("rank one", SvdRegression(1)), ("shuffled pairs", ShuffledPairs(clone(own)))):
        found.append((name, "control", refitted(result, aligner)[0], 1))
    found.append(("negated", "control", result.direction, -1))
    try:
        found.append(("another task", "control", _another(result, source[0], run.template), 1))
    except (DirectionError, AlignmentError) as error:
        missing["another task"] = f"A direction of another task was not carried: {error}"
    return found


def _another(result: Unlocked, source: LanguageModel, template: str) -> Direction:
    """Harmful against harmless requests in the source, carried by the same map."""
    part = requests().split("train")
    n = min(len(part.positive), len(part.negative), 64)
    reads = [
        _read(source, texts[:n], template, result.preset == "published")
        for texts in (part.positive, part.negative)
    ]
    wrong = capability_direction(
        deltas(*reads), model_name=source.name, fingerprint=source.fingerprint, aggregator=result.aggregator
    )
    return result.alignment.transfer(wrong).at(*result.direction.sites)


def _random(run: _Run, result: Unlocked, amount: Amount, seed: int) -> Condition:
    """Random directions, each on a third of the questions in turn."""
    n = len(run.test)
    each = max(4, n // 3)
    rng = np.random.default_rng(seed)
    rows = [(np.arange(each) + draw * each) % n for draw in range(amount.randoms)]
    parts: list[Answers] = []
    for some in track(rows, "random directions", len(rows)):
        vectors = {
            site: torch.from_numpy(rng.standard_normal(run.target.d_model)).float()
            for site in result.direction.sites
        }
        direction = Direction(
            vectors=vectors,
            model_name=run.target.name,
            fingerprint=run.target.fingerprint,
            estimator="random",
        )
        parts.append(
            write(
                run.target,
                [run.testing[row] for row in some],
                run.test.take(some.tolist()),
                turn(direction, result.strength),
                least=run.least,
            )
        )
    clusters = np.repeat(np.arange(len(rows)), each)
    right, behaves = (np.concatenate([getattr(one, name) for one in parts]) for name in ("right", "behaves"))
    locked = run.kept["locked"]
    order = np.concatenate(rows)
    return Condition(
        name="random directions",
        role="control",
        strength=result.strength,
        right=proportion(right, clusters=clusters),
        behaves=proportion(behaves, clusters=clusters),
        right_change=paired_difference(right, locked.right[order], clusters, seed=seed),
        behaves_change=paired_difference(behaves, locked.behaves[order], clusters, seed=seed),
        length=float(np.concatenate([one.length for one in parts]).mean()),
        repeats=float(np.concatenate([one.repeats for one in parts]).mean()),
        draws=tuple(float(one.behaves.mean()) for one in parts),
    )


def _forced(run: _Run, count: int) -> Answers:
    """The unsteered target, given the first tokens of the steered answers."""
    openings = [
        run.target.tokenizer.decode(one.token_ids[:count], skip_special_tokens=True)
        for one in run.kept[UNLOCK].generations
    ]
    prompts = [
        replace(prompt, text=prompt.text + opening)
        for prompt, opening in zip(run.testing, openings, strict=True)
    ]
    found = run.target.generate(prompts, max_new_tokens=max(1, run.test.max_new_tokens - count))
    return judged(found, run.test, least=max(0.0, run.least - count), opening=openings)


def _condition(
    run: _Run, name: str, role: Role, answers: Answers, alpha: float, first_kl: Estimate | None, seed: int
) -> Condition:
    locked = run.kept["locked"]
    changed = name != "locked"
    return Condition(
        name=name,
        role=role,
        strength=alpha,
        right=proportion(answers.right),
        behaves=proportion(answers.behaves),
        right_change=paired_difference(answers.right, locked.right, seed=seed) if changed else None,
        behaves_change=paired_difference(answers.behaves, locked.behaves, seed=seed) if changed else None,
        p_value=mcnemar(answers.right, locked.right).p_value if changed else float("nan"),
        length=float(answers.length.mean()),
        repeats=float(answers.repeats.mean()),
        first_kl=first_kl,
    )


def _first_kl(run: _Run, edits: Sequence[Edit], seed: int) -> Estimate | None:
    if not edits:
        return None
    found = side_effects(run.target, run.testing, {"edit": edits}, positions="last", seed=seed)
    return found["edit"].kl


def _sweep(run: _Run, result: Unlocked, amount: Amount) -> list[SweepCell]:
    """Truncated maps by rank and number of questions, at the strength and layers of the study."""
    fitted = len(result.pairs.splits["fit"])
    cells = [(rank, n) for n in amount.rows for rank in amount.ranks if rank < n <= fitted]
    made = []
    for rank, n in track(cells, "rank and samples", len(cells)):
        direction, again = refitted(result, SvdRegression(rank), rows=n)
        answers = write(run.target, run.choosing, run.dev, turn(direction, result.strength), least=run.least)
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
    from steerlab.alignment import r2_diff

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
    amount: Amount,
    result: Unlocked,
    size: str,
    seed: int,
    contrast: str,
) -> Setting:
    return Setting(
        size=size,
        seed=seed,
        preset=result.preset,
        contrast=cast(Literal["prompt", "weights"], contrast),
        source=(source[0].name, source[1].name),
        target=target.name,
        task=task.name,
        fit=amount.fit,
        dev=amount.dev,
        test=amount.test,
        layers=tuple(site.layer or 0 for site in result.direction.sites),
        strength=result.strength,
        how=result.chosen.how,
        aggregator=result.aggregator,
        aligner=repr(next(iter(result.alignment.aligners.values()))),
    )
