"""The analysis of cards, on the bundled model: a part a task, kept as JSON and Markdown, not run twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import local_copy, rows_of, run_analysis

from steerlab import zoo
from steerlab.card import SteeringCard, making

SCRIPT = Path(__file__).parents[1] / "analyses" / "real_cards.py"


def test_cards_and_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = making.Amounts(randoms=2, few=1, texts=2, requests=4, new_tokens=8, facts=4)
    monkeypatch.setattr(making, "AMOUNTS", {"quick": few})
    weights = local_copy(zoo.path("small-post"), tmp_path, monkeypatch)
    plan = tmp_path / "cards.toml"
    plan.write_text(
        'name = "tried"\nseed = 0\nsize = "quick"\npredictor = false\n'
        'tasks = ["happy", "refusing"]\n'
        f'[models."someone/small-post"]\nsha256 = "{weights}"\ndoses = [0.5, 1.0]\n'
    )
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run", runs=False)
    assert "2 parts are left" in capsys.readouterr().out
    assert run_analysis(SCRIPT, plan, tmp_path, runs=False) is None
    rows = rows_of(tmp_path, "cards")["cards"]
    assert [row["task"] for row in rows] == ["happy", "refusing"]
    for row in rows:
        card = SteeringCard.load(tmp_path / "figures" / "tried" / "small-post" / row["task"])
        assert row["verdict"] == card.verdict
        assert float(row["effect"]) == card.effects.at().effect.value
        assert float(row["random_greatest"]) == card.effects.at().random.high
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run", runs=False)
    assert "0 parts are left" in capsys.readouterr().out
