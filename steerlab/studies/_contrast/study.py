"""Does post-training move the direction of a contrast of one's own, and does that direction steer?

For each contrast (happy and sad sentences, say) each model reads the texts as they are; the direction is the difference
between the mean states of the two classes at the last token, at every layer. Asked are: the held-out accuracy beside a
bag of words, the cosine of the two directions beside its ceiling, whether one model's direction reads the other's
states, and whether adding a direction makes texts of its class likelier than random directions do, and at what price.
What is chosen (the layer) is chosen without the held-out texts: in each of five folds by five more inside its rest.
Sources: difference in means and transfer, Marks and Tegmark (2023); activation addition, Turner et al. (2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerlab.datasets import StudyData
from steerlab.errors import DatasetError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.readouts.agreement import Agreement, agreement_by_layer
from steerlab.readouts.confidence import fitting
from steerlab.readouts.contrasts import Contrast, file_name, read_contrasts
from steerlab.readouts.surface import shortcuts
from steerlab.registry import Preset, Size, check_options
from steerlab.statistics import paired_difference
from steerlab.studies._contrast.probes import accuracy_by_layer, cells_of, draws_of
from steerlab.studies._contrast.reading import Reading, Texts, read
from steerlab.studies._contrast.result import Change, ContrastResult, Outcome
from steerlab.studies._contrast.sentences import headline, sentences, verdicts
from steerlab.studies._contrast.steering import Dose, Steered, steer
from steerlab.studies._pair import LARGE, Models, Pair, amounts_note, amounts_of

_AMOUNTS: dict[str, Dose] = {
    "quick": Dose(groups=8, randoms=20, passages=8, priced_randoms=5),
    LARGE: Dose(groups=3, randoms=20, passages=3, priced_randoms=2),
    "full": Dose(groups=100, randoms=50, passages=32, priced_randoms=20),
}


def contrast(
    pair: Pair | Models,
    data: StudyData | Any = None,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    plain_text: Sequence[str] | None = None,
) -> ContrastResult:
    """Compare the directions of one's own contrasts in a pair of models.

    Args:
        pair: base and post, loaded; models of any two families.
        data: the contrasts, as `readouts.contrasts.read_contrasts` takes them (a file, a set, a list of these, a
            mapping from names), or everything that studies read.
        size: "full" steers more texts, beside more random directions.
        preset: there is only "corrected".
        seed: of folds, shuffles and random directions.
        plain_text: passages on which steering is priced; None takes those of `data`, an empty list leaves it out.

    Returns:
        The result; its `artefacts()` are the `Direction`s of all texts, at every layer, of each contrast and model.
        What this pair cannot take (cosines of models of different width) is left out and said in `missing`.

    Raises:
        DatasetError: no contrast, or one that is not sound.
        SteerlabError: an unknown size or preset, or no contrast that both models can read.
    """
    check_options("The contrast study", size=size, preset=preset)
    pair = Pair.of(pair)
    data = StudyData.of(data, "contrasts").with_own(plain_text=plain_text)
    contrasts = read_contrasts(data.contrasts)
    if not contrasts:
        raise DatasetError(
            "The contrast study needs a contrast; give a file, a set, or the name of a packaged one."
        )
    dose = _AMOUNTS[amounts := amounts_of(size, pair)]
    studied, missing = _all(pair, contrasts, dose, fitting([*pair], data.plain_text)[: dose.passages], seed)
    outcomes = tuple(outcome for outcome, _ in studied)
    result = ContrastResult(
        status="done" if any(one.identified for one in outcomes) else "not identified",
        summary=[
            *verdicts(outcomes),
            *(said for one in outcomes for said in sentences(one)),
            *missing.values(),
            *amounts_note(amounts),
        ],
        headline=headline(outcomes[0]),
        contrasts=outcomes,
        missing=missing,
    )
    return result.with_artefacts(
        {
            f"contrast_{file_name(outcome.name)}_{role}": own.whole
            for outcome, readings in studied
            for role, own in readings.items()
        }
    )


# -- private, in the order they are called --


def _all(
    pair: Pair, contrasts: Mapping[str, Contrast], dose: Dose, passages: Sequence[str], seed: int
) -> tuple[list[tuple[Outcome, dict[str, Reading]]], dict[str, str]]:
    """Every contrast that both models can read, and why the others are not studied. Raises where there is none."""
    studied, missing = [], {}
    for name, one in contrasts.items():
        try:
            studied.append(_studied(pair, one, dose, passages, seed))
        except SteerlabError as error:
            missing[name] = f"{name}: not studied: {error}"
    if not studied:
        raise SteerlabError(" ".join(missing.values()))
    return studied, missing


def _studied(
    pair: Pair, one: Contrast, dose: Dose, passages: Sequence[str], seed: int
) -> tuple[Outcome, dict[str, Reading]]:
    """One contrast: read, probe, compare, steer."""
    texts = Texts.of(one, seed)
    readings = read(pair.by_name, texts, seed)
    missing = _incomparable(pair.by_name, one.name)
    draws = draws_of(texts, seed)
    same_width, alike = "transfer" not in missing, not missing
    found = {
        (source.role, target.role): cells_of(source, target, texts, draws, same_depth=alike)
        for source in readings.values()
        for target in readings.values()
        if source is target or same_width
    }
    outcome = Outcome(
        name=one.name,
        ends=one.data.names,
        texts=len(texts.labels),
        groups=len(one.data.groups),
        matched=one.data.groups.matched,
        words=shortcuts(one.data, seed=seed).bag_of_words,
        best={
            role: own.whole.best.layer or 0 for role, own in readings.items() if own.whole.best is not None
        },
        by_layer=tuple(row for own in readings.values() for row in accuracy_by_layer(own, texts, draws)),
        cells=tuple(cell for cells, _ in found.values() for cell in cells),
        missing=missing,
    )
    agreement = _agreement(readings, texts, seed) if alike and len(outcome.identified) == 2 else ()
    steered = _steered(outcome, readings, texts, dose, passages, missing, seed, alike=alike)
    right = {role: found[role, role][1] for role in readings}
    changes = [_change("accuracy", "", right, texts.groups, seed)]
    if len(steered) == 2 and pair.same_tokenizer:
        shares = {role: own.own for role, own in steered.items()}
        changes.append(_change("steering", "nats a token", shares, texts.groups[steered["post"].rows], seed))
    cells = tuple(cell for own in steered.values() for cell in own.cells)
    return outcome.model_copy(
        update={"agreement": agreement, "steering": cells, "changes": tuple(changes), "missing": missing}
    ), readings


def _incomparable(models: Mapping[str, LanguageModel], name: str) -> dict[str, str]:
    """What models of two shapes cannot be asked, and why."""
    base, post = models["base"], models["post"]
    if base.d_model != post.d_model:
        reason = (
            f"{name}: the models have width {base.d_model} and {post.d_model}, so there is no cosine, and neither "
            "model's direction reads or steers the other; each was studied alone."
        )
        return {"cosine": reason, "transfer": reason}
    if base.n_layers != post.n_layers:
        reason = (
            f"{name}: the models have {base.n_layers} and {post.n_layers} layers, so there is no cosine at the same "
            "layers, and each was steered by its own direction alone."
        )
        return {"cosine": reason}
    return {}


def _agreement(readings: Mapping[str, Reading], texts: Texts, seed: int) -> tuple[Agreement, ...]:
    """Cosines by layer; halves are of whole groups."""
    base, post = (readings[role].stack for role in ("base", "post"))
    return tuple(
        agreement_by_layer(
            base,
            post,
            texts.labels,
            clusters=texts.groups,
            strata=np.zeros(len(texts.labels), dtype=int),
            layers=range(len(base)),
            seed=seed,
        )
    )


def _steered(
    outcome: Outcome,
    readings: Mapping[str, Reading],
    texts: Texts,
    dose: Dose,
    passages: Sequence[str],
    missing: dict[str, str],
    seed: int,
    *,
    alike: bool,
) -> dict[str, Steered]:
    """The models that have a direction, steered; `missing` says why another one was not."""
    steered: dict[str, Steered] = {}
    without = [role for role in readings if role not in outcome.identified]
    if without:
        why = "is not steered: it has" if len(without) == 1 else "are not steered: they have"
        missing["steering"] = f"{outcome.name}: {' and '.join(without)} {why} no direction."
    for role in outcome.identified:
        target = readings[role]
        others = [readings[name] for name in outcome.identified if name != role and alike]
        found = steer(target, others[0] if others else None, texts, dose, passages, seed)
        if found is None:
            missing[f"steering {role}"] = (
                f"{outcome.name}: {role} is not steered, since no text has a second token to score."
            )
            continue
        steered[role] = found
    return steered


def _change(what: str, unit: str, of: Mapping[str, Any], groups: Any, seed: int) -> Change:
    first, second = (np.asarray(of[role], dtype=np.float64) for role in ("post", "base"))
    return Change(what=what, unit=unit, value=paired_difference(first, second, groups, seed=seed))
