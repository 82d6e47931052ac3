"""A comparison of two checkpoints: which studies run, on what, into which folder, and how to take it up again.

Everything that can be wrong with the input is found before anything of the run is written. Studies run one after the
other, each seeded afresh, and are stored as they finish; so an interrupted run that is resumed ends with
the results of an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from steerlab.environment import code_version, hardware, library_versions, peak_memory
from steerlab.errors import RunError, SteerlabError
from steerlab.forecast import Forecast, forecast
from steerlab.lock import locked
from steerlab.progress import steps
from steerlab.registry import Preset, Size, check_options
from steerlab.results import STUDIES, SkippedResult, StudyResult, ordered_studies, result_from_dict
from steerlab.run_data import Facts, data_facts, model_facts, on_topics, read_data, require_readable
from steerlab.run_folder import Manifest, RunFolder
from steerlab.showing import html_table

if TYPE_CHECKING:
    from steerlab.datasets import StudyData
    from steerlab.models import LanguageModel
    from steerlab.models.metering import Spent
    from steerlab.studies import Pair


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


# Long: a third or more of it documents its options.
def compare(
    base: str | Path | LanguageModel,
    post: str | Path | LanguageModel,
    *,
    out: str | Path,
    studies: Sequence[str] | None = None,
    size: Size = "quick",
    preset: Preset = "corrected",
    statements: Any = None,
    requests: Any = None,
    questions: Any = None,
    contrasts: Any = None,
    answers: tuple[str, str] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    **loading: Any,
) -> Run:
    """Compare a base model with the model post-trained from it and write `out`/report.html.

    Args:
        base: a hub name, a local folder, `zoo:NAME` or a loaded model.
        post: likewise, or an adapter, which is put on `base`, whatever base it names: the weights are read once.
        out: the run folder.
        studies: names from the registry; None runs all that take a pair.
        size: "quick" or "full".
        preset: "corrected" or "published"; a study without a published preset is skipped and says so.
        statements: a file, folder, frame or `StatementSet` in place of the packaged set
            (`datasets.read_statements`), of which models that say which topics they were trained to judge (bundled
            ones) are asked about these.
        requests: likewise (`datasets.read_requests`, `ContrastSet`).
        questions: multiple choice (`datasets.read_multiple_choice`) in place of what statements make.
        contrasts: contrasts of one's own, studied beside the rest: files or names of packaged ones in a list, or a
            mapping from names to whatever `sl.extract` takes (`readouts.contrasts.read_contrasts`).
        answers: the words for true and false that statements are asked with (" Yes", " No"), each one token in both
            models; by default every study chooses.
        seed: of every draw.
        resume: go on with the run in `out`.
        overwrite: replace the run in `out`.
        announce: is told, in a sentence, what begins.
        loading: goes to `steerlab.load`.

    Raises:
        SteerlabError: wrong input, before anything of the run is written.
        RunError: another process writes `out`, or the run there was made with something else.
        KeyboardInterrupt: passes through with the finished studies stored.
    """
    from steerlab.models.metering import metered
    from steerlab.opening import load_pair
    from steerlab.readouts.questions import answer_words
    from steerlab.studies import Pair

    chosen = known_studies(studies, {"contrasts"} if contrasts else ())
    check_options("A comparison", size=size, preset=preset, presets=get_args(Preset))
    own = {
        "statements": statements,
        "requests": requests,
        "questions": questions,
        "contrasts": contrasts or None,
    }
    _require_read(own, chosen)
    _require_asked(answers, chosen)
    given = read_data(**own)
    RunFolder(Path(out)).require_free(resume=resume, overwrite=overwrite)
    configuration: dict[str, str | int | list[str]] = {
        "studies": chosen,
        "size": size,
        "preset": preset,
        "seed": seed,
        **({} if answers is None else {"answers": list(answers)}),
    }
    with locked(Path(out)):
        pair = Pair(*load_pair(base, post, loading, announce))
        data = on_topics(given, pair.topics)
        require_readable(data, pair)
        if answers is not None:
            answer_words(pair, answers)
        expected: dict[str, float | None] = {}
        if not any(model.is_remote for model in pair):
            foreseen = forecast(pair, chosen, size, data)
            expected = {cost.study: cost.seconds for cost in foreseen.studies}
            announce(foreseen.sentence)
        manifest = _manifest(pair.by_name, data_facts(data), configuration)
        folder = RunFolder.prepare(out, manifest, resume=resume, overwrite=overwrite)
        try:
            missing = [name for name in chosen if not _finished(folder, name, announce)]
            for name in steps(missing, announce, expected):
                started = time.perf_counter()
                with metered(pair.by_name) as spent:
                    result = run_study(name, pair, data, size=size, preset=preset, seed=seed, answers=answers)
                _store(folder, manifest, result, time.perf_counter() - started, spent)
            return _finish(folder, manifest)
        except KeyboardInterrupt:
            manifest.status = "interrupted"
            folder.write_manifest(manifest)
            raise
        except SteerlabError:
            folder.discard_if_empty()
            raise


def foresee(
    base: str | Path | LanguageModel,
    post: str | Path | LanguageModel,
    *,
    studies: Sequence[str] | None = None,
    size: Size = "quick",
    contrasts: Any = None,
    announce: Callable[[str], None] = lambda line: None,
    **loading: Any,
) -> Forecast:
    """What `compare` would put through the models, and how long it would take here; nothing is run or written.

    The models are loaded, and timed for about a second each. Options are those of `compare`.

    Raises:
        SteerlabError: wrong input, or a remote model.
    """
    from steerlab.opening import load_pair
    from steerlab.studies import Pair

    chosen = known_studies(studies, {"contrasts"} if contrasts else ())
    data = read_data(contrasts=contrasts or None)
    return forecast(Pair(*load_pair(base, post, loading, announce)), chosen, size, data)


def _require_read(given: Mapping[str, object], chosen: Sequence[str]) -> None:
    """Raise `RunError` for data that none of the chosen studies reads."""
    for name, data in given.items():
        readers = [study for study in STUDIES if name in STUDIES[study].reads]
        if data is not None and not set(readers) & set(chosen):
            raise RunError(
                f"The {name} are read by {' and '.join(readers)} only, and none of them is asked for; leave them out."
            )


def run_study(
    name: str,
    pair: Pair,
    data: StudyData,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
    answers: tuple[str, str] | None = None,
) -> StudyResult:
    """One registered study on a loaded pair; `answers` go to the studies that ask with them.

    A study that this pair cannot take gives a result that says so; anything unforeseen is raised.
    """
    import torch

    study = STUDIES[name].load()
    torch.manual_seed(seed)
    try:
        words = {"answers": answers} if answers is not None and _takes_answers(name) else {}
        result: StudyResult = study(pair, data, size=size, preset=preset, seed=seed, **words)
        return result
    except SteerlabError as error:
        return SkippedResult(study=name, reason=str(error))


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
        manifest = _manifest(roles, read, {"studies": [result.study], **configuration})
        folder = RunFolder.prepare(out, manifest, resume=False, overwrite=overwrite)
        _store(folder, manifest, result, time.perf_counter() - started, spent)
        return _finish(folder, manifest)


def rewrite_report(path: str | Path) -> Run:
    """Write the report of a stored run again, from its results alone."""
    folder = RunFolder.open(path)
    with locked(folder.path):
        return _reported(folder, folder.manifest())


def diff_runs(a: str | Path, b: str | Path, out: str | Path) -> Path:
    """Write a page that sets two stored runs side by side. Raises RunError where one cannot be read."""
    from steerlab.report import Side, write_diff

    runs = [RunFolder.open(path) for path in (a, b)]
    one, two = (Side(run.path.name, _stored(run), run.manifest().model_dump()) for run in runs)
    return write_diff((one, two), runs[0].manifest().differences(runs[1].manifest()), out)


def known_studies(names: Sequence[str] | None, given: Collection[str] = ()) -> list[str]:
    """The named studies, or all that can run with the data `given`. Raises RunError for one that cannot."""
    studies = ordered_studies(in_compare=True)
    able = [study.name for study in studies if not study.needs or study.needs in given]
    chosen = able if names is None else [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise RunError(f"No study is named; choose from {', '.join(able)}.")
    for name in chosen:
        if not STUDIES[name].in_compare:
            raise RunError(
                f"The study {name!r} does not take a base and a post-trained model as a comparison gives them, "
                f"and has a command of its own; choose from {', '.join(able)}."
            )
        if STUDIES[name].needs and STUDIES[name].needs not in given:
            raise RunError(
                f"The study {name!r} needs {STUDIES[name].needs}, and none are given; name them as well."
            )
    return chosen


def _require_asked(answers: tuple[str, str] | None, studies: Sequence[str]) -> None:
    """Raise `RunError` for answers that no chosen study asks for."""
    if answers is not None and not any(_takes_answers(name) for name in studies):
        raise RunError(
            f"No answers are asked for by {', '.join(studies)}; leave answers out, or add a study that does."
        )


def _takes_answers(study: str) -> bool:
    return "answers" in signature(STUDIES[study].load()).parameters


def _manifest(
    models: Mapping[str, LanguageModel],
    data: dict[str, Facts],
    configuration: dict[str, str | int | list[str]],
) -> Manifest:
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models={role: model_facts(model) for role, model in models.items()},
        data=data,
        configuration=configuration,
        versions={**library_versions(), "steerlab code": code_version()},
        hardware=hardware(),
    )


def _finished(folder: RunFolder, name: str, announce: Callable[[str], None]) -> bool:
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


def _store(
    folder: RunFolder, manifest: Manifest, result: StudyResult, seconds: float, spent: Mapping[str, Spent]
) -> None:
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


def _finish(folder: RunFolder, manifest: Manifest) -> Run:
    """Report the run, and note that it is done."""
    manifest.status = "done"
    run = _reported(folder, manifest)
    folder.write_manifest(manifest)
    return run


def _reported(folder: RunFolder, manifest: Manifest) -> Run:
    """Write the report of what is stored."""
    from steerlab.report import write_report

    results = _stored(folder)
    write_report(results, manifest.model_dump(), folder.report)
    return Run(folder, manifest, results)


def _stored(folder: RunFolder) -> dict[str, StudyResult]:
    """The results in a folder, studies in the registry's order."""
    known = [study.name for study in ordered_studies()]
    order = [name for name in dict.fromkeys([*known, *folder.studies()]) if folder.has_result(name)]
    return {name: result_from_dict(folder.read_result(name)) for name in order}
