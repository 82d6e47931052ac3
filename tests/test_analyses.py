"""The scripts run from their TOML files on a small trained pair, and say in a sentence what is wrong with a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ANALYSES = Path(__file__).parents[1] / "analyses"
PAIR = 'name = "tried"\nbase = "zoo:small-base"\npost = "zoo:small-post"\n'


def run(script: str, configuration: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """The script as a user starts it, writing below `tmp_path`."""
    command = [sys.executable, str(ANALYSES / script), str(configuration)]
    folders = ["--runs", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures")]
    return subprocess.run([*command, *folders], capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.parametrize("study", ["truthfulness", "refusal"])
def test_a_study_of_a_small_trained_pair(study: str, shared: Path, tmp_path: Path) -> None:
    models = shared / "models"
    configuration = tmp_path / "pair.toml"
    configuration.write_text(
        f'name = "tried"\nbase = "{models}/stories260K"\npost = "{models}/stories260K-chat-local"\nseed = 1\n'
    )
    done = run(f"{study}.py", configuration, tmp_path)
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "runs" / f"tried_{study}"
    assert (kept / f"{study}.json").exists()
    assert list((tmp_path / "figures" / "tried").glob(f"{study}_*.csv"))


@pytest.mark.parametrize("script", ["base_vs_post.py", "truthfulness.py", "refusal.py"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PAIR + "colour = 1\n", "Unknown key colour"),
        ('name = "a"\n', "does not say base, post"),
        ("name = [", "cannot be read"),
        (PAIR.replace("small-base", "nothing"), "nothing"),
        (PAIR + 'size = "huge"\n', "huge"),
    ],
)
def test_wrong_files_end_in_one_sentence(script: str, text: str, sentence: str, tmp_path: Path) -> None:
    configuration = tmp_path / "wrong.toml"
    configuration.write_text(text)
    done = run(script, configuration, tmp_path)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
