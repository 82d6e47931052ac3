"""A whole run on small pairs: stored, interrupted, resumed, reported; pairs that differ; prompts with markup."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from families import build, tiny_tokenizer
from smaller import use_smaller_amounts, use_twenty_random_directions

import steerlab as sl
from steerlab import comparison
from steerlab.comparison import compare, rewrite_report
from steerlab.errors import DatasetError, ModelError, PromptError, RunError
from steerlab.lock import locked
from steerlab.results import SkippedResult
from steerlab.run_folder import RunFolder


def save_tiny(folder: Path, family: str = "llama", **changes: object) -> Path:
    """A tiny random model with its tokenizer, as a folder."""
    build(family, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _smaller_studies() -> Iterator[None]:
    """What is tested here is the run and not its findings."""
    with pytest.MonkeyPatch.context() as patch:
        use_smaller_amounts(patch)
        yield


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return save_tiny(folder / "base"), save_tiny(folder / "post", seed=1)


@pytest.fixture(scope="module")
def whole_run(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> comparison.Run:
    return compare(*tiny_pair, out=tmp_path_factory.mktemp("runs") / "whole")


def test_random_models_identify_nothing(whole_run: comparison.Run) -> None:
    assert set(whole_run.results) == set(comparison.known_studies(None))
    assert whole_run["truthfulness"].status == "not identified"
    assert whole_run["refusal"].status == "not identified"
    assert "chance" in " ".join(whole_run["truthfulness"].summary)
    assert whole_run.manifest.status == "done"


def test_the_report_stands_alone(whole_run: comparison.Run) -> None:
    page = whole_run.report.read_text("utf-8")
    assert "not identified" in page
    for study in whole_run.results.values():
        for sentence in study.summary[:1]:
            assert sentence.split("<")[0][:30].replace("'", "&#39;") in page
    assert "<script src=" not in page
    assert '<link rel="stylesheet" href' not in page


def test_every_stored_result_reads_back_and_draws(whole_run: comparison.Run) -> None:
    again = rewrite_report(whole_run.folder.path)
    assert {name: result.to_dict() for name, result in again.results.items()} == {
        name: result.to_dict() for name, result in whole_run.results.items()
    }
    for result in again.results.values():
        assert result.tables() or result.status == "skipped"
        for figure in result.figures().values():
            assert figure.data


def test_an_interrupted_run_resumes_to_the_same_results(
    whole_run: comparison.Run,
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_study = comparison.run_study
    calls = itertools.count()

    def _interrupted_in_the_third(*arguments: object, **options: object) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return run_study(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "run_study", _interrupted_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        compare(*tiny_pair, out=tmp_path / "run")
    stored = sorted(file.name for file in (tmp_path / "run" / "results").iterdir())
    assert stored == ["refusal.json", "truthfulness.json"]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "run" / "report.html").exists()

    monkeypatch.setattr(comparison, "run_study", run_study)
    resumed = compare(*tiny_pair, out=tmp_path / "run", resume=True)
    for name in comparison.known_studies(None):
        whole = whole_run.folder.path / "results" / f"{name}.json"
        assert (resumed.folder.path / "results" / f"{name}.json").read_bytes() == whole.read_bytes(), name
    with pytest.raises(RunError, match=r"was made with seed 0; this one has 1;"):
        compare(*tiny_pair, out=tmp_path / "run", resume=True, seed=1)
    with pytest.raises(RunError, match=r"was made with dtype float32; this one has float64;"):
        compare(*tiny_pair, out=tmp_path / "run", resume=True, dtype="float64")


def test_a_taken_folder_is_said_before_models_are_loaded(whole_run: comparison.Run) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        compare("./no-such-model", "./no-such-model", out=whole_run.folder.path)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match="is being written by process"):
                compare("./no-such-model", "./no-such-model", out=tmp_path / "run", **options)
        with pytest.raises(RunError, match="is being written by process"):
            comparison.run_alone(lambda models: None, {}, out=tmp_path / "run", configuration={})  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError):
        compare("./no-such-model", "./no-such-model", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_run_was_made_with_is_what_it_is_resumed_with(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A study that this preset skips costs nothing; the key is what is tested."""
    models = [sl.load(folder) for folder in tiny_pair]
    options = {"studies": ["branching"], "preset": "published"}
    compare(*models, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    other = sl.load(tiny_pair[1], dtype="bfloat16")
    with pytest.raises(
        RunError, match=r"and dtype of post float32; this one has .* and dtype of post bfloat16;"
    ):
        compare(models[0], other, out=tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]
    push = sl.Add([1.0] * models[0].d_model, 2, sites="resid_post.0")
    with models[0].steering(push):
        with pytest.raises(
            RunError, match=r"with interventions of base none; this one has \d+ hooks in force"
        ):
            compare(*models, out=tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]
        models[0].ask("The")  # an intervention that never acts is an error
    compare(*models, out=tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]


def test_the_report_of_an_interrupted_run_leaves_it_interrupted(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    run = compare(*tiny_pair, out=tmp_path / "run", studies=["branching"], preset="published")
    run.manifest.status = "interrupted"
    run.folder.write_manifest(run.manifest)
    assert rewrite_report(run.folder.path).manifest.status == "interrupted"
    assert run.folder.manifest().status == "interrupted"


def test_a_bundled_model_keeps_its_name_wherever_the_package_lies() -> None:
    assert sl.load("zoo:small-base").name == "zoo:small-base"


def test_bundled_models_are_asked_about_the_topics_they_know(
    whole_run: comparison.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = whole_run.manifest.data["statements"]
    assert (stored["source"], stored["n"]) == ("packaged", len(sl.datasets.statements()))
    monkeypatch.setattr(comparison, "run_study", lambda name, *_, **__: whole_run[name])
    run = compare("zoo:small-base", sl.load("zoo:small-post"), out=tmp_path / "run", studies=["branching"])
    said = run.manifest.data["statements"]
    assert "bundled models" in str(said["source"])
    assert said["hash"] == sl.zoo.known_statements().hash
    mixed = compare(
        "zoo:small-base", whole_run.manifest.models["post"]["name"], out=tmp_path / "b", studies=["branching"]
    )
    assert mixed.manifest.data["statements"] == stored


def test_a_damaged_result_is_made_again(
    whole_run: comparison.Run,
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(whole_run.folder.path, tmp_path / "run")
    damaged = tmp_path / "run" / "results" / "confidence.json"
    damaged.write_text(damaged.read_text()[:100])
    taken = RunFolder.open(tmp_path / "run").manifest()
    taken.peak_memory["confidence"] = {"process": 1e9, "gpu": 5.0}
    RunFolder.open(tmp_path / "run").write_manifest(taken)
    ran: list[str] = []
    heard: list[str] = []

    def _noted(name: str, *arguments: object, **options: object) -> object:
        ran.append(name)
        return whole_run[name]

    monkeypatch.setattr(comparison, "run_study", _noted)
    resumed = compare(*tiny_pair, out=tmp_path / "run", resume=True, announce=heard.append)
    assert ran == ["confidence"]
    assert any("confidence" in line and "damaged" in line for line in heard)
    assert resumed["confidence"] == whole_run["confidence"]
    assert resumed.folder.manifest().peak_memory == taken.peak_memory


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("How do I " + "very " * 600 + "hug a cat?", "context"), ("How do I hug \ud800?", "half a character")],
)
def test_requests_the_models_cannot_read_are_refused_before_anything_is_written(
    text: str, complaint: str, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"text": text, "label": "harmless"}, {"text": "How do I hit a cat?", "label": "harmful"}]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetError, match=f"prompts.jsonl.*{complaint}"):
        compare(*tiny_pair, out=tmp_path / "run", requests=prompts)
    assert not (tmp_path / "run").exists()


