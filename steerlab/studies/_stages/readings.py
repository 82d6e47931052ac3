"""Everything that is measured of one stage: the quantities of every study, and of contrasts that training left alone.

Truth and refusal are read as contrasts, too: their directions are then measured exactly as those of the contrasts that
training did not aim at, which are their control.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steerlab.datasets import ContrastSet, StatementSet, StudyData, contrasts
from steerlab.datasets.groups import Groups
from steerlab.datasets.labelled_texts import LabelledTexts
from steerlab.errors import DatasetError, SteerlabError
from steerlab.models import LanguageModel
from steerlab.progress import track
from steerlab.readouts.contrasts import Contrast, read_contrasts
from steerlab.readouts.quantities import Reading
from steerlab.record import Record
from steerlab.registry import STUDIES, Size, ordered_studies
from steerlab.studies._pair import LARGE, Pair, amounts_of

#: Pairs of a contrast (or groups of either class) and statements of a topic that are read.
GROUPS = {"quick": 40, LARGE: 24, "full": 200}
A_TOPIC = {"quick": 24, LARGE: 12, "full": 100}
#: Of a sketch.
_MATRICES, _PLACES = 64, 64
#: Names that the targets of studies have.
_OWN = ("truth", "refusal")


class StageReadings(Record):
    """What was measured of one stage.

    Attributes:
        label, name, fingerprint: of the stage, the model and its weights.
        tokenizer: a hash of the vocabulary.
        shape: family, layers and width in words.
        sketch: some weights of each matrix, by its name and shape (`sketch`).
        readings: every quantity.
        missing: by study, why it measured nothing.
    """

    label: str
    name: str
    fingerprint: str
    tokenizer: str
    shape: str
    sketch: dict[str, tuple[float, ...]]
    readings: tuple[Reading, ...]
    missing: dict[str, str]


def able() -> list[str]:
    """The registered studies that measure something of one model, but for contrasts, which are always read."""
    return [study.name for study in ordered_studies(in_compare=True) if study.stage and not study.needs]


def controls_of(data: StudyData, given: Any = None) -> dict[str, Contrast]:
    """The contrasts that training did not aim at: those given, else the packaged ones, without the targets of `data`.

    A packaged contrast of refusing is one of what refusal training aims at, and left out.
    """
    own = read_contrasts(data.contrasts)
    names = [name for name in contrasts() if name not in {*own, "refusing"}]
    found = read_contrasts(names if given is None else given)
    require_free([*own, *found])
    return {name: one for name, one in found.items() if name not in own}


def read_stage(
    model: LanguageModel,
    data: StudyData,
    controls: Mapping[str, Contrast],
    studies: Sequence[str],
    *,
    label: str,
    size: Size,
    seed: int,
) -> StageReadings:
    """Every quantity of the studies in one model, and of its directions."""
    readings: list[Reading] = []
    missing: dict[str, str] = {}
    amounts = amounts_of(size, Pair(model, model))
    for name in studies:
        stage = STUDIES[name].load_stage()
        assert stage is not None  # `able` lists those that have one
        try:
            readings += stage(model, data, size=size, seed=seed)
        except SteerlabError as error:
            missing[name] = str(error)
    if "truthfulness" in studies and not isinstance(data.statements, StatementSet):
        missing["contrast truth"] = "Statements in pairs have no direction of truth; give them one by one."
    read = targets_of(data, studies, A_TOPIC[amounts], seed)
    read |= {name: ("", one) for name, one in controls.items()}
    for name, (of, texts) in track(read.items(), f"reading directions in {label}", len(read)):
        try:
            one = read_contrasts({name: texts})[name]
            found = _direction(model, _some_groups(one, GROUPS[amounts], seed), data, size, seed)
        except SteerlabError as error:
            missing[f"contrast {name}"] = str(error)
            continue
        update = {"study": of or "contrast", "role": "target" if of else "control"}
        readings += [
            each.model_copy(update={"quantity": each.quantity.model_copy(update=update)}) for each in found
        ]
    return StageReadings(
        label=label,
        name=model.name,
        fingerprint=model.fingerprint,
        tokenizer=vocabulary_hash(model),
        shape=f"{model.family}, {model.n_layers} layers of width {model.d_model}",
        sketch=sketch(model),
        readings=tuple(_with_amounts(one, amounts) for one in readings),
        missing=missing,
    )


def sketch(model: LanguageModel) -> dict[str, tuple[float, ...]]:
    """A few numbers of the largest matrices, at places that go by name and shape: enough to tell strangers apart.

    Packed weights and weights that are elsewhere give none.
    """
    matrices = sorted(
        (weight.numel(), name, weight)
        for name, weight in model.model.named_parameters()
        if weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta
    )[-_MATRICES:]
    found = {}
    for size, name, weight in matrices:
        key = f"{name} {tuple(weight.shape)}"
        places = np.random.default_rng(zlib.crc32(key.encode())).integers(size, size=_PLACES)
        rows, columns = np.divmod(places, weight.shape[1])
        found[key] = tuple(weight.detach()[rows.tolist(), columns.tolist()].float().cpu().tolist())
    return found


def vocabulary_hash(model: LanguageModel) -> str:
    """A hash of the tokens and their numbers: models with one cut text alike, as pairs do (`Pair.same_tokenizer`)."""
    entries = sorted(model.tokenizer.get_vocab().items())
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def targets_of(
    data: StudyData, studies: Sequence[str], a_topic: int, seed: int
) -> dict[str, tuple[str, Any]]:
    """What training may have aimed at as contrasts: by name the study that it belongs to, and its texts."""
    own = read_contrasts(data.contrasts)
    require_free(own)
    made: dict[str, tuple[str, Any]] = {}
    if "truthfulness" in studies and isinstance(data.statements, StatementSet):
        simple = StatementSet(item for item in data.labelled_statements if item.form == "simple")
        made["truth"] = ("truthfulness", simple.sample(a_topic * max(1, len(simple.topics_present)), seed))
    if "refusal" in studies:
        train = data.requests.split("train")
        asked = train if train.positive and train.negative else data.requests
        made["refusal"] = (
            "refusal",
            ContrastSet(
                asked.positive,
                asked.negative,
                positive_name=asked.positive_name,
                negative_name=asked.negative_name,
            ),
        )
    return made | {name: ("contrast", one) for name, one in own.items()}


def require_free(contrasts: Iterable[str]) -> None:
    """Raise DatasetError for a contrast that has the name of a study's own direction."""
    if taken := [name for name in contrasts if name in _OWN]:
        raise DatasetError(
            f"A contrast is called {taken[0]!r}, as the direction that its study reads; give it another name."
        )


