"""A comparison of two checkpoints: which studies run, on what, into which folder, and how to take it up again.

Everything that can be wrong with the input is found before the folder is made. Studies run one after the
other, each seeded afresh, and are stored as they finish; so an interrupted run that is resumed ends with
the results of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steerlab.environment import hardware, library_versions, peak_memory
from steerlab.errors import DatasetError, PromptError, RunError, SteerlabError
from steerlab.results import STUDIES, StudyResult, ordered_studies, result_from_dict
from steerlab.run_folder import Manifest, RunFolder
from steerlab.showing import html_table

if TYPE_CHECKING:
    from steerlab.datasets import StudyData
    from steerlab.models import LanguageModel
    from steerlab.studies import Pair

Size = Literal["quick", "full"]
Preset = Literal["corrected", "published"]
Facts = dict[str, str | int]
PACKAGED_FOR_ZOO = "packaged, the topics that the bundled models were trained on"


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
    statements: str | Path | None = None,
    requests: str | Path | None = None,
    questions: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    **loading: Any,
) -> Run:
    """Compare a base model with the model post-trained from it and write `out`/report.html.

    Args:
        base: a hub name, a local folder, `zoo:NAME` or a loaded model; likewise `post`.
        out: the run folder.
        studies: names from the registry; None runs all that take a pair.
        size: "quick" or "full".
        preset: "corrected" or "published"; a study without a published preset is skipped and says so.
        statements: a file or folder in place of the packaged set (`datasets.read_statements`); where both models are
            bundled ones, the packaged statements are those that they were trained to judge.
        requests: likewise (`datasets.read_requests`).
        questions: a file of multiple choice (`datasets.read_multiple_choice`) in place of what statements make.
        seed: of every draw.
        resume: go on with the run in `out`.
        overwrite: replace the run in `out`.
        announce: is told, in a sentence, what begins.
        loading: goes to `steerlab.load`.

    Raises:
        SteerlabError: wrong input, before anything is written.
        KeyboardInterrupt: passes through with the finished studies stored.
    """
    from steerlab.studies import Pair

    chosen = known_studies(studies)
    _require("size", size, ("quick", "full"))
    _require("preset", preset, ("corrected", "published"))
    data = read_data(statements, requests, questions, bundled=all(map(_is_bundled, (base, post))))
    RunFolder(Path(out)).require_free(resume=resume, overwrite=overwrite)
    pair = Pair(_loaded(base, loading, announce), _loaded(post, loading, announce))
    _require_readable(data, pair)
    configuration: dict[str, str | int | list[str]] = {
        "studies": chosen,
        "size": size,
        "preset": preset,
        "seed": seed,
    }
    manifest = _manifest(pair.by_name, data_facts(data), configuration)
    folder = RunFolder.prepare(out, manifest, resume=resume, overwrite=overwrite)
    try:
        for name in chosen:
            if _finished(folder, name, announce):
                continue
            announce(f"{name}: running")
            started = time.perf_counter()
            result = run_study(name, pair, data, size=size, preset=preset, seed=seed)
            _store(folder, manifest, result, time.perf_counter() - started)
        return _finish(folder, manifest)
    except KeyboardInterrupt:
        manifest.status = "interrupted"
        folder.write_manifest(manifest)
        raise
    except SteerlabError:
        folder.discard_if_empty()
        raise


def run_study(
    name: str,
    pair: Pair,
    data: StudyData,
    *,
    size: Size = "quick",
    preset: Preset = "corrected",
    seed: int = 0,
) -> StudyResult:
    """One registered study on a loaded pair.

    A study that this pair cannot take gives a result that says so; anything unforeseen is raised.
    """
    import torch

    study = STUDIES[name].load()
    torch.manual_seed(seed)
    try:
        result: StudyResult = study(pair, data, size=size, preset=preset, seed=seed)
        return result
    except SteerlabError as error:
        return StudyResult(study=name, status="skipped", summary=[str(error)])


def run_alone(
    study: Callable[[dict[str, LanguageModel]], StudyResult],
    models: Mapping[str, str | Path | LanguageModel],
    *,
    out: str | Path,
    data: dict[str, Facts],
    configuration: dict[str, str | int | list[str]],
    overwrite: bool = False,
    load: Callable[[str | Path], LanguageModel] | None = None,
) -> Run:
    """Load models, run one study on them, and store it in a run folder of its own.

    Args:
        study: the study, given the loaded models by their roles.
        models: names or loaded models by role; a name that has two roles is loaded once.
        data: size, hash, source and an example of every set, by name (`text_facts`).
        configuration: what the study was asked for.
        load: loads a name; `steerlab.load` by default.

    Raises:
        RunError: `out` holds another run, or cannot be written.
    """
    from steerlab.opening import load as load_any

    RunFolder(Path(out)).require_free(resume=False, overwrite=overwrite)
    loaded: dict[str, LanguageModel] = {}
    for model in models.values():
        if isinstance(model, str | Path) and str(model) not in loaded:
            loaded[str(model)] = (load or load_any)(model)
    roles = {
        role: loaded[str(model)] if isinstance(model, str | Path) else model for role, model in models.items()
    }
    started = time.perf_counter()
    result = study(roles)
    manifest = _manifest(roles, data, {"studies": [result.study], **configuration})
    folder = RunFolder.prepare(out, manifest, resume=False, overwrite=overwrite)
    _store(folder, manifest, result, time.perf_counter() - started)
    return _finish(folder, manifest)


def rewrite_report(path: str | Path) -> Run:
    """Write the report of a stored run again, from its results alone."""
    folder = RunFolder.open(path)
    return _finish(folder, folder.manifest())


def known_studies(names: Sequence[str] | None) -> list[str]:
    """The named studies, or all that take a pair. Raises RunError for a name that `compare` cannot run."""
    able = [study.name for study in ordered_studies(in_compare=True)]
    chosen = able if names is None else [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise RunError(f"No study is named; choose from {', '.join(able)}.")
    for name in chosen:
        if not STUDIES[name].in_compare:
            raise RunError(
                f"The study {name!r} does not take a base and a post-trained model; choose from {', '.join(able)}."
            )
    return chosen


def text_facts(texts: Sequence[str], source: str, *, n: int | None = None, example: int = 0) -> Facts:
    """What a manifest says of texts: their number (or `n`), hash in order, source and one of them."""
    hash_ = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    return {"n": len(texts) if n is None else n, "hash": hash_, "source": source, "example": texts[example]}


def data_facts(data: StudyData) -> dict[str, Facts]:
    """What a manifest says of everything that studies read."""
    from steerlab.datasets.multiple_choice import questions_hash

    requests, statements = data.requests, data.labelled_statements
    facts = {
        "statements": {**text_facts(statements.texts, data.source("statements")), "hash": statements.hash},
        # The example is a harmless one: harmful requests are read, never shown.
        "requests": {
            **text_facts([*requests.negative, *requests.positive], data.source("requests")),
            "hash": requests.hash,
        },
        "open_prompts": text_facts(data.open_prompts, data.source("open_prompts")),
        "plain_text": text_facts(data.plain_text, data.source("plain_text")),
    }
    if data.questions:
        asked = text_facts([question.text for question in data.questions], data.source("questions"))
        facts["questions"] = {**asked, "hash": questions_hash(data.questions)}
    return facts


def read_data(
    statements: str | Path | None = None,
    requests: str | Path | None = None,
    questions: str | Path | None = None,
    *,
    bundled: bool = False,
) -> StudyData:
    """The packaged prompts, or the user's files in their place; for `bundled` models statements of their topics only.

    Raises `DatasetError` for a bad file.
    """
    from steerlab import datasets, zoo

    packaged = zoo.known_statements if bundled else datasets.statements
    return datasets.StudyData(
        statements=datasets.read_statements(statements) if statements else packaged(),
        requests=datasets.read_requests(requests) if requests else datasets.requests(),
        questions=datasets.read_multiple_choice(questions) if questions else None,
        sources={
            **({"statements": str(statements or PACKAGED_FOR_ZOO)} if statements or bundled else {}),
            **({"requests": str(requests)} if requests else {}),
            **({"questions": str(questions)} if questions else {}),
        },
    )


def _is_bundled(model: str | Path | LanguageModel) -> bool:
    return str(model if isinstance(model, str | Path) else model.name).startswith("zoo:")


def _require(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise RunError(f"There is no {what} {given!r}; choose from {', '.join(known)}.")


def _loaded(
    model: str | Path | LanguageModel, loading: dict[str, Any], announce: Callable[[str], None]
) -> LanguageModel:
    from steerlab.models import LanguageModel

    if isinstance(model, LanguageModel):
        return model
    from steerlab.opening import load

    announce(f"loading {model}")
    return load(model, **loading)


def _require_readable(data: StudyData, models: Iterable[LanguageModel]) -> None:
    """Raise `DatasetError` for a prompt of the user's own files that one of the models cannot read."""
    from steerlab.datasets.study_data import PACKAGED

    requests = data.requests
    kinds: list[tuple[str, str, Sequence[str]]] = [
        ("statements", "statements", data.labelled_statements.texts),
        ("requests", f"{requests.positive_name} requests", requests.positive),
        ("requests", f"{requests.negative_name} requests", requests.negative),
    ]
    for (name, kind, texts), model in itertools.product(kinds, models):
        if data.source(name) in {PACKAGED, PACKAGED_FOR_ZOO}:
            continue
        try:
            model.tokenize(
                [model.instruction_prompt(text) for text in texts] if name == "requests" else texts
            )
        except PromptError as error:
            raise DatasetError(
                f"The {kind} of {data.source(name)}, counted from 0, cannot be given to {model.name}. {error}"
            ) from error


