"""Statements and requests in a published format, told from a person's own rows by folder, columns and labels."""

from __future__ import annotations

from typing import Any

from steerlab.datasets.contrast_set import ContrastSet
from steerlab.datasets.readers.requests import read_requests
from steerlab.datasets.readers.statements import read_statements
from steerlab.datasets.readers.table import Table, folder_of, read_table
from steerlab.datasets.readers.truthful_qa import is_truthful_qa
from steerlab.datasets.statement_set import StatementSet

_TRUTH = {"true", "false", "1", "0"}
_HARM = {"harmful", "harmless"}
_OF_STATEMENTS = {"statement", "topic", "subject", "object", "polarity"}
_OF_REQUESTS = {"instruction", "goal"}
_OWN_GROUPS = {"group", "pair"}


def read_published(path: Any) -> StatementSet | ContrastSet | None:
    """Statements or requests; None for rows that are a person's own contrast.

    Statements are TruthfulQA's, Geometry of Truth's, and rows with a topic or a subject. Requests are labelled harmful
    and harmless, or lie in a folder as of refusal_direction or AdvBench.

    Rows with a group or pair column are a person's own: they say themselves what is held out together.
    Raises `DatasetError` where a file or folder in a published format is not sound.
    """
    if (folder := folder_of(path)) is not None:
        return read_requests(folder) if any(folder.glob("harm*")) else read_statements(folder)
    table = read_table(path)
    if is_truthful_qa(table):
        return read_statements(path)
    if _OWN_GROUPS & set(table.columns):
        return None
    labels = _labels(table)
    if labels and labels <= _TRUTH and _OF_STATEMENTS & set(table.columns):
        return read_statements(path)
    if labels == _HARM or (not labels and _OF_REQUESTS & set(table.columns)):
        return read_requests(path)
    return None


def _labels(table: Table) -> set[str]:
    return {str(row.cells.get("label", "")).strip().lower() for row in table.rows} - {""}
