"""Readers of the formats people already have, told apart by their columns and not by their names.

| what | file | read by |
|---|---|---|
| labelled rows | `text,label` in CSV, JSON Lines, a JSON list, Parquet, a frame | `read_statements`, `read_requests` |
| Geometry of Truth, RepE facts | CSV `statement,label`, with `city,country` and the like | `read_statements` |
| TruthfulQA | its CSV | `read_truthful_qa`, `read_statements` |
| refusal_direction | JSON lists of `{"instruction": ...}`, a folder of six | `read_requests` |
| AdvBench | CSV `goal,target` | `read_requests` |
| multiple choice | rows `question,choices,answer`, or lettered answers | `read_multiple_choice` |
| ROME's known facts, CounterFact | rows `prompt,subject,attribute` | `read_facts` |
| pairs of statements | rows `true,false`, or JSON with two lists | `read_pairs` |
| contrastive activation addition | JSON list of questions with two lettered answers | `read_caa` |

Every fault is a `DatasetError` that names file, row and column, with the rows of data counted from 1 (a CSV's header is
row 0). It never repeats a prompt: those of a refusal set are not for showing.
"""

from __future__ import annotations

from steerlab.datasets.readers.caa import read_caa
from steerlab.datasets.readers.facts import read_facts
from steerlab.datasets.readers.published import read_published
from steerlab.datasets.readers.requests import read_requests
from steerlab.datasets.readers.statements import read_statements
from steerlab.datasets.readers.truthful_qa import read_truthful_qa

__all__ = ["read_caa", "read_facts", "read_published", "read_requests", "read_statements", "read_truthful_qa"]
