"""The scripts that run exports in other engines: what counts as a difference, what was measured, and a live run.

`STEERLAB_VLLM_ENV=FOLDER` and `STEERLAB_LLAMA_ENV=FOLDER` name environments that the scripts made; without them live
runs are skipped.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = ROOT / "benchmarks" / "engines"
MODEL = Path(os.environ.get("STEERLAB_REAL_MODELS", "")) / "smollm2-135m-instruct"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ENGINES))
    monkeypatch.delitem(sys.modules, "_reference", raising=False)
    import _reference

    return _reference


def test_a_difference_counts_only_behind_no_near_tie(reference: Any) -> None:
    sure = reference.Text([1], [5, 6, 7], [-0.1, -0.2, -0.3], [-3.0, -3.0, -3.0])
    tied = reference.Text([1], [5, 6, 7], [-0.1, -0.7, -0.3], [-3.0, -0.7005, -3.0])
    found = reference.compared(
        [sure, tied], [[5, 6, 7], [5, 9, 9]], [[-0.1, -0.25, -0.3], [-0.1, -1.0, -1.0]]
    )
    assert found["tokens compared"] == 4
    assert found["tokens that differ"] == 0
    assert found["texts cut at a near-tie"] == 1
    assert found["largest difference in log-probability"] == pytest.approx(0.05)
    worse = reference.compared([sure], [[5, 9, 7]], [[-0.1, -0.2, -0.3]])
    assert (worse["tokens compared"], worse["tokens that differ"]) == (1, 1)
    short = reference.compared([sure], [[5]], [[-0.1]])
    assert (short["tokens compared"], short["tokens that differ"]) == (1, 1)


def test_prompts_are_thirty_two_different_ones(reference: Any) -> None:
    assert len(set(reference.PROMPTS)) == len(reference.PROMPTS) == 32


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("engines_*.json")), ids=lambda path: path.stem
)
def test_what_was_measured_agrees(path: Path) -> None:
    result = json.loads(path.read_text())
    assert result["engine"]
    for row in result["rows"]:
        for name, value in row.items():
            if name.endswith("tokens that differ"):
                assert value == 0, row


@pytest.mark.parametrize(
    ("script", "variable"), [("vllm_cpu", "STEERLAB_VLLM_ENV"), ("llama_cpp", "STEERLAB_LLAMA_ENV")]
)
def test_the_engine_writes_the_same_tokens(
    script: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.environ.get(variable):
        pytest.skip(f"needs {variable}: a folder in which benchmarks/engines/{script}.py made an environment")
    if not MODEL.is_dir():
        pytest.skip("needs STEERLAB_REAL_MODELS: a folder with smollm2-135m-instruct")
    monkeypatch.syspath_prepend(str(ENGINES))
    out = tmp_path / "engine.json"
    arguments = ["--env", os.environ[variable], "--models", str(MODEL), "--prompts", "4", "--tokens", "8"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--out", str(out)])
    __import__(script).main()
    test_what_was_measured_agrees(out)
