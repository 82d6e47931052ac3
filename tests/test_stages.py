"""A run of stages: names and patterns, one model at a time, stored, interrupted, resumed, reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import build, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from smaller import use_smaller_amounts

import steerlab as sl
from steerlab import opening, runs, stages
from steerlab.comparison import compare
from steerlab.errors import ModelError, RunError, SteerlabError
from steerlab.stages import labelled, require_distinct

FEW: dict[str, Any] = {
    "studies": ["confidence", "branching"],
    "controls": ["past", "animal", "city", "formal", "happy"],
}


@pytest.fixture(scope="module", autouse=True)
def _smaller() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_smaller_amounts(patch)
        yield


def saved(folder: Path, **changes: Any) -> Path:
    build("llama", **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint-9, -10 and -100, and an adapter on the first."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, step in enumerate((9, 10, 100)):
        saved(folder / f"checkpoint-{step}", seed=seed)
    tuned = get_peft_model(
        build("llama"), LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return compare([f"{trained}/checkpoint-*"], out=tmp_path_factory.mktemp("runs") / "whole", **FEW)


def test_a_pattern_is_the_folders_by_their_numbers(whole: runs.Run) -> None:
    result = whole["stages"]
    assert result.labels == ("checkpoint-9", "checkpoint-10", "checkpoint-100")  # type: ignore[attr-defined]
    assert whole.manifest.status == "done"
    assert list(whole.manifest.models) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert {"stage checkpoint-9", "stage checkpoint-10", "stage checkpoint-100", "stages"} <= set(
        whole.manifest.timings
    )


def test_the_report_holds_every_stage(whole: runs.Run) -> None:
    page = whole.report.read_text("utf-8")
    assert "checkpoint-9 → checkpoint-10" in page
    assert runs.rewrite_report(whole.folder.path)["stages"] == whole["stages"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    trained: Path, whole: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loads = opening.load, []

    def load(name: Any, *rest: Any, **options: Any) -> Any:
        loads.append(Path(name).name)
        if len(loads) == 2:
            raise KeyboardInterrupt
        return real(name, *rest, **options)

    monkeypatch.setattr(opening, "load", load)
    with pytest.raises(KeyboardInterrupt):
        compare([f"{trained}/checkpoint-*"], out=tmp_path / "run", **FEW)
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "interrupted"
    said: list[str] = []
    again = compare(
        [f"{trained}/checkpoint-*"], out=tmp_path / "run", resume=True, announce=said.append, **FEW
    )
    assert "checkpoint-9: already measured, kept" in said
    stored = [run.folder.path / "results/stages.json" for run in (again, whole)]
    assert stored[0].read_bytes() == stored[1].read_bytes()


def test_a_stage_with_other_weights_is_not_resumed(trained: Path, whole: runs.Run, tmp_path: Path) -> None:
    shutil.copytree(whole.folder.path, tmp_path / "run")
    shutil.copytree(trained, tmp_path / "trained")
    saved(tmp_path / "trained/checkpoint-10", seed=7)
    with pytest.raises(RunError, match="checkpoint-10 has other weights than when"):
        compare([f"{tmp_path}/trained/checkpoint-*"], out=tmp_path / "run", resume=True, **FEW)


def test_adapters_are_put_on_the_model_before_them(trained: Path, tmp_path: Path) -> None:
    run = compare(
        [trained / "checkpoint-9", trained / "adapter", trained / "checkpoint-10"],
        labels=["base", "sft", "other"],
        out=tmp_path / "run",
        **FEW,
    )
    assert list(run.manifest.models) == ["base", "sft", "other"]
    prints = [facts["fingerprint"] for facts in run.manifest.models.values()]
    assert len(set(prints)) == 3


def test_at_most_two_models_are_in_memory(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    real, alive, most = opening.load, weakref.WeakSet(), []

    def load(*given: Any, **options: Any) -> Any:
        model = real(*given, **options)
        alive.add(model)
        gc.collect()
        most.append(len(alive))
        return model

    monkeypatch.setattr(opening, "load", load)
    order = [trained / name for name in ("checkpoint-9", "adapter", "checkpoint-10", "checkpoint-100")]
    for model in stages.loaded(order, list("abcd"), {}, lambda line: None):
        del model
    assert len(most) == 4
    assert max(most) <= 2


def test_a_list_of_two_is_a_pair_to_the_byte(trained: Path, tmp_path: Path) -> None:
    pair = [trained / "checkpoint-9", trained / "checkpoint-10"]
    one = compare(*pair, out=tmp_path / "one", studies=["confidence"])
    two = compare(pair, out=tmp_path / "two", studies=["confidence"])
    assert set(one.results) == set(two.results) == {"confidence"}
    files = [run.folder.path / "results/confidence.json" for run in (one, two)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_labels_are_as_long_as_it_takes() -> None:
    assert labelled(["a/base", "b/sft"], None) == ["base", "sft"]
    assert labelled(["a/last", "b/last"], None) == ["a/last", "b/last"]
    assert labelled(["org/model@step1", "org/model@step2"], None) == ["model@step1", "model@step2"]
    assert labelled(["x", "y"], ["one", "two"]) == ["one", "two"]


def test_revisions_are_of_the_hub() -> None:
    assert opening.name_and_revision("org/model@step-10") == ("org/model", "step-10")
    assert opening.name_and_revision("zoo:small-base") == ("zoo:small-base", None)


def test_a_pair_takes_revisions_too(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: Any, **options: Any) -> Any:
        asked.append((name, options.get("revision")))
        return real(trained / "checkpoint-9")

    real = opening.load
    monkeypatch.setattr(opening, "load", load)
    monkeypatch.setattr("steerlab.models.is_adapter", lambda *given: False)
    opening.load_pair("org/m@one", "org/m@two", {}, lambda line: None)
    assert asked == [("org/m", "one"), ("org/m", "two")]


def test_a_folder_has_no_revision(trained: Path) -> None:
    with pytest.raises(ModelError, match="only names on the hub have revisions"):
        opening.name_and_revision(f"{trained}/checkpoint-9@two")


def test_a_pattern_alone_or_beside_another_is_all_of_its_folders(trained: Path, tmp_path: Path) -> None:
    run = compare(f"{trained}/checkpoint-*", out=tmp_path / "run", **FEW)
    assert len(run.manifest.models) == 3
    run = compare(trained / "checkpoint-9", f"{trained}/checkpoint-1*", out=tmp_path / "more", **FEW)
    assert list(run.manifest.models) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_stages_that_a_shell_sorted_are_told(trained: Path) -> None:
    assert "not the order of their numbers" in stages._disorder(
        ["checkpoint-10", "checkpoint-100", "checkpoint-9"]
    )
    assert stages._disorder(["checkpoint-9", "checkpoint-10"]) == ""
    assert stages._disorder(["sft", "base"]) == ""


def test_what_cannot_be_loaded_replaces_no_run(trained: Path, whole: runs.Run, tmp_path: Path) -> None:
    shutil.copytree(whole.folder.path, tmp_path / "run")
    broken = tmp_path / "broken"
    shutil.copytree(trained / "checkpoint-9", broken)
    (broken / "config.json").write_text("{")
    order = [broken, trained / "checkpoint-10", trained / "checkpoint-100"]
    with pytest.raises(SteerlabError):
        compare(order, out=tmp_path / "run", overwrite=True, **FEW)
    assert (tmp_path / "run/results/stages.json").is_file()


def test_a_resumed_run_that_is_refused_keeps_what_was_read(
    trained: Path, whole: runs.Run, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder.path, tmp_path / "run")
    (tmp_path / "run/results/stages.json").unlink()
    with pytest.raises(RunError, match="checkpoint-9 has other weights and another dtype than when"):
        compare([f"{trained}/checkpoint-*"], out=tmp_path / "run", resume=True, dtype="bfloat16", **FEW)
    assert len(list((tmp_path / "run/readings").glob("*.json"))) == 3


def test_random_models_are_strangers(whole: runs.Run) -> None:
    assert any("checkpoint-9 and checkpoint-10 do not correlate" in said for said in whole["stages"].summary)


@pytest.mark.parametrize(
    ("checkpoints", "options", "said"),
    [
        (["zoo:small-base"], {}, "at least two, not 1"),
        ([], {}, "at least two, not 0"),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"labels": ["a", "unit", "c"]},
            "called 'unit'",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"studies": ["branching"], "requests": "r.csv"},
            "requests are read by refusal only",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:small-base"],
            {},
            "stages 1 and 3 are both zoo:small-base",
        ),
        (["zoo:small-base", "zoo:small-post", "zoo:nowhere"], {}, "nowhere"),
        (["zoo:small-base", "zoo:small-post", "/nowhere/at/all"], {}, "There is no folder"),
        (
            ["/nowhere/checkpoint-*", "zoo:small-post", "zoo:large-post"],
            {},
            "No folder is called /nowhere/checkpoint-",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"labels": ["a", "b"]},
            "3 stages came with 2 labels",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"labels": list("aba")},
            "Two stages are called 'a'",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"preset": "published"},
            "no preset 'published'",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"answers": ("a", "b")},
            "answers is not read with",
        ),
        (
            ["zoo:small-base", "zoo:small-post"],
            {"labels": ["a", "b"]},
            "labels is not read with two checkpoints",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"studies": ["transfer"]},
            "of one model by itself",
        ),
        (
            ["zoo:small-base", "zoo:small-post", "zoo:large-post"],
            {"controls": ["nothing"]},
            "no contrast 'nothing'",
        ),
    ],
)
def test_bad_input_is_a_sentence_and_writes_nothing(
    checkpoints: list[str], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SteerlabError, match=said):
        compare(checkpoints, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_weights_is_a_sentence(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        compare(
            [trained / "checkpoint-9", trained / "checkpoint-10", tmp_path / "empty"],
            out=tmp_path / "run",
            **FEW,
        )


def test_a_live_model_is_a_stage(trained: Path, tmp_path: Path) -> None:
    live = sl.load(trained / "checkpoint-9")
    given = [live, trained / "checkpoint-10", trained / "checkpoint-100"]
    run = compare(given, labels=["live", "ten", "hundred"], out=tmp_path / "run", **FEW)
    assert list(run.manifest.models) == ["live", "ten", "hundred"]
    with pytest.raises(RunError, match="stages 1 and 2 are both"):
        require_distinct([live, live])
