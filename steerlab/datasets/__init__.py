"""Packaged statements, requests, contrasts and passages, and readers for the files people have."""

from __future__ import annotations

from steerlab.datasets import prompt_sets
from steerlab.datasets.choices import ChoicePair
from steerlab.datasets.contrast_set import ContrastSet
from steerlab.datasets.contrasts import contrast, contrasts
from steerlab.datasets.multiple_choice import (
    ChoiceQuestion,
    choice_questions,
    questions_hash,
    read_multiple_choice,
)
from steerlab.datasets.passages import open_prompts, plain_text
from steerlab.datasets.prompt_sets import read_prompts
from steerlab.datasets.questions import Question, question_statements
from steerlab.datasets.readers import read_caa, read_facts, read_requests, read_statements, read_truthful_qa
from steerlab.datasets.requests import requests
from steerlab.datasets.statement_pairs import Differ, Matching, StatementPair, match, read_pairs
from steerlab.datasets.statement_set import Statement, StatementSet
from steerlab.datasets.statements import statements
from steerlab.datasets.steering_tasks import SteeringTask, benign_requests, steering_task, steering_task_names
from steerlab.datasets.study_data import StudyData
from steerlab.datasets.tasks import Task, read_task
from steerlab.datasets.templates import with_template

__all__ = [
    "ChoicePair",
    "ChoiceQuestion",
    "ContrastSet",
    "Differ",
    "Matching",
    "Question",
    "Statement",
    "StatementPair",
    "StatementSet",
    "SteeringTask",
    "StudyData",
    "Task",
    "benign_requests",
    "choice_questions",
    "contrast",
    "contrasts",
    "match",
    "open_prompts",
    "plain_text",
    "prompt_sets",
    "question_statements",
    "questions_hash",
    "read_caa",
    "read_facts",
    "read_multiple_choice",
    "read_pairs",
    "read_prompts",
    "read_requests",
    "read_statements",
    "read_task",
    "read_truthful_qa",
    "requests",
    "statements",
    "steering_task",
    "steering_task_names",
    "with_template",
]
