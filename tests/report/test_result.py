from __future__ import annotations

import json
import math
import subprocess
import sys
from types import ModuleType
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import pytest
from pydantic import ValidationError

from steerlab import studies
from steerlab.errors import RunError
from steerlab.plots import Series, curves
from steerlab.registry import STUDIES, Study
from steerlab.results import Headline, SkippedResult, StudyResult, Table, result_from_dict
from steerlab.statistics import Estimate


class SampleResult(StudyResult):
    study: Literal["sample"] = "sample"
    accuracy: Estimate
    table: Table

    def figures(self) -> dict[str, go.Figure]:
        return {"one": curves([Series("BASE", [1, 2])], title="one")}


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> SampleResult:
    module = ModuleType("somebody")
    module.SampleResult = SampleResult  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebody", module)
    assert list(STUDIES)  # the real ones are looked for first
    named = Study("sample", "A sample", "What?", (), "somebody:sample", "somebody:SampleResult")
    monkeypatch.setitem(STUDIES._entries, "sample", named)
    rows: list[list[Any]] = [
        [np.float64(0.5), np.bool_(True), math.nan, "x", Estimate(value=0.1)],
        [1, 2.0, None, "", np.int64(3)],
    ]
    return SampleResult(
        summary=["A sentence."],
        headline=Headline(
            what="accuracy", value=Estimate(value=0.9, low=0.8, high=0.95), control_name="shuffled"
        ),
        accuracy=Estimate(value=math.nan, method="none"),
        table=Table(key="k", title="t", columns=list("abcde"), rows=rows),
    )


def test_json_round_trip_is_strict_and_has_no_nan(sample: SampleResult) -> None:
    written = json.dumps(sample.to_dict(), allow_nan=False)
    read = result_from_dict(json.loads(written))
    assert type(read) is SampleResult
    assert read.to_dict() == sample.to_dict()
    assert math.isnan(read.accuracy.value)
    assert read.table.rows == sample.table.rows
    assert [type(cell) for cell in read.table.rows[0]] == [float, bool, type(None), str, Estimate]
    assert [type(cell) for cell in read.table.rows[1]] == [int, float, type(None), str, int]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"unknown": 1}, "unknown"),
        ({"accuracy": "high"}, "accuracy"),
        ({"study": "no_such_study"}, "no study 'no_such_study'"),
        ({"study": "../os"}, "names its study"),
        ({"study": None}, "names its study"),
        ({"result": "Missing"}, "no result class 'Missing'"),
        ({"result": "other"}, "no result class 'other'"),
    ],
)
def test_damage_is_a_sentence(sample: SampleResult, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        result_from_dict({**sample.to_dict(), **change})


def test_the_wrong_class_refuses(sample: SampleResult) -> None:
    with pytest.raises(RunError, match="result_from_dict"):
        StudyResult.from_dict(sample.to_dict())
    assert SampleResult.from_dict(sample.to_dict()).summary == ["A sentence."]


def test_plot_is_the_first_figure_or_a_sentence(sample: SampleResult) -> None:
    assert sample.plot().layout.title.text == "one"
    with pytest.raises(RunError, match="'refusal' has no figure"):
        SkippedResult(study="refusal", reason="No.").plot()


def test_a_skipped_study_keeps_its_reason() -> None:
    skipped = SkippedResult(study="branching", reason="The vocabularies differ.")
    assert (skipped.status, skipped.summary) == ("skipped", ["The vocabularies differ."])
    assert result_from_dict(skipped.to_dict()) == skipped


def test_artefacts_stay_out_of_json(sample: SampleResult) -> None:
    class Kept:
        def save(self, path: object) -> None:
            raise AssertionError

    kept = Kept()
    with_files = sample.with_artefacts({"truth": kept})
    assert with_files.artefacts() == {"truth": kept}
    assert sample.artefacts() == {}
    assert with_files.to_dict() == sample.to_dict()


def test_wrong_shapes_and_names_are_refused(sample: SampleResult) -> None:
    with pytest.raises(ValidationError, match="row 1 has 1 cells for 2 columns"):
        Table(key="k", title="t", columns=["a", "b"], rows=[[1, 2], [1]])
    with pytest.raises(ValidationError, match="a name of small letters"):
        StudyResult(study="Not a name", summary=[])
    with pytest.raises(ValidationError, match="frozen"):
        sample.status = "skipped"  # type: ignore[misc]


def test_studies_are_known_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, steerlab.studies; assert 'branching' in dir(steerlab.studies)\n"
        "assert not {'torch', 'sklearn', 'scipy', 'plotly'} & set(sys.modules)\n"
        "assert callable(steerlab.studies.branching)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no 'nothing'"):
        _ = studies.nothing


def test_the_answer_of_what_is_not_identified_says_so(sample: SampleResult) -> None:
    said = ["Base refuses nothing.", "Refusal is not identified: both kinds are refused alike."]
    unclear = sample.model_copy(update={"summary": said, "status": "not identified"})
    assert unclear.argument().answer == said[1]
    assert unclear.model_copy(update={"status": "done"}).argument().answer == said[0]
