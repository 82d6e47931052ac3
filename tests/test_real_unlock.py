"""The analysis of capabilities carried across real models: run by run, resumed, every control and reason in its row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

from steerlab.studies._transfer import study

ANALYSES = Path(__file__).parents[1] / "analyses"
CHAT = "stories260K-chat-local"


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    weights = local_copy(shared / "models" / CHAT, tmp_path, monkeypatch)
    monkeypatch.setitem(study._AMOUNTS, "quick", study.Amount(24, 4, 6, 2, (4,), (16,), 2))
    written = tmp_path / "unlock.toml"
    written.write_text(
        'name = "tried"\nseed = 0\n'
        f'[models]\n"someone/{CHAT}" = "{weights}"\n'
        '[tasks.steps]\nquestions = "sums"\nlocked = "{question}"\nunlocked = "{question} Say more."\nnew_tokens = 4\n'
        '[tasks.opening]\nquestions = "everyday"\nlocked = "{question}"\nunlocked = "{question} Begin kindly."\n'
        'behaviour = "You"\nnew_tokens = 4\n'
        f'[[run]]\nlabel = "one"\ntask = "opening"\nsource = "someone/{CHAT}"\ntarget = "someone/{CHAT}"\n'
        'template = "chat"\n'
        f'[[run]]\nlabel = "two"\ntask = "steps"\nsource = "someone/{CHAT}"\ntarget = "someone/{CHAT}"\n'
        'template = "plain"\nrule = "end_of_word"\n'
    )
    return written


@pytest.mark.filterwarnings("ignore")
def test_runs_are_written_with_their_controls_and_resumed(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_analysis(ANALYSES / "real_unlock.py", plan, tmp_path, "--dry-run", runs=False) is None
    assert "tokens to read and at most" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()
    assert run_analysis(ANALYSES / "real_unlock.py", plan, tmp_path, "--only", "one", runs=False) is None
    assert run_analysis(ANALYSES / "real_unlock.py", plan, tmp_path, runs=False) is None
    tables = rows_of(tmp_path, "conditions", "maps", "runs")
    assert [row["run"] for row in tables["runs"]] == ["one", "two"]
    assert {row["manner_reason"] for row in tables["runs"]} <= {
        "carried",
        "capability",
        "direction",
        "aligner",
    }
    assert [row["rule"] for row in tables["runs"]] == ["last_prompt", "end_of_word"]
    for run in ("one", "two"):
        names = {row["condition"] for row in tables["conditions"] if row["run"] == run}
        assert names >= {
            *("locked", "unlocked prompt", "UNLOCK", "native, same layers", "random directions"),
            *("random source direction", "another layer", "shuffled pairs", "rank one", "another task"),
        }
    assert all(float(row["energy_in"]) >= 0 for row in tables["maps"])
    capsys.readouterr()
    assert run_analysis(ANALYSES / "real_unlock.py", plan, tmp_path, runs=False) is None
    assert "left are none" in capsys.readouterr().out


def test_word_problems_have_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ANALYSES))
    from _sums import sums  # type: ignore[import-not-found]

    found = dict(sums(200, 0))
    assert len(found) == 200
    assert all(int(answer) > 0 for answer in found.values())
    boxes = next(text for text in found if " boxes with " in text)
    numbers = [int(word) for word in boxes.replace(".", "").split() if word.isdigit()]
    assert found[boxes] == str(numbers[0] * numbers[1] + numbers[2])
    sys.modules.pop("_sums")


def test_the_spanish_manner_is_told_from_the_english_one() -> None:
    import re
    import tomllib

    plan = tomllib.loads((ANALYSES / "real_unlock.toml").read_text("utf-8"))
    manner = plan["tasks"]["spanish"]["behaviour"]
    for spanish in (
        "Los gatos son animales que duermen mucho.",
        "Claro, aquí tienes tres frutas con hueso: la cereza, el durazno y la ciruela.",
        "La gravedad es una fuerza que atrae los objetos.",
    ):
        assert re.match(manner, spanish)
    for english in (
        "Cats are animals that sleep a lot.",
        "1. Bears\n2. Bats\n3. Hedgehogs",
        "El Salvador lies in Central America.",
        "Gravity is a force that pulls things to the ground.",
    ):
        assert not re.match(manner, english)
