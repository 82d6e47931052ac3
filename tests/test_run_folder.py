"""A run's files: prepared, resumed, replaced, refused; never half-written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from steerlab.errors import RunError
from steerlab.run_folder import Manifest, RunFolder


def manifest(seed: int = 0) -> Manifest:
    return Manifest(
        created="2026-01-01T00:00:00+00:00",
        models={role: {"name": role, "fingerprint": f"{role}-1"} for role in ("base", "post")},
        data={"statements": {"n": 2, "hash": "abc", "source": "packaged"}},
        configuration={"studies": ["refusal"], "size": "quick", "seed": seed},
        versions={"python": "3.11"},
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


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    RunFolder.prepare(tmp_path / "run", manifest())
    with pytest.raises(RunError, match="other models, data or configuration"):
        RunFolder.prepare(tmp_path / "run", manifest(seed=1), resume=True)


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


@pytest.mark.parametrize("content", ["{", "[]", '"'])
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


def test_a_damaged_manifest_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as a manifest"):
        RunFolder.open(tmp_path).manifest()
