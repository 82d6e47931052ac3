"""The analysis of facts in small real models: part by part, resumed, each site beside its controls."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scripts import local_copy, rows_of, run_analysis

import steerlab as sl
from steerlab.activations import Cost
from steerlab.studies import facts_of
from steerlab.studies._knowledge.noise_effects import FACT_ROLES, NoiseEffects, Window, known_facts

ANALYSES = Path(__file__).parents[1] / "analyses"
SCRIPT = ANALYSES / "real_facts.py"


@pytest.fixture
def plan(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model, and facts that it goes on with by itself."""
    folder = shared / "models" / "stories260K"
    prompts = [
        f"Once upon a time, {name} was a little" for name in ("Lily", "Tom", "Ben", "Mia", "Sam", "Tim")
    ]
    model = sl.load(folder)
    words = [answer.text.split()[0] for answer in model.generate(prompts, max_new_tokens=4)]
    facts = [
        {"prompt": prompt, "subject": prompt.split()[4], "attribute": word}
        for prompt, word in zip(prompts, words, strict=True)
    ]
    data = tmp_path / "data" / "facts"
    data.mkdir(parents=True)
    (data / "known.json").write_text(json.dumps(facts))
    monkeypatch.setenv("STEERLAB_DATA", str(tmp_path / "data"))
    listed = hashlib.sha256((data / "known.json").read_bytes()).hexdigest()
    weights = local_copy(folder, tmp_path, monkeypatch)
    written = tmp_path / "facts.toml"
    written.write_text(
        'name = "tried"\nseed = 0\nevery = 2\nasked = 6\nmost_tokens = 40\n'
        f'[data]\nrepository = "ours"\nfolder = "facts"\nfiles = {{ "known.json" = "{listed}" }}\n'
        f'[models."someone/stories260K"]\nsha256 = "{weights}"\nfacts = 4\ncopies = 2\n'
    )
    return written


def test_parts_are_written_beside_their_controls_and_resumed(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_analysis(SCRIPT, plan, tmp_path, "--dry-run")
    assert "million token-layers" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()
    run_analysis(SCRIPT, plan, tmp_path)
    tables = rows_of(tmp_path, "facts_map", "facts_sites")
    layers = {row["layer"] for row in tables["facts_map"]}
    assert layers == {"0", "2", "4"}
    assert {row["kind"] for row in tables["facts_map"]} == {"resid_post", "mlp_out", "attn_out"}
    total, *sites = tables["facts_sites"]
    assert total["question"] == "total effect"
    assert float(total["value"]) > 0
    assert int(total["facts"]) >= 2
    assert int(total["token_layers"]) > 0
    assert len(sites) == 4
    for row in sites:
        difference = float(row["value"]) - float(row["control_value"])
        assert float(row["difference"]) == pytest.approx(difference, abs=1e-6)
    capsys.readouterr()
    run_analysis(SCRIPT, plan, tmp_path)
    assert "0 parts are left" in capsys.readouterr().out


def test_crossed_parts_are_of_the_facts_that_both_know(
    plan: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of the other model and of its own on the same facts, whichever run is noised."""
    monkeypatch.syspath_prepend(str(ANALYSES))
    import real_facts  # type: ignore[import-not-found]

    models = {name: sl.load(shared / "models" / name) for name in ("stories260K", "stories260K-chat-local")}
    facts = sl.datasets.read_facts(tmp_path / "data" / "facts" / "known.json")
    told = tomllib.loads(plan.read_text("utf-8"))
    known = [known_facts(model, facts_of(model, facts)) for model in models.values()]
    both = {fact.prompt.text for fact in known[0]} & {fact.prompt.text for fact in known[1]}
    counts = []
    for target, source in itertools.product(models, models):
        work = real_facts.Work({}, target, source, 6, 1, tuple(models))
        made = real_facts.run_part(work, models, facts, told, tmp_path / f"{target} {source}")
        counts.append(made["facts_sites"][0]["facts"])
    assert counts == [len(both)] * 4
    sys.modules.pop("real_facts")


def test_the_layer_of_a_site_is_chosen_on_other_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Effects of pure noise are nought at the layer that looked best elsewhere, though the best of all is above it."""
    monkeypatch.syspath_prepend(str(ANALYSES))
    from _facts_rows import at_best_layer  # type: ignore[import-not-found]

    effects = np.random.default_rng(0).standard_normal((400, 12, len(FACT_ROLES)))
    planted = effects.copy()
    planted[:, 7, FACT_ROLES.index("last token")] += 1
    rows = tuple(Window("attn_out", layer, 1) for layer in range(12))

    def found(values: np.ndarray) -> NoiseEffects:
        nought = np.zeros(len(values))
        return NoiseEffects(rows, FACT_ROLES, nought, nought, values, {}, 0, 1.0, Cost())

    noise, _ = at_best_layer(found(effects), "attn_out", ("last token",))
    assert abs(noise.mean()) < 3 / np.sqrt(400)
    real, layers = at_best_layer(found(planted), "attn_out", ("last token",))
    assert layers == "7"
    assert real.mean() == pytest.approx(1, abs=3 / np.sqrt(400))
