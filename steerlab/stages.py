"""A comparison of three or more checkpoints of one training: which step changed what, in one run folder.

Checkpoints are loaded one after the other; what is measured of each is kept in the folder as soon as it is read, so an
interrupted run goes on at the checkpoint where it stopped.
"""

from __future__ import annotations

import gc
import glob
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from steerlab.errors import RunError, SteerlabError
from steerlab.files import model_place, require_holds
from steerlab.lock import locked
from steerlab.registry import Size
from steerlab.run_data import data_facts, model_facts, on_topics, read_data, require_readable
from steerlab.run_folder import Manifest, RunFolder
from steerlab.runs import Run, finish, manifest_of, store

if TYPE_CHECKING:
    from steerlab.datasets import StudyData
    from steerlab.models import LanguageModel
    from steerlab.readouts.contrasts import Contrast
    from steerlab.studies import StageReadings

#: A hub name (`name@revision` for a revision of it), a folder, `zoo:NAME`, an adapter, a GGUF file or a loaded model.
Checkpoint: TypeAlias = "str | Path | LanguageModel"


# Long: a third or more of it documents its options.
def compare_checkpoints(
    checkpoints: Sequence[Checkpoint],
    *,
    out: str | Path,
    labels: Sequence[str] | None = None,
    studies: Sequence[str] | None = None,
    size: Size = "quick",
    statements: Any = None,
    requests: Any = None,
    contrasts: Any = None,
    controls: Any = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    **loading: Any,
) -> Run:
    """Measure every checkpoint by itself, test every step, and write `out`/report.html.

    Args:
        checkpoints: in the order of training; "run/checkpoint-*" stands for the folders of that name by their numbers.
            An adapter is put on the last whole model before it, which is read once for all its adapters.
        out: the run folder.
        labels: one a checkpoint; by default its name.
        studies: whose quantities are measured; None takes all that have some.
        size: "quick" or "full".
        statements: as for `compare`; so are requests, contrasts, seed, resume, overwrite, announce and loading.
        controls: contrasts that training did not aim at; None takes the packaged ones.

    Raises:
        SteerlabError: wrong input, before anything of the run is written.
        RunError: another process writes `out`, or the run there was made with something else.
    """
    from steerlab.opening import name_and_revision, require_findable
    from steerlab.studies import compare_stages, controls_of, known_stages, require_stages

    given = expanded(checkpoints)
    require_distinct(given)
    names = labelled(given, labels)
    require_stages(names)
    chosen = known_stages(studies)
    places = [name_and_revision(one)[0] for one in given]
    require_findable(*places)
    _require_weights(places)
    data = read_data(statements, requests, contrasts=contrasts or None)
    beside = controls_of(data, controls)
    RunFolder(Path(out)).require_free(resume=resume, overwrite=overwrite)
    if disorder := _disorder(names):
        announce(disorder)
    with locked(Path(out)):
        models = loaded(given, names, loading, announce)
        first = next(models)  # what cannot be loaded replaces no run
        data = on_topics(data, first.topics)
        require_readable(data, [first])
        run = _Stages(
            folder=RunFolder(Path(out)),
            manifest=_manifest(data, beside, chosen, names, size, seed),
            controls=beside,
            studies=chosen,
            size=size,
            seed=seed,
            announce=announce,
        )
        run.prepare(resume=resume, overwrite=overwrite)
        started = time.perf_counter()
        try:
            stages = [run.stage(0, names[0], first, data)]
            del first
            for label, model in zip(names[1:], models, strict=True):
                stages.append(run.stage(len(stages), label, model, data))
                del model
            result = compare_stages(stages, list(beside), seed)
        except KeyboardInterrupt:
            run.manifest.status = "interrupted"
            run.folder.write_manifest(run.manifest)
            raise
        except SteerlabError:
            if not resume:
                run.folder.discard_if_empty()
            raise
        store(run.folder, run.manifest, result, time.perf_counter() - started, {})
        return finish(run.folder, run.manifest)


