"""Every study runs end to end on a pretrained base model and the same model post-trained, where they are at hand.

`STEERLAB_REAL_MODELS` names the folder in which the real models lie; the adapter is `analyses/post_training/safe`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from smaller import ask_little_of_large_models
from tolerances import close

import steerlab as sl
from steerlab.comparison import run_study
from steerlab.forecast import forecast
from steerlab.models.metering import metered
from steerlab.readouts.confidence import read_texts
from steerlab.results import SkippedResult, result_from_dict
from steerlab.run_data import read_data
from steerlab.studies import Pair

pytestmark = pytest.mark.skipif(
    "STEERLAB_REAL_MODELS" not in os.environ, reason="set STEERLAB_REAL_MODELS to the folder of real models"
)
ROOT = Path(__file__).parents[1]
ADAPTER = ROOT / "analyses" / "post_training" / "safe"
COMPARED = ROOT / "benchmarks" / "results" / "compare.json"


@pytest.fixture(scope="module", autouse=True)
def _every_core() -> Iterator[None]:
    """Large models are faster on all cores; the other tests run on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else before)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> Pair:
    base = sl.load(Path(os.environ["STEERLAB_REAL_MODELS"]) / "gemma-3-270m")
    return Pair(base, sl.load(ADAPTER, base=base, merge=False))


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_little_of_large_models(monkeypatch)


def refuses(result: Any) -> None:
    assert result.separates == {"base": False, "post": True}
    assert result.choices.keys() == {"base", "post"}


def reads(result: Any) -> None:
    """Both models gain nats over other places' tokens; the adapter costs little of it."""
    base, post = (row.loss.value for row in result.texts)
    assert all(row.gain.low > 1 for row in result.texts)
    assert abs(post - base) < 0.5


def shrinks(result: Any) -> None:
    assert result.headline.value.value > 1


def says_what_it_found(result: Any) -> None:
    assert result.status in ("done", "not identified")
    assert result.summary


FINDINGS: dict[str, Callable[[Any], None]] = {
    "refusal": refuses,
    "confidence": reads,
    "branching": shrinks,
    "truthfulness": says_what_it_found,
    "knowledge": says_what_it_found,
}


@pytest.mark.parametrize("study", FINDINGS)
def test_a_study_runs_end_to_end(study: str, pair: Pair) -> None:
    with metered(pair.by_name) as spent:
        result = run_study(study, pair, read_data())
    assert not isinstance(result, SkippedResult), result.summary
    FINDINGS[study](result)
    assert result_from_dict(result.to_dict()).to_dict() == result.to_dict()
    assert result.tables()
    assert min(own.read for own in spent.values()) > 0


def test_a_dry_run_foresees_what_the_committed_run_took(pair: Pair) -> None:
    committed = json.loads(COMPARED.read_text())["studies"]
    assert committed.keys() == FINDINGS.keys()
    for cost in forecast(pair, list(committed)).studies:
        for kind in ("read", "generated", "patched", "unembedded"):
            assert getattr(cost, kind) == pytest.approx(committed[cost.study][kind], rel=0.05), cost.study


def test_losses_on_text_are_transformers_own(pair: Pair) -> None:
    texts = list(sl.datasets.plain_text()[:4])
    for model in pair:
        found = read_texts(model, texts, seed=0, description="")
        for number, text in enumerate(texts):
            ids = model.tokenize([text]).input_ids
            with torch.no_grad():
                own = model.model(input_ids=ids, labels=ids).loss
            close(found.loss[found.text == number].mean(), float(own))


@pytest.fixture(scope="module")
def smollm2() -> sl.LanguageModel:
    return sl.load(Path(os.environ["STEERLAB_REAL_MODELS"]) / "smollm2-135m-instruct")


def test_known_facts_come_back_late_at_the_last_token(smollm2: sl.LanguageModel, shared: Path) -> None:
    """Noise on the subject takes the word away; late attention to the last token, put back, gives more of it back than
    late attention to the token behind the subject."""
    facts = sl.datasets.read_facts(shared / "data" / "facts" / "rome" / "known_1000.json")
    found = sl.studies.noise_effects(
        smollm2,
        sl.studies.facts_of(smollm2, facts[:60]),
        limit=6,
        copies=2,
        kinds=["attn_out"],
        layers=[18],
        severed=False,
    )
    assert (found.clean - found.corrupted).mean() > 0.05
    last, after = (found.by_role[:, 0, found.roles.index(role)] for role in ("last token", "after subject"))
    assert last.mean() > max(after[after == after].mean(), 0)


@pytest.mark.parametrize(("name", "least"), [("formal", 0.9), ("spanish", 0.95)])
def test_a_packaged_contrast_is_read_in_a_real_model(
    name: str, least: float, smollm2: sl.LanguageModel
) -> None:
    direction = sl.extract(smollm2, name)
    assert direction.best is not None
    assert direction.accuracy[direction.best].value >= least
    assert direction.class_gap[direction.best] > 0
