"""The scripts run from their TOML files on a small trained pair, and say in a sentence what is wrong with a file."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from steerlab import zoo
from steerlab.alignment import LayerMap

ANALYSES = Path(__file__).parents[1] / "analyses"
PAIR = 'name = "tried"\nbase = "zoo:small-base"\npost = "zoo:small-post"\n'


def refused(script: str, configuration: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the script says as it stops, in this process: imports are what such a run costs."""
    monkeypatch.syspath_prepend(str(ANALYSES))
    monkeypatch.setattr(sys, "argv", [script, str(configuration)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ANALYSES / script), run_name="__main__")
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def run(script: str, configuration: Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The script as a user starts it, writing below `tmp_path`."""
    command = [sys.executable, str(ANALYSES / script), str(configuration), *options]
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
    assert (kept / "results" / f"{study}.json").exists()
    assert list((tmp_path / "figures" / "tried").glob(f"{study}_*.csv"))


@pytest.mark.parametrize("script", ["base_vs_post.py", "truthfulness.py", "refusal.py", "knowledge.py"])
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
def test_wrong_files_end_in_one_sentence(
    script: str, text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "wrong.toml"
    configuration.write_text(text)
    assert sentence in refused(script, configuration, monkeypatch)


def test_the_dry_run_of_unlock_loads_nothing_and_lists_what_it_cannot_know(tmp_path: Path) -> None:
    """Configuration folders of two sizes stand in for the hub; the third model is unknown."""
    for name, layers, width in (("Qwen3-4B", 6, 64), ("Qwen3-14B-Base", 9, 96)):
        config = transformers.Qwen3Config(
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=500,
        )
        config.save_pretrained(tmp_path / name)
    done = run(
        "unlock.py", ANALYSES / "unlock_qwen3_14b.toml", tmp_path, "--dry-run", "--models", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "unresolved: the configuration of Qwen/Qwen3-4B-Base" in done.stdout
    assert "the task" in done.stdout
    assert "Qwen/Qwen3-14B-Base: 9 layers of width 96" in done.stdout
    (tmp_path / "Qwen3-4B-Base").mkdir()
    (tmp_path / "Qwen3-4B" / "config.json").rename(tmp_path / "Qwen3-4B-Base" / "config.json")
    done = run(
        "unlock.py", ANALYSES / "unlock_qwen3_14b.toml", tmp_path, "--dry-run", "--models", str(tmp_path)
    )
    assert f"layer map (target: source): {dict(LayerMap.proportional(6, 9).layers)}" in done.stdout


def test_the_knowledge_script_maps_topics_and_pairs(tmp_path: Path) -> None:
    statements = tmp_path / "statements.csv"
    with statements.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "topic", "subject", "object"])
        for item in (one for topic in ("cities", "plants") for one in zoo.statements().topic(topic)):
            spans = (item.text[slice(*item.spans[part])] for part in ("subject", "object"))
            writer.writerow([item.text, str(item.label).lower(), item.topic, *spans])
    configuration = tmp_path / "pair.toml"
    configuration.write_text(
        PAIR + f'statements = "{statements}"\nnoise = false\nby_topic = true\nkinds = ["mlp_out"]\n'
    )
    done = run("knowledge.py", configuration, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cities:" in done.stdout
    assert (tmp_path / "runs" / "tried_knowledge" / "results" / "knowledge.json").exists()
    assert (tmp_path / "figures" / "tried" / "knowledge_maps_mlp_out.svg").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "a"\n', "does not say source, target, task"),
        ('name = "a"\nsource = ["x"]\ntarget = "y"\ntask = "sums"\n', "a locked and an unlocked model"),
        ('name = "a"\nsource = ["x", "x"]\ntarget = "y"\ntask = "sums"\ncolour = 1\n', "Unknown key colour"),
        ("name = [", "cannot be read"),
    ],
)
def test_wrong_plans_of_unlock_end_in_one_sentence(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "wrong.toml"
    configuration.write_text(text)
    assert sentence in refused("unlock.py", configuration, monkeypatch)
