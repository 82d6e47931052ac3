"""The first figures of README are drawn from committed tables, and show what these hold."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "analyses" / "real_figures.py"))


def test_truth_has_a_curve_a_model_and_its_control(script: dict[str, Any]) -> None:
    rows = script["read"](ROOT / "figures" / "truth_topics" / "by_layer.csv")
    figure = script["truth_topics"](rows)
    names = [trace.name for trace in figure.data]
    assert names == [
        "gemma-3-270m",
        "SmolLM2-135M-Instruct",
        "Qwen2.5-Coder-0.5B-Instruct",
        "shuffled labels",
    ]
    best = max(figure.data[0].y)
    mine = [row for row in rows if row["model"].endswith("270m") and row["estimator"] == script["ESTIMATOR"]]
    mine = [row for row in mine if script["TOPICS"].items() <= row.items()]
    assert best == max(float(row["accuracy"]) for row in mine)


def test_refusal_shows_every_way_that_the_table_has(script: dict[str, Any]) -> None:
    row = {
        "model": "post",
        "prompts": "harmful",
        "gibberish": "0.1",
        "gibberish low": "0",
        "gibberish high": "0.2",
    }
    row |= {"refuses": "0.9", "refuses low": "0.8", "refuses high": "1"}
    ways = (("none", "none"), ("ablation", "post"), ("ablation", "post, as published"))
    rows = [row | {"intervention": how, "direction": what} for how, what in ways]
    figure = script["refusal"](rows)
    assert [trace.name for trace in figure.data] == ["refused", "gibberish"]
    assert list(figure.data[0].y) == [0.9] * 3


def test_every_figure_of_readme_is_committed() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    shown = [part.partition(")")[0] for part in text.split("](figures/")[1:]]
    assert shown[0].startswith("real_models/")
    assert all((ROOT / "figures" / name).exists() for name in shown)
