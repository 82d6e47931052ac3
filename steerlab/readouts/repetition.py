"""Does an answer go round in circles? It loops where most windows of four tokens in it stood there before.

loops = 2 · |distinct windows| < |windows|
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from steerlab.models import Generation

WINDOW = 4  # tokens


def loops(written: Sequence[Generation]) -> Bool[np.ndarray, " answer"]:
    """Of each answer, whether most windows of it stood in it before; one shorter than a window does not."""
    return np.array([_loops(answer.token_ids) for answer in written], dtype=bool)


def _loops(ids: Sequence[int]) -> bool:
    windows = [tuple(ids[at : at + WINDOW]) for at in range(len(ids) - WINDOW + 1)]
    return 2 * len(set(windows)) < len(windows)
