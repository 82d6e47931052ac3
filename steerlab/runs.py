"""A run as it is written: its manifest, each result as it is finished, its report; and runs of a single study.

What makes a run (`comparison` for a pair, `stages` for more) stands elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from steerlab.environment import code_version, hardware, library_versions, peak_memory
from steerlab.errors import RunError
from steerlab.lock import locked
from steerlab.results import StudyResult, ordered_studies, result_from_dict
from steerlab.run_data import Facts, model_facts
from steerlab.run_folder import Manifest, RunFolder
from steerlab.showing import html_table

if TYPE_CHECKING:
    from steerlab.models import LanguageModel
    from steerlab.models.metering import Spent


@dataclass(frozen=True)
class Run:
    """A finished comparison: its folder, manifest and results by study."""

    folder: RunFolder
    manifest: Manifest
    results: dict[str, StudyResult]

    @property
    def report(self) -> Path:
        """The self-contained HTML page."""
        return self.folder.report

    def __getitem__(self, study: str) -> StudyResult:
        """The result of one study. Raises RunError where the run has none."""
        if study not in self.results:
            raise RunError(f"The run has no study {study!r}; it has {', '.join(self.results)}.")
        return self.results[study]

    def __repr__(self) -> str:
        told = ", ".join(f"{name} ({result.status})" for name, result in self.results.items())
        return f"Run({told}; {self.report})"

    def _repr_html_(self) -> str:
        rows = [(name, result.status, *result.summary[:1]) for name, result in self.results.items()]
        return html_table(f"Run: {self.report}", ["Study", "Status", "In a sentence"], rows)


def run_alone(
    study: Callable[[dict[str, LanguageModel]], tuple[StudyResult, dict[str, Facts]]],
    models: Mapping[str, str | Path | LanguageModel],
    *,
    out: str | Path,
    configuration: dict[str, str | int | list[str]],
    overwrite: bool = False,
    load: Callable[[str | Path], LanguageModel] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Run:
    """Load models, run one study on them, and store it in a run folder of its own.

    Args:
        study: the study, given the loaded models by their roles; it returns its result and size, hash, source and an
            example of every set that it read, by name (`run_data`).
        models: names or loaded models by role; a name that has two roles is loaded once.
        configuration: what the study was asked for.
        load: loads a name; `steerlab.load` by default.
        announce: is told, in a sentence, what begins.

    Raises:
        RunError: `out` holds another run, or cannot be written.
    """
    from steerlab.models.metering import metered
    from steerlab.opening import load as load_any
    from steerlab.opening import require_findable

    require_findable(*models.values())
    RunFolder(Path(out)).require_free(resume=False, overwrite=overwrite)
    with locked(Path(out)):
        loaded: dict[str, LanguageModel] = {}
        for model in models.values():
            if isinstance(model, str | Path) and str(model) not in loaded:
                loaded[str(model)] = (load or load_any)(model)
        roles = {
            role: loaded[str(model)] if isinstance(model, str | Path) else model
            for role, model in models.items()
        }
        announce("The models are loaded; the study runs, and the report comes next")
        started = time.perf_counter()
        with metered(roles) as spent:
            result, read = study(roles)
        manifest = manifest_of(roles, read, {"studies": [result.study], **configuration})
        folder = RunFolder.prepare(out, manifest, resume=False, overwrite=overwrite)
        store(folder, manifest, result, time.perf_counter() - started, spent)
        return finish(folder, manifest)


def rewrite_report(path: str | Path) -> Run:
    """Write the report of a stored run again, from its results alone."""
    folder = RunFolder.open(path)
    with locked(folder.path):
        return reported(folder, folder.manifest())


def diff_runs(a: str | Path, b: str | Path, out: str | Path) -> Path:
    """Write a page that sets two stored runs side by side. Raises RunError where one cannot be read."""
    from steerlab.report import Side, write_diff

    runs = [RunFolder.open(path) for path in (a, b)]
    one, two = (Side(run.path.name, stored_results(run), run.manifest().model_dump()) for run in runs)
    return write_diff((one, two), runs[0].manifest().differences(runs[1].manifest()), out)


def manifest_of(
    models: Mapping[str, LanguageModel],
    data: dict[str, Facts],
    configuration: dict[str, str | int | list[str]],
) -> Manifest:
    """What a run is made with, now."""
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models={role: model_facts(model) for role, model in models.items()},
        data=data,
        configuration=configuration,
        versions={**library_versions(), "steerlab code": code_version()},
        hardware=hardware(),
    )


def is_finished(folder: RunFolder, name: str, announce: Callable[[str], None]) -> bool:
    """Whether a study is stored and reads back."""
    if not folder.has_result(name):
        return False
    try:
        result_from_dict(folder.read_result(name))
    except RunError:
        announce(f"{name}: the stored result is damaged, made again")
        return False
    announce(f"{name}: already finished, kept")
    return True


def store(
    folder: RunFolder, manifest: Manifest, result: StudyResult, seconds: float, spent: Mapping[str, Spent]
) -> None:
    """Keep a finished study: its directions, its result, and what it took."""
    from steerlab.models.metering import costs

    for name, direction in result.artefacts().items():
        folder.write_with(f"directions/{name}.safetensors", direction.save)
    folder.write_result(result.study, result.to_dict())
    manifest.timings[result.study] = round(seconds, 2)
    manifest.costs[result.study] = costs(spent, seconds)
    # A study that is made again may have taken more before.
    before = manifest.peak_memory.get(result.study, {})
    now = {kind: max(taken, before.get(kind, 0.0)) for kind, taken in peak_memory().items()}
    manifest.peak_memory[result.study] = {**before, **now}
    folder.write_manifest(manifest)


def finish(folder: RunFolder, manifest: Manifest) -> Run:
    """Report the run, and note that it is done."""
    manifest.status = "done"
    run = reported(folder, manifest)
    folder.write_manifest(manifest)
    return run


def reported(folder: RunFolder, manifest: Manifest) -> Run:
    """Write the report of what is stored."""
    from steerlab.report import write_report

    results = stored_results(folder)
    write_report(results, manifest.model_dump(), folder.report)
    return Run(folder, manifest, results)


def stored_results(folder: RunFolder) -> dict[str, StudyResult]:
    """The results in a folder, studies in the registry's order."""
    known = [study.name for study in ordered_studies()]
    order = [name for name in dict.fromkeys([*known, *folder.studies()]) if folder.has_result(name)]
    return {name: result_from_dict(folder.read_result(name)) for name in order}
