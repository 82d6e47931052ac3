"""A run's files: prepared, resumed, replaced, refused; never half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from steerlab.errors import RunError
from steerlab.lock import locked
from steerlab.run_folder import Manifest, RunFolder


def manifest(seed: int = 0) -> Manifest:
    return Manifest(
        created="2026-01-01T00:00:00+00:00",
        models={
            role: {
                "name": role,
                "fingerprint": f"{role}-1",
                "dtype": "float32",
                "device": "cuda:0",
                "interventions": "none",
            }
            for role in ("base", "post")
        },
        data={"statements": {"n": 2, "hash": "abc", "source": "packaged"}},
        configuration={"studies": ["refusal"], "size": "quick", "seed": seed},
        versions={"python": "3.11", "steerlab": "0.1.0", "steerlab code": "c0de"},
        hardware={"cores": 2},
    )


def test_a_stored_run_reads_back(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "deep" / "run", manifest())
    folder.write_result("refusal", {"study": "refusal", "value": 0.5})
    again = RunFolder.open(tmp_path / "deep" / "run")
    assert again.manifest() == manifest()
    assert again.read_result("refusal") == {"study": "refusal", "value": 0.5}
    assert again.studies() == ["refusal"]


def test_an_earlier_run_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    RunFolder.prepare(tmp_path / "run", manifest()).write_result("refusal", {})
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder.prepare(tmp_path / "run", manifest())
    assert RunFolder.prepare(tmp_path / "run", manifest(), resume=True).has_result("refusal")
    assert not RunFolder.prepare(tmp_path / "run", manifest(), overwrite=True).has_result("refusal")


def test_a_resumed_run_keeps_what_its_finished_studies_took(tmp_path: Path) -> None:
    first = manifest()
    first.timings["refusal"], first.peak_memory["refusal"] = 2.5, {"process": 700.0}
    RunFolder.prepare(tmp_path / "run", first)
    again = RunFolder.prepare(tmp_path / "run", manifest(), resume=True).manifest()
    assert (again.timings, again.peak_memory) == (first.timings, first.peak_memory)
    anew = RunFolder.prepare(tmp_path / "run", manifest(), overwrite=True).manifest()
    assert not anew.timings
    assert not anew.peak_memory


def test_what_a_killed_run_left_half_written_is_no_study_and_goes_away(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "run", manifest())
    folder.write_result("refusal", {})
    half = [folder.path / name for name in (".12.report.html", "results/.12.truthfulness.json")]
    others = [folder.path / name for name in (".notes.json", ".12.notes.txt", "results/.hidden.json")]
    for file in (*half, *others):
        file.write_text("{")
    assert RunFolder.open(folder.path).studies() == [".hidden", "refusal"]
    assert all(file.exists() for file in half)
    RunFolder.prepare(folder.path, manifest(), resume=True)
    assert not any(file.exists() for file in half)
    assert all(file.exists() for file in others)


def test_a_folder_with_nothing_but_a_half_manifest_is_free(tmp_path: Path) -> None:
    (tmp_path / ".12.manifest.json").write_text("{")
    RunFolder.prepare(tmp_path, manifest())
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def changed(**facts: str) -> Manifest:
    """A run in which the base model has other facts."""
    other = manifest()
    other.models["base"] |= facts
    return other


def with_data(hash_: str) -> Manifest:
    other = manifest()
    other.data["statements"]["hash"] = hash_
    return other


def with_code(hash_: str) -> Manifest:
    other = manifest()
    other.versions["steerlab code"] = hash_
    return other


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (manifest(seed=1), "with seed 0; this one has 1; "),
        (changed(dtype="bfloat16"), "with dtype of base float32; this one has bfloat16; "),
        (changed(fingerprint="b"), "with model of base base-1; this one has b; "),
        (changed(device="cpu"), "with device of base cuda; this one has cpu; "),
        (changed(interventions="2 hooks"), "with interventions of base none; this one has 2 hooks; "),
        (with_data("def"), "with data of statements abc; this one has def; "),
        (with_code("c0de2"), "with steerlab code c0de; this one has c0de2; "),
        (
            changed(dtype="float16", device="cpu"),
            "with dtype of base float32 and device of base cuda; this one has dtype of base float16 and device of base "
            "cpu; ",
        ),
    ],
)
def test_another_run_is_not_resumed_and_says_what_differs(
    now: Manifest, sentence: str, tmp_path: Path
) -> None:
    RunFolder.prepare(tmp_path / "run", manifest())
    with pytest.raises(RunError) as raised:
        RunFolder.prepare(tmp_path / "run", now, resume=True)
    assert str(raised.value) == (
        f"The run in {tmp_path / 'run'} was made {sentence}replace it with --overwrite or choose another --out."
    )
    assert RunFolder.open(tmp_path / "run").manifest() == manifest()


def test_what_differs_in_every_model_is_said_once(tmp_path: Path) -> None:
    RunFolder.prepare(tmp_path / "run", manifest())
    now = changed(dtype="bfloat16")
    now.models["post"]["dtype"] = "bfloat16"
    with pytest.raises(RunError, match=r"was made with dtype float32; this one has bfloat16;"):
        RunFolder.prepare(tmp_path / "run", now, resume=True)


def test_a_second_gpu_goes_on_with_what_the_first_began(tmp_path: Path) -> None:
    RunFolder.prepare(tmp_path / "run", manifest())
    RunFolder.prepare(tmp_path / "run", changed(device="cuda:1", name="./elsewhere/base"), resume=True)


def test_a_run_that_does_not_say_how_it_was_made_is_read_but_not_resumed(tmp_path: Path) -> None:
    old = manifest()
    del old.models["base"]["interventions"], old.models["post"]["interventions"]
    folder = RunFolder.prepare(tmp_path / "run", old)
    assert folder.manifest() == old
    with pytest.raises(RunError, match="made with interventions not noted; this one has none"):
        RunFolder.prepare(tmp_path / "run", manifest(), resume=True)


def test_overwriting_takes_a_link_away_and_not_what_lies_behind_it(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "run", manifest())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "refusal.json").write_text("{}")
    (elsewhere / ".12.refusal.json").write_text("{")
    (folder.path / "results").symlink_to(elsewhere)
    with pytest.raises(RunError, match="results is a link, and a run keeps its files in its own folder"):
        RunFolder.prepare(folder.path, manifest(), resume=True)
    with pytest.raises(RunError, match="results is a link"):
        folder.write_result("refusal", {})
    again = RunFolder.prepare(folder.path, manifest(), overwrite=True)
    assert again.studies() == []
    assert sorted(file.name for file in elsewhere.iterdir()) == [".12.refusal.json", "refusal.json"]
    again.write_result("refusal", {})
    assert not (folder.path / "results").is_symlink()


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.prepare(tmp_path / "run", manifest())
    folder.write_result("refusal", {})

    def _busy(*arguments: object, **options: object) -> None:
        if not options.get("ignore_errors"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", _busy)
    with pytest.raises(RunError, match="Nothing can be written"):
        RunFolder.prepare(tmp_path / "run", manifest(), overwrite=True)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_run_that_was_killed_before_its_first_file_is_taken_up(
    options: dict[str, bool], tmp_path: Path
) -> None:
    with locked(tmp_path):
        for left in (f".steerlab-{'0' * 16}.manifest.json", ".12.manifest.json"):
            (tmp_path / left).write_text("{")
        RunFolder.prepare(tmp_path, manifest(), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("more", [{}, {"monitors": []}])
def test_a_manifest_of_a_later_format_says_so(more: dict[str, object], tmp_path: Path) -> None:
    later = {**manifest().model_dump(), "schema_version": 2, **more}
    (tmp_path / "manifest.json").write_text(json.dumps(later))
    with pytest.raises(RunError, match=r"is of format 2, and this steerlab reads formats up to 1"):
        RunFolder.open(tmp_path).manifest()
    RunFolder.prepare(tmp_path, manifest(), overwrite=True)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match="not a run folder"):
            RunFolder.prepare(tmp_path, manifest(), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.prepare(tmp_path / "run", manifest())
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_a_disk_without_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(RunError, match="0 MB free"):
        RunFolder.prepare(tmp_path / "run", manifest())
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.prepare(tmp_path / "run", manifest())
    before = sorted(file.name for file in folder.path.rglob("*"))

    def _full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(RunError, match="the disk is full"):
        folder.write_result("refusal", {})
    assert sorted(file.name for file in folder.path.rglob("*.json")) == ["manifest.json"]
    assert not [name for name in before if name.startswith(".writing")]
    folder.discard_if_empty()
    assert not folder.path.exists()


def test_a_run_without_results_takes_only_its_own_files_away(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "run", manifest())
    (folder.path / "notes.txt").write_text("mine")
    folder.discard_if_empty()
    assert [file.name for file in folder.path.iterdir()] == ["notes.txt"]


def test_an_overwritten_run_stays_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.prepare(tmp_path / "run", manifest()).write_result("refusal", {})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(RunError, match="0 MB free"):
        RunFolder.prepare(tmp_path / "run", manifest(), overwrite=True)
    assert RunFolder.open(tmp_path / "run").studies() == ["refusal"]


@pytest.mark.parametrize("content", ["{", "[]", '"', "[" * 100_000])
def test_a_damaged_result_is_a_sentence(content: str, tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "run", manifest())
    folder.write_result("refusal", {})
    (folder.path / "results" / "refusal.json").write_text(content)
    with pytest.raises(RunError, match=r"refusal\.json .*--resume\.$"):
        folder.read_result("refusal")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Nothing can be written"):
        RunFolder.prepare(tmp_path / "run", manifest())


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"1", b'{"schema_version": "x"}', b"[" * 100_000])
def test_a_damaged_manifest_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read as a manifest"):
        RunFolder.open(tmp_path).manifest()
