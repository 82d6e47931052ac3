"""What a run reads, and what its manifest says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlab import datasets, zoo
from steerlab.errors import DatasetError
from steerlab.run_data import data_facts, on_topics, read_data

TEMPLATE = "The city of {subject} is in {object}."


def test_pairs_take_the_place_of_statements_and_are_recorded(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    pairs = [
        {"true": "The city of Rome is in Italy.", "false": "The city of Oslo is in Italy."},
        {"true": "The city of Lima is in Peru.", "false": "The city of Bonn is in Peru."},
    ]
    file.write_text(json.dumps(pairs))
    data = read_data(pairs=file, template=TEMPLATE)
    assert not isinstance(data.statements, datasets.StatementSet)
    assert data.statements[0].true.spans.keys() == {"subject", "object"}
    facts = data_facts(data, ["statements"])
    assert facts.keys() == {"statements"}
    assert (facts["statements"]["n"], facts["statements"]["source"]) == (2, str(file))
    assert on_topics(data, zoo.known_statements().topics_present) is data
    with pytest.raises(DatasetError, match="not both"):
        read_data(statements=file, pairs=file)


def test_packaged_statements_are_on_the_topics_that_models_know() -> None:
    data = read_data()
    assert on_topics(data, ()) is data
    known = on_topics(data, zoo.known_statements().topics_present)
    assert known.labelled_statements.hash == zoo.known_statements().hash
    assert "bundled models" in known.source("statements")
    assert data_facts(known).keys() == {"statements", "requests", "open_prompts", "plain_text"}


def test_tables_and_sets_in_memory_are_data() -> None:
    """What a notebook holds: a frame, or what a reader made of it."""
    import pandas as pd

    rows = [
        (f"{city} is in {land}.", city, land == right) for city, right in CITIES for land in ("Italy", "Peru")
    ]
    frame = pd.DataFrame(rows, columns=["statement", "subject", "label"])
    as_frame = read_data(frame)
    as_set = read_data(datasets.read_statements(frame))
    assert [data_facts(data)["statements"]["n"] for data in (as_frame, as_set)] == [len(rows)] * 2
    assert data_facts(as_frame)["statements"]["hash"] == data_facts(as_set)["statements"]["hash"]
    assert as_frame.source("statements") == "DataFrame"
    assert as_set.source("statements") == "StatementSet"


CITIES = [("Rome", "Italy"), ("Lima", "Peru"), ("Milan", "Italy"), ("Cusco", "Peru")]