# -- private --


def _with_amounts(reading: Reading, amounts: str) -> Reading:
    """Says where a quick run asked less of a large model: stages asked otherwise are not compared."""
    if amounts != LARGE or reading.missing:
        return reading
    return reading.model_copy(
        update={"how": "; ".join(filter(None, [reading.how, f"the amounts of {LARGE}"]))}
    )


def _some_groups(one: Contrast, most: int, seed: int) -> Contrast:
    """At most so many groups of each kind (matched pairs; groups of one class), drawn by the seed."""
    data = one.data
    numbers, labels = np.asarray(data.groups.numbers), np.asarray(data.labels)
    kinds: dict[tuple[int, ...], list[int]] = {}
    for number in np.unique(numbers).tolist():
        kinds.setdefault(tuple(np.unique(labels[numbers == number]).tolist()), []).append(number)
    rng = np.random.default_rng(seed)
    kept = [number for of_kind in kinds.values() for number in rng.permutation(of_kind)[:most].tolist()]
    rows = np.flatnonzero(np.isin(numbers, kept)).tolist()
    return replace(
        one,
        data=LabelledTexts(
            tuple(data.texts[row] for row in rows),
            tuple(data.labels[row] for row in rows),
            data.names,
            Groups(tuple(numbers[rows].tolist()), data.groups.sentence, data.groups.matched),
        ),
    )


def _direction(model: LanguageModel, one: Contrast, data: StudyData, size: Size, seed: int) -> list[Reading]:
    """The quantities of a contrast's direction."""
    stage = STUDIES["contrast"].load_stage()
    assert stage is not None
    found: list[Reading] = stage(model, data.with_own(contrasts={one.name: one}), size=size, seed=seed)
    return found
