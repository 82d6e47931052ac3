"""A comparison of two checkpoints: which studies run, on what, into which folder, and how to take it up again.

Everything that can be wrong with the input is found before anything of the run is written. Studies run one after the
other, each seeded afresh, and are stored as they finish; so an interrupted run that is resumed ends with
the results of an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from steerlab.errors import RunError, SteerlabError
from steerlab.forecast import Forecast, forecast
from steerlab.lock import locked
from steerlab.progress import steps
from steerlab.registry import Preset, Size, check_options
from steerlab.results import STUDIES, SkippedResult, StudyResult, ordered_studies
from steerlab.run_data import data_facts, on_topics, read_data, require_readable
from steerlab.run_folder import RunFolder
from steerlab.runs import Run, diff_runs, finish, is_finished, manifest_of, rewrite_report, run_alone, store
from steerlab.stages import Checkpoint, compare_checkpoints, expanded

if TYPE_CHECKING:
    from steerlab.datasets import StudyData
    from steerlab.models import LanguageModel
    from steerlab.studies import Pair

__all__ = [
    "Run",
    "compare",
    "diff_runs",
    "foresee",
    "known_studies",
    "rewrite_report",
    "run_alone",
    "run_study",
]


# Long: a third or more of it documents its options.
def compare(
    base: Checkpoint | Sequence[Checkpoint],
    post: Checkpoint | None = None,
    *,
    out: str | Path,
    labels: Sequence[str] | None = None,
    studies: Sequence[str] | None = None,
    size: Size = "quick",
    preset: Preset = "corrected",
    statements: Any = None,
    requests: Any = None,
    questions: Any = None,
    contrasts: Any = None,
    controls: Any = None,
    answers: tuple[str, str] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    **loading: Any,
) -> Run:
    """Compare a base model with the model post-trained from it and write `out`/report.html; or stages of a training.

    A list of two checkpoints is a base and its post-trained model. Of three or more (base, sft, dpo, rl) each is
    measured by itself, one in memory at a time, and every step is tested (`stages.compare_checkpoints`).

    Args:
        base: a hub name, a local folder, `zoo:NAME` or a loaded model; or a list of checkpoints in their order.
        post: likewise, or an adapter, which is put on `base`, whatever base it names: the weights are read once.
        out: the run folder.
        labels: of three or more checkpoints, in their order; by default their names.
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
        controls: with three or more checkpoints, contrasts that training did not aim at, given likewise; by default the
            packaged ones.
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

    named = expanded(
        [*(base if isinstance(base, list | tuple) else [base]), *([] if post is None else [post])]
    )
    if len(named) > 2 or (isinstance(base, list | tuple) and len(named) != 2):
        unread = {"questions": questions, "answers": answers}
        _require_none(unread, "with three or more checkpoints")
        check_options("A comparison of stages", size=size, preset=preset)
        own = {"statements": statements, "requests": requests, "contrasts": contrasts or None}
        if studies is not None:
            _require_read(own, [*([studies] if isinstance(studies, str) else studies), "contrast"])
        return compare_checkpoints(
            named, out=out, labels=labels, studies=studies, size=size, statements=statements, requests=requests,
            contrasts=contrasts, controls=controls, seed=seed, resume=resume, overwrite=overwrite,
            announce=announce, **loading,
        )  # fmt: skip
    _require_none({"labels": labels, "controls": controls}, "with two checkpoints, only with more")
    before, after = _two(named)
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
        pair = Pair(*load_pair(before, after, loading, announce))
        data = on_topics(given, pair.topics)
        require_readable(data, pair)
        if answers is not None:
            answer_words(pair, answers)
        expected: dict[str, float | None] = {}
        if not any(model.is_remote for model in pair):
            foreseen = forecast(pair, chosen, size, data)
            expected = {cost.study: cost.seconds for cost in foreseen.studies}
            announce(foreseen.sentence)
        manifest = manifest_of(pair.by_name, data_facts(data), configuration)
        folder = RunFolder.prepare(out, manifest, resume=resume, overwrite=overwrite)
        try:
            missing = [name for name in chosen if not is_finished(folder, name, announce)]
            for name in steps(missing, announce, expected):
                started = time.perf_counter()
                with metered(pair.by_name) as spent:
                    result = run_study(name, pair, data, size=size, preset=preset, seed=seed, answers=answers)
                store(folder, manifest, result, time.perf_counter() - started, spent)
            return finish(folder, manifest)
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


def _two(named: Sequence[Checkpoint]) -> tuple[Checkpoint, Checkpoint]:
    """Base and post. Raises RunError for other than two."""
    if len(named) != 2:
        raise RunError(f"A comparison takes two checkpoints or a list of them, not {len(named)}.")
    return named[0], named[1]


def _require_none(given: Mapping[str, object], where: str) -> None:
    """Raise RunError for an option that is not read here."""
    for name, value in given.items():
        if value is not None:
            raise RunError(f"{name} is not read {where}; leave it out.")


def _require_read(given: Mapping[str, object], chosen: Sequence[str]) -> None:
    """Raise `RunError` for data that none of the chosen studies reads."""
    for name, data in given.items():
        readers = [study.name for study in ordered_studies(in_compare=True) if name in study.reads]
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
