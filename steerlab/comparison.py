"""A comparison of two checkpoints: which studies run, on what, into which folder, and how to take it up again.

Everything that can be wrong with the input is found before the folder is made. Studies run one after the
other, each seeded afresh, and are stored as they finish; so an interrupted run that is resumed ends with
the results of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from steerlab.environment import hardware, library_versions, peak_memory
from steerlab.errors import DatasetError, PromptError, RunError, SteerlabError
from steerlab.run_folder import Manifest, RunFolder

if TYPE_CHECKING:
    from steerlab.datasets import ChoiceQuestion, ContrastSet, StatementSet
    from steerlab.models import LanguageModel
    from steerlab.studies.result import StudyResult

Size = Literal["quick", "full"]
STUDIES = ("truthfulness", "refusal", "confidence", "branching", "knowledge")
PACKAGED = "packaged"
PACKAGED_FOR_ZOO = "packaged, the topics that the bundled models were trained on"


@dataclass(frozen=True)
class Data:
    """What the studies read: labelled statements, matched requests, open prompts and unrelated plain text.

    questions: multiple choice; None: made from the statements.
    """

    statements: StatementSet
    requests: ContrastSet
    open_prompts: Sequence[str]
    plain_text: Sequence[str]
    sources: dict[str, str]
    questions: Sequence[ChoiceQuestion] | None = None


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
        """The result of one study."""
        return self.results[study]


def compare(
    base: str | Path | LanguageModel,
    post: str | Path | LanguageModel,
    *,
    out: str | Path,
    studies: Sequence[str] = STUDIES,
    size: Size = "quick",
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

    `base` and `post` are hub names, local folders, `zoo:NAME` or loaded models; `statements` and `requests` are files
    or folders that take the place of the packaged sets (`datasets.read_statements` and `read_requests` say which;
    where both models are bundled ones, the packaged statements are those that they were trained to judge);
    `questions` is a file of multiple choice (`datasets.read_multiple_choice`) in place of what statements make;
    `announce` is told, in a sentence, what begins;
    `loading` goes to `steerlab.load`. Raises a `SteerlabError` for wrong input, before anything is written.
    `KeyboardInterrupt` passes through with the finished studies stored.
    """
    _require_known(studies, size)
    data = read_data(statements, requests, questions, bundled=all(map(_is_bundled, (base, post))))
    RunFolder(Path(out)).require_free(resume=resume, overwrite=overwrite)
    models = {"base": _loaded(base, loading, announce), "post": _loaded(post, loading, announce)}
    _require_readable(data, models.values())
    manifest = _manifest(models, data, studies, size, seed)
    folder = RunFolder.prepare(out, manifest, resume=resume, overwrite=overwrite)
    try:
        for name in studies:
            if folder.has_result(name):
                if _reads_back(folder, name):
                    announce(f"{name}: already finished, kept")
                    continue
                announce(f"{name}: the stored result is damaged, made again")
            announce(f"{name}: running")
            started = time.perf_counter()
            _store(folder, run_study(name, models["base"], models["post"], data, size=size, seed=seed))
            manifest.timings[name] = round(time.perf_counter() - started, 2)
            manifest.peak_memory[name] = peak_memory()
            folder.write_manifest(manifest)
        manifest.status = "done"
        return _finish(folder, manifest)
    except KeyboardInterrupt:
        manifest.status = "interrupted"
        folder.write_manifest(manifest)
        raise
    except SteerlabError:
        folder.discard_if_empty()
        raise


def run_study(
    name: str, base: LanguageModel, post: LanguageModel, data: Data, *, size: Size = "quick", seed: int = 0
) -> StudyResult:
    """One study on a loaded pair.

    A study that this pair cannot take gives a result that says so; anything unforeseen is raised.
    """
    import torch

    from steerlab import studies
    from steerlab.studies.result import StudyResult

    torch.manual_seed(seed)
    try:
        match name:
            case "knowledge":
                return studies.knowledge(base, post, data.statements, size=size, seed=seed)
            case "truthfulness":
                return studies.truthfulness(
                    base, post, data.statements, size=size, seed=seed, plain_text=data.plain_text
                )
            case "refusal":
                return studies.refusal(
                    base,
                    post,
                    data.requests,
                    size=size,
                    seed=seed,
                    plain_text=data.plain_text,
                    statements=data.statements,
                )
            case "confidence":
                return studies.confidence(
                    base,
                    post,
                    data.statements,
                    data.plain_text,
                    size=size,
                    seed=seed,
                    questions=data.questions,
                )
            case "branching":
                return studies.branching(base, post, data.open_prompts, size=size, seed=seed)
    except SteerlabError as error:
        return StudyResult(study=name, status="skipped", summary=[str(error)])
    raise RunError(f"There is no study {name!r}; choose from {', '.join(STUDIES)}.")


def rewrite_report(path: str | Path) -> Run:
    """Write the report of a stored run again, from its results alone."""
    folder = RunFolder.open(path)
    return _finish(folder, folder.manifest())


def store_study(
    result: StudyResult,
    out: str | Path,
    *,
    models: dict[str, LanguageModel],
    data: dict[str, dict[str, str | int]],
    configuration: dict[str, str | int | list[str]],
    seconds: float,
    overwrite: bool = False,
) -> Run:
    """A run folder with one finished study: manifest, result, directions and report.

    `data` gives for every set its size, hash and source. Raises `RunError` where the folder holds another run.
    """
    manifest = Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models={role: _model_facts(model) for role, model in models.items()},
        data=data,
        configuration={"studies": [result.study], **configuration},
        versions=library_versions(),
        hardware=hardware(),
        timings={result.study: round(seconds, 2)},
        peak_memory={result.study: peak_memory()},
    )
    folder = RunFolder.prepare(out, manifest, resume=False, overwrite=overwrite)
    _store(folder, result)
    manifest.status = "done"
    return _finish(folder, manifest)


