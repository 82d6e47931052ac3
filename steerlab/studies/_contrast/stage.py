"""What a contrast is to one model by itself: is its direction there, and how far apart does it hold the classes?

A direction that never saw a text's group, at a layer chosen without it, gives the text a place

    g = 2 s (w . h - m) / sd,

s = 1 for the class that the direction points to and -1 for the other, w the difference of the class means, m the
middle between them and sd the spread of w . h inside the classes, all three of the fold's rest. The mean of g over
texts is the distance of the classes in spreads (Cohen's d); a text is told right where g > 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from steerlab.datasets import StudyData
from steerlab.models import LanguageModel
from steerlab.readouts.contrasts import read_contrasts
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.registry import Size
from steerlab.studies._contrast.reading import Reading as States
from steerlab.studies._contrast.reading import Texts, read


def stage(model: LanguageModel, data: StudyData, *, size: Size = "quick", seed: int = 0) -> list[Reading]:
    """Two quantities of each contrast of `data`: held-out accuracy and the gap between the classes.

    Raises:
        SteerlabError: a contrast that this model cannot read.
    """
    made = []
    for name, one in read_contrasts(data.contrasts).items():
        texts = Texts.of(one, seed)
        gaps = class_gaps(read({"model": model}, texts, seed)["model"], texts)
        units = unit_names(one.data.texts, one.data.labels)
        direction = Quantity(
            study="contrast", of=name, measure="held-out texts told right by its direction", share=True
        )
        gap = Quantity(
            study="contrast", of=name, measure="gap of the classes along its direction", unit="spreads"
        )
        made += [
            Reading.of(direction, units, np.where(np.isfinite(gaps), gaps > 0, np.nan), texts.groups),
            Reading.of(gap, units, gaps, texts.groups),
        ]
    return made


def class_gaps(states: States, texts: Texts) -> Float[np.ndarray, " text"]:
    """g of every text, by directions that saw nothing of its group."""
    found = np.full(len(texts.labels), np.nan)
    sides = np.where(texts.labels == 1, 1.0, -1.0)
    for (train, test), layer in zip(texts.folds, states.layers, strict=True):
        rows = states.stack[layer].astype(np.float64)
        x, side = rows[train], sides[train]
        means = [x[side == end].mean(axis=0) for end in (1, -1)]
        direction = means[0] - means[1]
        along = x @ direction
        inside = np.concatenate([along[side == end] - along[side == end].mean() for end in (1, -1)])
        spread = np.sqrt((inside**2).sum() / (len(inside) - 2))
        middle = (means[0] + means[1]) @ direction / 2
        if spread > 0:  # every text of a class at one place: no unit to measure in
            found[test] = 2 * sides[test] * (rows[test] @ direction - middle) / spread
    return found