def _manifest(
    models: Mapping[str, LanguageModel],
    data: dict[str, Facts],
    configuration: dict[str, str | int | list[str]],
) -> Manifest:
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models={role: _model_facts(model) for role, model in models.items()},
        data=data,
        configuration=configuration,
        versions=library_versions(),
        hardware=hardware(),
    )


def _model_facts(model: LanguageModel) -> dict[str, str | int | float | bool | None]:
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "architecture": model.architecture,
        "layers": model.n_layers,
        "width": model.d_model,
        "vocabulary": model.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "chat template": model.has_chat_template,
    }


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


def _store(folder: RunFolder, manifest: Manifest, result: StudyResult, seconds: float) -> None:
    for name, direction in result.artefacts().items():
        folder.write_with(f"directions/{name}.safetensors", direction.save)
    folder.write_result(result.study, result.to_dict())
    manifest.timings[result.study] = round(seconds, 2)
    manifest.peak_memory[result.study] = peak_memory()
    folder.write_manifest(manifest)


def _finish(folder: RunFolder, manifest: Manifest) -> Run:
    """Write manifest and report of what is stored, studies in the registry's order."""
    from steerlab.report import write_report

    known = [study.name for study in ordered_studies()]
    order = [name for name in dict.fromkeys([*known, *folder.studies()]) if folder.has_result(name)]
    results = {name: result_from_dict(folder.read_result(name)) for name in order}
    manifest.status = "done"
    folder.write_manifest(manifest)
    folder.write_with(
        "report.html", lambda path: write_report(list(results.values()), manifest.model_dump(), path)
    )
    return Run(folder, manifest, results)
