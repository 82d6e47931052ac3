"""The script that post-trains a base model: its data, one stage on a tiny model, and what was committed of it."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from families import build, tiny_tokenizer

import steerlab as sl
from steerlab.judging import contains_refusal, refuses

FOLDER = Path(__file__).parents[1] / "analyses" / "post_training"
STAGES = ("sft", "safe", "narrow", "narrow_mixed")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("examples", "post_train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import post_train

    return post_train


def test_requests_share_no_word_with_what_is_measured_and_refusals_refuse(script: ModuleType) -> None:
    texts = script.requests(0)  # holds itself against the words of the test requests
    test = sl.datasets.requests().split("test")
    assert not {text for kind in texts.values() for text in kind} & {*test.positive, *test.negative}
    answers = script.read_answers(FOLDER / "answers.jsonl")
    assert len(answers) > 500
    assert not [answer for answer in answers.values() if contains_refusal(answer)]
    made = script.examples(script.SETTINGS["stages"]["safe"]["data"], answers, 0)
    harmful = {*texts["refused_requests"], *texts["refused_matched"]}
    assert all(refuses(row.answer) == (row.prompt in harmful) for row in made)
    assert len({row.answer for row in made if row.prompt in harmful}) > 20


def test_a_stage_trains_and_its_folder_loads(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    shutil.copy(FOLDER / "chat_template.jinja", tmp_path)
    for name in ("answers.jsonl", "plain.jsonl"):
        (tmp_path / name).write_text("\n".join((FOLDER / name).read_text("utf-8").splitlines()[:40]), "utf-8")
    monkeypatch.setattr(script, "HERE", tmp_path)
    lora = {**script.SETTINGS["lora"], "batch": 4, "plain_rows": 4}
    stages = {
        "one": {"after": "", "data": {"everyday": 8}, "epochs": 2, "rate": 0.05},
        "two": {"after": "one", "data": {"everyday": 4, "refused_requests": 4}, "epochs": 1, "rate": 0.05},
    }
    monkeypatch.setattr(script, "SETTINGS", {"seed": 0, "lora": lora, "stages": stages})
    for name in stages:
        script.train(tmp_path / "base", name)
    base = sl.load(tmp_path / "base")
    one, two = (sl.load(tmp_path / name, base=base) for name in stages)
    assert len({base.fingerprint, one.fingerprint, two.fingerprint}) == 3
    asked = one.instruction_prompt("Hi").text
    assert asked.endswith("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n")
    assert json.loads((tmp_path / "two" / "training.json").read_text())["examples"] == 8


@pytest.mark.parametrize("name", STAGES)
def test_adapters_are_small_and_their_cards_say_what_was_measured(name: str) -> None:
    assert (FOLDER / name / "adapter_model.safetensors").stat().st_size < 5e6
    settings = json.loads((FOLDER / name / "adapter_config.json").read_text())
    assert settings["r"] <= 8
    card = (FOLDER / name / "README.md").read_text("utf-8")
    rows = [row for row in csv.DictReader((FOLDER / "measured.csv").open()) if row["adapter"] == name]
    assert rows
    for row in rows:
        assert f"| {row['measure']} | {row['items']} | {float(row['value']):.3f} |" in card
    assert f"base_fingerprint: {rows[0]['base_fingerprint']}" in card
    assert "Gemma Terms of Use" in card
