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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from steerlab.errors import RunError, SteerlabError
from steerlab.files import model_place
from steerlab.lock import locked
from steerlab.registry import Size
from steerlab.run_data import data_facts, model_facts, on_topics, read_data, require_readable
from steerlab.run_folder import Manifest, RunFolder
from steerlab.runs import Run, finish, manifest_of, store

if TYPE_CHECKING:
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
    from steerlab.opening import require_findable
    from steerlab.studies import compare_stages, controls_of, known_stages, require_stages

    given = expanded(checkpoints)
    names = labelled(given, labels)
    require_stages(names)
    chosen = known_stages(studies)
    require_findable(*(_split(one)[0] for one in given))
    data = read_data(statements, requests, contrasts=contrasts or None)
    beside = controls_of(data, controls)
    RunFolder(Path(out)).require_free(resume=resume, overwrite=overwrite)
    configuration: dict[str, str | int | list[str]] = {
        "studies": chosen,
        "stages": names,
        "size": size,
        "seed": seed,
    }
    facts = data_facts(data) | {
        f"control {name}": fact for name, fact in data_facts(data.with_own(contrasts=beside), ()).items()
    }
    with locked(Path(out)):
        manifest = manifest_of({}, facts, configuration)
        if resume and (Path(out) / "manifest.json").is_file():
            manifest.models = RunFolder.open(out).manifest().models
        folder = RunFolder.prepare(out, manifest, resume=resume, overwrite=overwrite)
        started = time.perf_counter()
        stages: list[StageReadings] = []
        try:
            for label, model in zip(names, loaded(given, names, loading, announce), strict=True):
                if not stages:
                    data = on_topics(data, model.topics)
                stages.append(
                    _stage(
                        folder,
                        manifest,
                        model,
                        data,
                        beside,
                        chosen,
                        label,
                        len(stages),
                        size,
                        seed,
                        announce,
                    )
                )
                del model
            result = compare_stages(stages, list(beside), seed)
        except KeyboardInterrupt:
            manifest.status = "interrupted"
            folder.write_manifest(manifest)
            raise
        except SteerlabError:
            if not stages:
                folder.discard_if_empty()
            raise
        store(folder, manifest, result, time.perf_counter() - started, {})
        return finish(folder, manifest)


def expanded(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints with patterns replaced by the folders they stand for, by the numbers in their names.

    Raises RunError for a pattern without a folder, and for a checkpoint that is named twice.
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
    seen: list[object] = []
    for number, one in enumerate(found, start=1):
        key = str(one) if isinstance(one, str | Path) else id(one)
        if key in seen:
            raise RunError(
                f"The stages {seen.index(key) + 1} and {number} are both {_name(one)}; name each checkpoint once."
            )
        seen.append(key)
    return found


def labelled(checkpoints: Sequence[Checkpoint], labels: Sequence[str] | None) -> list[str]:
    """One label a checkpoint: those given, else the ends of their names, as long as it takes to tell them apart.

    Raises RunError for another number of labels.
    """
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
    from steerlab.opening import load

    def on_base(one: Checkpoint) -> bool:
        name, revision = _split(one)
        return isinstance(name, str) and not name.startswith("zoo:") and is_adapter(name, revision)

    adapted = [on_base(one) for one in checkpoints]
    base: LanguageModel | None = None
    for number, one in enumerate(checkpoints):
        if isinstance(one, LanguageModel):
            model = one
        else:
            announce(f"Loading {labels[number]}, stage {number + 1} of {len(checkpoints)}")
            name, revision = _split(one)
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


# Long: its arguments are what one stage is measured with.
def _stage(
    folder: RunFolder,
    manifest: Manifest,
    model: LanguageModel,
    data: Any,
    controls: Mapping[str, Contrast],
    studies: Sequence[str],
    label: str,
    number: int,
    size: Size,
    seed: int,
    announce: Callable[[str], None],
) -> StageReadings:
    """What was read of a stage before, where its model is the same; else read now, and kept."""
    from steerlab.models.metering import costs, metered
    from steerlab.studies import read_stage

    kept = _kept(folder, number, label)
    if kept is not None and kept.label == label:
        if kept.fingerprint != model.fingerprint:
            raise RunError(
                f"The stage {label} has other weights than when {folder.path} was begun; replace the run with "
                "--overwrite or choose another --out."
            )
        announce(f"{label}: already measured, kept")
        return kept
    require_readable(data, [model])
    announce(f"Measuring {label}")
    started = time.perf_counter()
    with metered({label: model}) as spent:
        found = read_stage(model, data, controls, studies, label=label, size=size, seed=seed)
    seconds = time.perf_counter() - started
    manifest.models[label] = model_facts(model)
    manifest.timings[label] = round(seconds, 2)
    manifest.costs[label] = costs(spent, seconds)
    folder.write_with(
        f"readings/{number}.json", lambda place: place.write_text(found.model_dump_json(), encoding="utf-8")
    )
    folder.write_manifest(manifest)
    return found


def _kept(folder: RunFolder, number: int, label: str) -> StageReadings | None:
    """What a run before this one measured of a stage; None where it did not, or it does not read back."""
    from steerlab.studies import StageReadings

    place = folder.path / "readings" / f"{number}.json"
    try:
        return StageReadings.model_validate_json(place.read_text("utf-8"))
    except (OSError, ValueError, ValidationError):
        return None


def _split(one: Checkpoint) -> tuple[Any, str | None]:
    """A name and its revision, as in `name@revision`; a folder's name may hold an @."""
    if not isinstance(one, str | Path):
        return one, None
    name = str(one)
    if "@" not in name or name.startswith("zoo:") or Path(name).expanduser().exists():
        return name, None
    before, _, revision = name.rpartition("@")
    place = model_place(before)
    if not before or not revision or (place is not None and place.is_dir()):
        raise RunError(
            f"{name} names a revision, and only names on the hub have revisions; name the folder alone."
        )
    return before, revision


def _name(one: Checkpoint) -> str:
    return str(one) if isinstance(one, str | Path) else one.name


def _numbers(place: str) -> list[tuple[int, str]]:
    """Orders names by the numbers in them: checkpoint-9 before checkpoint-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", place)]
