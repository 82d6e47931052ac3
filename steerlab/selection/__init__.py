"""Choosing where a direction is read and acts, on validation prompts."""

from __future__ import annotations

from steerlab.selection.candidates import Candidate, Selection, read_scores, survivors, way
from steerlab.selection.select import select_direction

__all__ = ["Candidate", "Selection", "read_scores", "select_direction", "survivors", "way"]
