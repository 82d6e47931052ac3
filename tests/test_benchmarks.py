"""The benchmark of a GPU runs on a CPU at a small shape, so that it works on the day there is one; that of kept memory
measures fewer page faults."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--device", "cpu", "--shape", "tiny", "--turns", 1, "--out", folder / "gpu.json"]
    assert run_script(BENCHMARKS / "gpu.py", options, folder) is None
    results = json.loads((folder / "gpu.json").read_text())
    assert results["configuration"]["device"] == "cpu"
    assert results["machine"].keys() >= {"processor", "cores", "accelerator"}
    found: list[dict[str, Any]] = results["rows"]
    return found


def test_every_check_that_is_no_time_passes_on_a_cpu(rows: list[dict[str, Any]]) -> None:
    checks = [one for one in rows if "wall ratio" not in one]
    assert [one["what"] for one in checks if not one["passed"]] == []
    kinds = ("peak memory", "waits", "batches", "float32 states", "cosine")
    assert all(any(one["what"].startswith(kind) for one in checks) for kind in kinds)
    halved = next(one for one in checks if "batches" in one)
    assert halved["batches"] == [8, 4, 4]  # refused, then read in halves


def test_reading_and_writing_are_timed_over_the_plain_model(rows: list[dict[str, Any]]) -> None:
    timed = {one["what"]: one for one in rows if "wall ratio" in one}
    assert {one["goal"] for one in timed.values()} == {1.02, 1.03, 1.05}
    assert all(one["wall ratio"]["median"] > 0 for one in timed.values())
    one, every = timed["Add at one layer, batch 8"], timed["Add at every layer, batch 8"]
    assert 0 < one["inside the hooks"] < every["inside the hooks"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_memory_that_is_kept_saves_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "malloc.py", "--quick"], capture_output=True, text=True, check=True
    )
    faults = json.loads(done.stdout)["page faults"]
    assert faults["kept"] < faults["default"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_audit_of_a_large_sparse_pair_holds_a_part_of_it() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "audit.py", "--quick"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)["sparse pair"]
    assert found["bytes of each side"] > 5e8
    assert 1e7 < found["peak bytes"]["held"] < 1e9
    assert found["kind"] == "low-rank adapter"  # a tail of ones in one row
