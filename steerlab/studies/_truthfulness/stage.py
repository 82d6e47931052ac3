"""How well one model by itself labels statements, whatever it answers by habit."""

from __future__ import annotations

import numpy as np

from steerlab.datasets import StudyData
from steerlab.models import LanguageModel
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.readouts.questions import ANSWERS, plan, question
from steerlab.registry import Size
from steerlab.studies._pair import Pair, amounts_of
from steerlab.studies._truthfulness.answers import Examinee, words_for
from steerlab.studies._truthfulness.study import AMOUNTS

_SHOTS = 4


def stage(model: LanguageModel, data: StudyData, *, size: Size = "quick", seed: int = 0) -> list[Reading]:
    """Statements labelled right and the log-odds of the right answer, both against the habit of the other topics.

    The habit is the median of the log-odds of TRUE over the statements of the other topics.

    Raises:
        SteerlabError: too few statements, or answers that this model cannot be asked for.
    """
    amount = AMOUNTS[amounts_of(size, Pair(model, model))]
    used = plan(data.labelled_statements, per_topic=amount.per_topic, seed=seed)
    rows = used.balanced([fold.test[0] for fold in used.folds], amount.questions, seed)
    asked = [question(used.statements[int(row)], (), ANSWERS[0]) for row in rows[:8]]
    examinee = Examinee("model", model, words_for(model, ANSWERS[0], asked), ())
    shots = _SHOTS if examinee.has_room(used, rows, _SHOTS) else 0
    odds = examinee.answers(examinee.prompts(used, rows, shots))[:, 1]
    habit = np.zeros(len(rows))
    for fold in used.folds:
        habit[np.isin(used.groups[rows], fold.test)] = np.median(odds[np.isin(used.groups[rows], fold.train)])
    margin = np.where(used.labels[rows], odds - habit, habit - odds)
    units = unit_names([used.statements[int(row)].text for row in rows])
    how = f"{shots} labelled lines, {examinee.words.scored}"
    return [
        Reading.of(
            Quantity(study="truthfulness", of="statements", measure="labelled right", share=True),
            units,
            margin > 0,
            used.clusters[rows],
            how,
        ),
        Reading.of(
            Quantity(
                study="truthfulness", of="statements", measure="log-odds of the right label", unit="nats"
            ),
            units,
            margin,
            used.clusters[rows],
            how,
        ),
    ]