def expanded(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints with patterns replaced by the folders they stand for, by the numbers in their names.

    Raises RunError for a pattern without a folder.
    """
    found: list[Checkpoint] = []
    for one in checkpoints:
        if isinstance(one, str | Path) and glob.has_magic(str(one)) and not Path(one).exists():
            places = glob.glob(str(Path(one).expanduser()))
            folders = sorted((place for place in places if Path(place).is_dir()), key=_numbers)
            if not folders:
                raise RunError(f"No folder is called {one}; name checkpoints that are there.")
            found += folders
        else:
            found.append(one)
    return found


def require_distinct(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise RunError for a checkpoint that is named twice."""
    seen: list[object] = []
    for number, one in enumerate(checkpoints, start=1):
        key = str(one) if isinstance(one, str | Path) else id(one)
        if key in seen:
            raise RunError(
                f"The stages {seen.index(key) + 1} and {number} are both {_name(one)}; name each checkpoint once."
            )
        seen.append(key)


def labelled(checkpoints: Sequence[Checkpoint], labels: Sequence[str] | None) -> list[str]:
    """One label a checkpoint: those given, else the ends of their names, as long as it takes to tell them apart.

    Raises RunError for another number of labels.
    """
    if not checkpoints:
        return []
    if labels is not None:
        if isinstance(labels, str) or len(labels) != len(checkpoints):
            number = 1 if isinstance(labels, str) else len(labels)
            raise RunError(f"{len(checkpoints)} stages came with {number} labels; give one a stage.")
        return [str(label) for label in labels]
    parts = [_name(one).rstrip("/").split("/") for one in checkpoints]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {'/'.join(part)}" for number, part in enumerate(parts, start=1)]


def loaded(
    checkpoints: Sequence[Checkpoint],
    labels: Sequence[str],
    loading: Mapping[str, Any],
    announce: Callable[[str], None],
) -> Iterator[LanguageModel]:
    """One model after the other; a whole model stays only while adapters that follow are put on it."""
    from steerlab.models import LanguageModel, is_adapter
    from steerlab.opening import load, name_and_revision

    def on_base(one: Checkpoint) -> bool:
        name, revision = name_and_revision(one)
        return (
            isinstance(name, str | Path)
            and not str(name).startswith("zoo:")
            and is_adapter(str(name), revision)
        )

    adapted = [on_base(one) for one in checkpoints]
    base: LanguageModel | None = None
    for number, one in enumerate(checkpoints):
        if isinstance(one, LanguageModel):
            model = one
        else:
            announce(f"Loading {labels[number]}, stage {number + 1} of {len(checkpoints)}")
            name, revision = name_and_revision(one)
            options = dict(loading) | ({} if revision is None else {"revision": revision})
            model = load(name, **options, **({"base": base} if adapted[number] and base is not None else {}))
        if not adapted[number]:
            base = model if any(adapted[number + 1 : number + 2]) else None
        elif not any(adapted[number + 1 : number + 2]):
            base = None
        yield model
        del model
        gc.collect()


# -- private, in the order they are called --


def _require_weights(places: Sequence[Any]) -> None:
    """Raise `ModelError` for a folder that holds a configuration and no weights."""
    for place in places:
        folder = model_place(str(place)) if isinstance(place, str | Path) else None
        if folder is not None and folder.is_dir() and not str(place).startswith("zoo:"):
            require_holds(folder, "*.safetensors", "*.bin", "*.gguf")


def _disorder(names: Sequence[str]) -> str:
    """Says where labels that differ by their number alone are out of order, as a shell sorts them; "" otherwise."""
    alike = {re.sub(r"\d+", "#", name) for name in names}
    if len(alike) > 1 or list(names) == sorted(names, key=_numbers):
        return ""
    return (
        f"The stages are compared as they are named, {', '.join(names)}, which is not the order of their numbers: "
        "quote a pattern ('checkpoint-*') to have them sorted"
    )


def _manifest(
    data: StudyData,
    controls: Mapping[str, Contrast],
    studies: Sequence[str],
    names: Sequence[str],
    size: Size,
    seed: int,
) -> Manifest:
    """What the run is made with, but for its models, which are read one by one."""
    facts = data_facts(data) | {
        f"control {name}": fact for name, fact in data_facts(data.with_own(contrasts=controls), ()).items()
    }
    configuration: dict[str, str | int | list[str]] = {
        "studies": list(studies),
        "stages": list(names),
        "size": size,
        "seed": seed,
    }
    return manifest_of({}, facts, configuration)


@dataclass(frozen=True)
class _Stages:
    """A run of stages: where it is kept, and what each stage is measured with."""

    folder: RunFolder
    manifest: Manifest
    controls: Mapping[str, Contrast]
    studies: Sequence[str]
    size: Size
    seed: int
    announce: Callable[[str], None]

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready; the models that were measured before are known from its manifest."""
        if resume and (self.folder.path / "manifest.json").is_file():
            self.manifest.models.update(self.folder.manifest().models)
        RunFolder.prepare(self.folder.path, self.manifest, resume=resume, overwrite=overwrite)

    def stage(self, number: int, label: str, model: LanguageModel, data: StudyData) -> StageReadings:
        """What was read of a stage before, where its model is the same; else read now, and kept.

        Raises RunError where the model is another one, or was loaded otherwise.
        """
        kept = _kept(self.folder, number, label)
        if kept is None:
            return self._measured(number, label, model, data)
        if changed := _changed(self.manifest.models.get(label, {}), model_facts(model)):
            raise RunError(
                f"The stage {label} has {changed} than when {self.folder.path} was begun; replace the run with "
                "--overwrite or choose another --out."
            )
        self.announce(f"{label}: already measured, kept")
        return kept

    def _measured(self, number: int, label: str, model: LanguageModel, data: StudyData) -> StageReadings:
        from steerlab.models.metering import costs, metered
        from steerlab.studies import read_stage

        require_readable(data, [model])
        self.announce(f"Measuring {label}")
        started = time.perf_counter()
        with metered({label: model}) as spent:
            found = read_stage(
                model, data, self.controls, self.studies, label=label, size=self.size, seed=self.seed
            )
        seconds = time.perf_counter() - started
        self.manifest.models[label] = model_facts(model)
        self.manifest.timings[f"stage {label}"] = round(seconds, 2)
        self.manifest.costs[f"stage {label}"] = costs(spent, seconds)
        self.folder.write_manifest(self.manifest)
        self.folder.write_with(
            f"readings/{number}.json",
            lambda place: place.write_text(found.model_dump_json(), encoding="utf-8"),
        )
        return found


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What of a stage's model differs from when it was measured, in words; "" for nothing."""
    kinds = {"other weights": "fingerprint", "another dtype": "dtype", "other interventions": "interventions"}
    different = [words for words, fact in kinds.items() if before.get(fact) != now.get(fact)]
    devices = [str(facts.get("device", "")).partition(":")[0] for facts in (before, now)]
    return " and ".join([*different, *(["another device"] if devices[0] != devices[1] else [])])


def _kept(folder: RunFolder, number: int, label: str) -> StageReadings | None:
    """What a run before this one measured of a stage; None where it did not, or it does not read back."""
    from steerlab.studies import StageReadings

    place = folder.path / "readings" / f"{number}.json"
    try:
        found = StageReadings.model_validate_json(place.read_text("utf-8"))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.label == label else None


def _name(one: Checkpoint) -> str:
    return str(one) if isinstance(one, str | Path) else one.name


def _numbers(place: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them: checkpoint-9 before checkpoint-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", place)]
