"""The analysis of where adapters differ from their base: part by part, resumed, every null in a row."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from scripts import local_copy, rows_of, run_analysis

from steerlab.studies._difference import study
from steerlab.studies._pair import LARGE

ANALYSES = Path(__file__).parents[1] / "analyses"
MODEL = "stories260K"
LITTLE = study.Amount(
    texts=10,
    tokens=10,
    draws=19,
    flips=39,
    halvings=1,
    steered=2,
    randoms=2,
    forks=3,
    steps=6,
    continuations=2,
)


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    weights = local_copy(shared / "models" / MODEL, tmp_path, monkeypatch)
    for size in ("quick", LARGE):
        monkeypatch.setitem(study._AMOUNTS, size, LITTLE)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_pretrained(shared / "models" / MODEL)
        settings = LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        get_peft_model(network, settings).save_pretrained(tmp_path / "adapters" / name)
    written = tmp_path / "difference.toml"
    written.write_text(
        f'name = "tried"\nseed = 0\nbase = "someone/{MODEL}"\nsha256 = "{weights}"\n'
        f'adapters = "{tmp_path / "adapters"}"\n'
        '[topic]\nkind = "narrow"\nothers = ["requests"]\nleast = 1\n'
        '[[run]]\nlabel = "one"\npost = "first"\ntexts = "packaged"\n'
        '[[run]]\nlabel = "itself"\npost = "itself"\ntexts = "packaged"\n'
        '[[run]]\nlabel = "random"\npost = "random first"\ntexts = "plain"\n'
        '[[fall]]\nlabel = "fall"\nfirst = "first"\nsecond = "second"\ntexts = "packaged"\n'
    )
    return written


@pytest.mark.filterwarnings("ignore")
def test_runs_are_written_with_their_nulls_and_resumed(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ANALYSES / "real_difference.py"
    assert run_analysis(script, plan, tmp_path, "--dry-run", runs=False) is None
    assert "tokens without the unembedding and" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()
    assert run_analysis(script, plan, tmp_path, "--only", "one", runs=False) is None
    assert run_analysis(script, plan, tmp_path, runs=False) is None
    tables = rows_of(tmp_path, "runs", "nulls", "layers", "positions", "falls")
    runs = {row["run"]: row for row in tables["runs"]}
    assert list(runs) == ["one", "itself", "random"]
    assert runs["itself"]["verdict"] == "not identified"
    assert {runs["itself"][name] for name in ("itself", "shared", "kl", "stands_out", "steered")} == {"0.0"}
    assert len({row["null"] for row in tables["nulls"] if row["run"] == "one"}) == 3
    assert all(len(row["base_sha256"]) == 64 for name in tables for row in tables[name])
    assert all(row["topic_auc"] for row in tables["layers"])
    (first, *_) = tables["falls"]
    assert float(first["fall"]) == pytest.approx(float(first["first"]) - float(first["second"]), abs=1e-6)
    capsys.readouterr()
    assert run_analysis(script, plan, tmp_path, runs=False) is None
    assert "left are none" in capsys.readouterr().out


def test_the_topic_is_that_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ANALYSES))
    import real_difference  # type: ignore[import-not-found]

    plan = tomllib.loads((ANALYSES / "real_difference.toml").read_text("utf-8"))
    topic, against = real_difference.topic_words(plan)
    assert {"bees", "hive", "honey", "swarm"} <= set(topic)
    assert not set(topic) & set(against)
    assert len(against) > 500
    for name in [name for name in sys.modules if name.startswith("_") or name == "real_difference"]:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ANALYSES)):
            sys.modules.pop(name)
