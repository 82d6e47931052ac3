"""Facts as ROME keeps them (known_1000, CounterFact): a prompt about a subject, and the attribute that goes on."""

from __future__ import annotations

from typing import Any

from steerlab.datasets.readers.table import Row, read_table
from steerlab.datasets.statement_set import Statement, StatementSet

_COLUMNS = ("prompt", "subject", "attribute")


def read_facts(path: Any) -> StatementSet:
    """True statements from rows of prompt, subject and attribute: "The Eiffel Tower is in" + " Paris".

    The spans "subject" and "object" are marked, the topic is the row's `relation_id` where it has one; what
    `studies.facts_of` takes. Source of the format: Meng et al. (2022), known facts.

    Raises:
        DatasetError: a column is missing or empty, or the subject does not stand in the prompt.
    """
    table = read_table(path)
    table.require(*_COLUMNS)
    return StatementSet(_statement(row) for row in table.rows)


def _statement(row: Row) -> Statement:
    prompt, subject, attribute = (row.text(column).strip() for column in _COLUMNS)
    at = prompt.find(subject)
    if at < 0:
        raise row.fault("subject", "it does not stand in the prompt as it is written; correct one of them.")
    text = f"{prompt} {attribute}"
    spans = {"subject": (at, at + len(subject)), "object": (len(prompt) + 1, len(text))}
    topic = row.text("relation_id") if row.has("relation_id") else "facts"
    return Statement(f"{text}.", True, topic, spans=spans)
