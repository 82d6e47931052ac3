"""Packaged statements, requests and passages, and readers for people's own files."""

from __future__ import annotations

from steerlab.datasets.choices import ChoicePair
from steerlab.datasets.contrast import ContrastSet
from steerlab.datasets.passages import open_prompts, plain_text
from steerlab.datasets.readers import read_requests, read_statements
from steerlab.datasets.requests import requests
from steerlab.datasets.statements import Statement, StatementSet, statements

__all__ = [
    "ChoicePair",
    "ContrastSet",
    "Statement",
    "StatementSet",
    "open_prompts",
    "plain_text",
    "read_requests",
    "read_statements",
    "requests",
    "statements",
]