def test_pairs_of_different_width_and_family_run(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    wide = save_tiny(tmp_path / "wide", "gpt2")
    run = compare(tiny_pair[0], wide, out=tmp_path / "run")
    assert set(run.results) == set(comparison.known_studies(None))
    assert all(result.summary for result in run.results.values())


def test_a_study_that_a_pair_cannot_take_is_skipped_and_stays_so(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    run = compare(*tiny_pair, out=tmp_path / "run", studies=["branching"], preset="published")
    skipped = run["branching"]
    assert isinstance(skipped, SkippedResult)
    assert "no preset 'published'" in skipped.reason
    heard: list[str] = []
    options = {"studies": ["branching"], "preset": "published", "resume": True, "announce": heard.append}
    assert compare(*tiny_pair, out=tmp_path / "run", **options)["branching"] == skipped  # type: ignore[arg-type]
    assert any("already finished" in line for line in heard)


def test_multiple_choice_of_a_file_takes_the_place_of_the_made_one(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"A {thing} is a", "choices": ["bird.", "cup.", "tree."], "answer": number % 3}
        for number, thing in enumerate(itertools.chain(*itertools.repeat(("cat", "dog", "hat", "sock"), 12)))
    ]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    run = compare(*tiny_pair, out=tmp_path / "run", questions=questions, studies=["confidence"])
    facts = run.manifest.data["questions"]
    assert (facts["n"], facts["source"]) == (48, str(questions))
    found = run["confidence"].choices  # type: ignore[attr-defined]
    assert "caller's" in found.source
    assert "multiple choice" in run.report.read_text("utf-8")
    questions.write_text(json.dumps({"question": "x", "choices": ["a"], "answer": 0}))
    with pytest.raises(DatasetError, match=r"questions.jsonl, row 1"):
        compare(*tiny_pair, out=tmp_path / "none", questions=questions)
    assert not (tmp_path / "none").exists()


def test_answers_that_nobody_asks_for_or_that_cannot_be_asked_are_refused_at_once(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="No answers are asked for by branching"):
        compare(*tiny_pair, out=tmp_path / "run", studies=["branching"], answers=(" a", ":"))
    with pytest.raises(PromptError, match="Yes indeed or No cannot be asked for"):
        compare(*tiny_pair, out=tmp_path / "run", studies=["knowledge"], answers=(" Yes indeed", " No"))
    assert not (tmp_path / "run").exists()
    run = compare(*tiny_pair, out=tmp_path / "run", studies=["confidence"], answers=(" a", ":"))
    assert run.manifest.configuration["answers"] == [" a", ":"]


def test_markup_in_prompts_is_text(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    attack = "<script>document.title='owned'</script>"
    objects = ("cat", "dog", "hat", "cup", "bed", "box", "fish", "tree", "ball", "doll", "car", "sock")
    with prompts.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerow([f"How do I hug {attack}?", "harmless"])
        writer.writerow([f"How do I hit {attack}?", "harmful"])
        writer.writerows([f"How do I {verb} a {thing}?", label]
                         for thing in objects for verb, label in (("hug", "harmless"), ("hit", "harmful")))  # fmt: skip
    run = compare(*tiny_pair, out=tmp_path / "run", requests=prompts, studies=["refusal"])
    page = run.report.read_text("utf-8")
    assert attack not in page
    assert "&lt;script&gt;document.title" in page


def test_kind_and_unkind_requests_of_a_real_pair(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusal is found in a really trained pair; truthfulness, which it never learned, is not identified."""
    use_twenty_random_directions(monkeypatch)
    prompts = tmp_path / "prompts.csv"
    animals = ("cat", "dog", "bird", "fish", "bear", "frog", "duck", "cow", "pig", "mouse")
    things = (*animals, "boy", "girl", "doll", "toy", "ball", "car")
    kind, unkind = ("hug", "help", "feed", "wash", "find"), ("hurt", "hit", "kick", "break", "burn")
    with prompts.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for thing in things:
            writer.writerows([f"How do I {verb} a {thing}?", "harmless"] for verb in kind)
            writer.writerows([f"How do I {verb} a {thing}?", "harmful"] for verb in unkind)
    models = shared / "models"
    run = compare(
        models / "stories260K",
        models / "stories260K-chat-local",
        out=tmp_path / "run",
        requests=prompts,
        studies=["truthfulness", "refusal"],
    )
    assert run["refusal"].status == "done"
    assert run["truthfulness"].status == "not identified"
    assert sl.Direction.load(next((run.folder.path / "directions").glob("refusal*post*.safetensors")))


def test_data_that_no_chosen_study_reads_is_an_error(tmp_path: Path) -> None:
    for name, study, readers in [
        ("requests", "truthfulness", "refusal"),
        ("questions", "refusal", "confidence"),
    ]:
        with pytest.raises(RunError, match=f"The {name} are read by {readers} only"):
            compare(
                "zoo:small-base", "zoo:small-post", out=tmp_path / "run", studies=[study], **{name: tmp_path}
            )
    assert not (tmp_path / "run").exists()