def text_hash(texts: Sequence[str]) -> str:
    """A short hash of texts in order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def load_named(name: str | Path, **loading: Any) -> LanguageModel:
    """Load a hub name, a folder or `zoo:NAME`; a bundled model keeps that name, wherever the package lies.

    Raises `ModelError` as `steerlab.load` does, and for an unknown bundled model.
    """
    from steerlab import zoo
    from steerlab.models import load

    if not str(name).startswith("zoo:"):
        return load(name, **loading)
    return zoo.load(str(name).removeprefix("zoo:"), **loading)


def read_data(
    statements: str | Path | None = None,
    requests: str | Path | None = None,
    questions: str | Path | None = None,
    *,
    bundled: bool = False,
) -> Data:
    """The packaged prompts, or the user's files in their place; for `bundled` models statements of their topics only.

    Raises `DatasetError` for a bad file.
    """
    from steerlab import datasets, zoo

    packaged = zoo.statements if bundled else datasets.statements
    return Data(
        statements=datasets.read_statements(statements) if statements else packaged(),
        requests=datasets.read_requests(requests) if requests else datasets.requests(),
        open_prompts=datasets.open_prompts(),
        plain_text=datasets.plain_text(),
        sources={
            "statements": str(statements or (PACKAGED_FOR_ZOO if bundled else PACKAGED)),
            "requests": str(requests or PACKAGED),
            "open_prompts": PACKAGED,
            "plain_text": PACKAGED,
            **({"questions": str(questions)} if questions else {}),
        },
        questions=datasets.read_multiple_choice(questions) if questions else None,
    )


def _is_bundled(model: str | Path | LanguageModel) -> bool:
    return str(model if isinstance(model, str | Path) else model.name).startswith("zoo:")


def _require_known(studies: Sequence[str], size: str) -> None:
    if size not in get_args(Size):
        raise RunError(f"There is no size {size!r}; choose from {', '.join(get_args(Size))}.")
    unknown = [name for name in studies if name not in STUDIES]
    if unknown or not studies:
        raise RunError(
            f"There is no study {', '.join(unknown) or '(none named)'}; choose from {', '.join(STUDIES)}."
        )


def _loaded(
    model: str | Path | LanguageModel, loading: dict[str, Any], announce: Callable[[str], None]
) -> LanguageModel:
    from steerlab.models import LanguageModel

    if isinstance(model, LanguageModel):
        return model
    announce(f"loading {model}")
    return load_named(model, **loading)


def _require_readable(data: Data, models: Iterable[LanguageModel]) -> None:
    """Raise `DatasetError` for a prompt of the user's own files that one of the models cannot read."""
    requests = data.requests
    kinds: list[tuple[str, str, Sequence[str]]] = [
        ("statements", "statements", data.statements.texts),
        ("requests", f"{requests.positive_name} requests", requests.positive),
        ("requests", f"{requests.negative_name} requests", requests.negative),
    ]
    for (name, kind, texts), model in itertools.product(kinds, models):
        if data.sources[name] in {PACKAGED, PACKAGED_FOR_ZOO}:
            continue
        try:
            model.tokenize(
                [model.instruction_prompt(text) for text in texts] if name == "requests" else texts
            )
        except PromptError as error:
            raise DatasetError(
                f"The {kind} of {data.sources[name]}, counted from 0, cannot be given to {model.name}. {error}"
            ) from error


def _manifest(
    models: dict[str, LanguageModel], data: Data, studies: Sequence[str], size: Size, seed: int
) -> Manifest:
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models={role: _model_facts(model) for role, model in models.items()},
        data=_data_facts(data),
        configuration={"studies": list(studies), "size": size, "seed": seed},
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


def _data_facts(data: Data) -> dict[str, dict[str, str | int]]:
    from steerlab.datasets.multiple_choice import questions_hash

    requests = data.requests
    sets: dict[str, tuple[int, str, str]] = {
        "statements": (len(data.statements), data.statements.hash, data.statements.texts[0]),
        # The example is a harmless one: harmful requests are read, never shown.
        "requests": (len(requests.positive) + len(requests.negative), requests.hash, requests.negative[0]),
        "open_prompts": (len(data.open_prompts), text_hash(data.open_prompts), data.open_prompts[0]),
        "plain_text": (len(data.plain_text), text_hash(data.plain_text), data.plain_text[0]),
    }
    if data.questions:
        sets["questions"] = (len(data.questions), questions_hash(data.questions), data.questions[0].text)
    return {
        name: {"n": n, "hash": hash_, "source": data.sources[name], "example": example}
        for name, (n, hash_, example) in sets.items()
    }


def _store(folder: RunFolder, result: StudyResult) -> None:
    for name, direction in result.artefacts().items():
        folder.write_with(f"directions/{name}.safetensors", direction.save)
    folder.write_result(result.study, result.to_dict())


def _reads_back(folder: RunFolder, study: str) -> bool:
    from steerlab.studies.result import result_from_dict

    try:
        result_from_dict(folder.read_result(study))
    except RunError:
        return False
    return True


def _finish(folder: RunFolder, manifest: Manifest) -> Run:
    from steerlab.report import write_report
    from steerlab.studies.result import result_from_dict

    order = [name for name in dict.fromkeys([*STUDIES, *folder.studies()]) if folder.has_result(name)]
    results = {name: result_from_dict(folder.read_result(name)) for name in order}
    folder.write_manifest(manifest)
    folder.write_with(
        "report.html", lambda path: write_report(list(results.values()), manifest.model_dump(), path)
    )
    return Run(folder, manifest, results)
