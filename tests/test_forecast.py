"""A comparison says what it will cost before it starts, from measured counts and this machine's speed."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import tiny

import steerlab as sl
from steerlab import cli, forecast
from steerlab.comparison import foresee
from steerlab.registry import ordered_studies
from steerlab.showing import duration
from steerlab.studies import Pair, _pair

COSTS = {
    "layers": {"quick": 2, _pair.LARGE: 4, "full": 2},
    "amounts": {
        "quick": {
            "refusal": {"read": 1000, "generated": 100, "patched": 2000, "unembedded": 50, "outside": 0.0}
        },
        "full": {
            "refusal": {"read": 9000, "generated": 900, "patched": 9000, "unembedded": 90, "outside": 0.0}
        },
        _pair.LARGE: {
            "refusal": {"read": 10, "generated": 1, "patched": 40, "unembedded": 5, "outside": 1.0}
        },
    },
}


@pytest.fixture
def _costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "measured", lambda: COSTS)
    speed = forecast._Speed(read=0.01, generated=0.1, patched=0.001, unembedded=0.02)
    monkeypatch.setattr(forecast, "_speed", lambda model: speed)


@pytest.mark.usefixtures("_costs")
def test_time_is_counts_times_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    pair = Pair(model, model)
    found = forecast.forecast(pair, ["refusal", "branching"])
    scaled = 2000 * model.n_layers / 2
    assert found.studies[0].patched == scaled
    assert found.seconds == pytest.approx(1000 * 0.01 + 100 * 0.1 + scaled * 0.001 + 50 * 0.02)
    assert found.studies[1].seconds is None
    assert "without branching, never measured" in found.sentence
    assert found.full is None  # nor is the full time of what was never measured known
    assert "size 'full' about" in forecast.forecast(pair, ["refusal"]).sentence
    monkeypatch.setattr(_pair, "_LARGE_FROM", 0)
    large = forecast.forecast(pair, ["refusal"])
    assert large.studies[0].read == 10
    assert large.seconds == pytest.approx(2 * (0.1 + 0.1 + 40 * model.n_layers / 4 * 0.001 + 0.1))
    assert large.rows[0][1] == "10"


def test_speeds_are_measured_and_every_study_has_its_counts() -> None:
    model = sl.load("zoo:small-base")
    speed = forecast._speed(model)
    assert 0 < speed.patched < speed.read <= speed.generated < 1
    for amounts in forecast.measured()["amounts"].values():
        for cost in amounts.values():
            assert cost.keys() == {"read", "generated", "patched", "unembedded", "outside"}
    able = {study.name for study in ordered_studies(in_compare=True)}
    assert {"quick", _pair.LARGE} <= forecast.measured()["amounts"].keys()
    assert able == forecast.measured()["amounts"]["quick"].keys()


def test_a_dry_run_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["steerlab", "compare", "zoo:small-base", "zoo:small-post"]
    monkeypatch.setattr("sys.argv", [*asked, "--studies", "refusal", "--dry-run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "on this machine; size 'full' about" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    found = foresee("zoo:small-base", "zoo:small-post", studies=["refusal"])
    assert "refusal" in found._repr_html_()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (1.6, "2 seconds"), (89, "89 seconds"), (840, "14 minutes"), (10800, "3 hours")],
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
