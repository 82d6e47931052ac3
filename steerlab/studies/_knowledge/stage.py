"""What one model by itself knows of statements: pairs of a true and a false one, answered right on both sides."""

from __future__ import annotations

from steerlab.datasets import StudyData
from steerlab.models import LanguageModel
from steerlab.readouts.quantities import Quantity, Reading, unit_names
from steerlab.readouts.questions import answer_words
from steerlab.registry import Size
from steerlab.studies._knowledge.gates import answered_pairs
from steerlab.studies._knowledge.study import AMOUNTS
from steerlab.studies._pair import Pair, amounts_of


def stage(model: LanguageModel, data: StudyData, *, size: Size = "quick", seed: int = 0) -> list[Reading]:
    """Pairs answered right on both sides, and the logit difference between them.

    Raises:
        SteerlabError: statements that cannot be paired, or answers that this model cannot be asked for.
    """
    words = answer_words([model])
    asked = AMOUNTS[amounts_of(size, Pair(model, model))].asked
    pairs, own = answered_pairs({"model": model}, data.statements, words, "subject", None, False, seed, asked)
    answers = own["model"]
    units = unit_names([f"{pair.true.text}\n{pair.false.text}" for pair in pairs.pairs])
    how = f"{pairs.shots} labelled lines, {words[0].strip()} or {words[1].strip()}"
    of = "pairs of statements"
    return [
        Reading.of(
            Quantity(study="knowledge", of=of, measure="both answered right", share=True),
            units,
            answers.right,
            pairs.clusters,
            how,
        ),
        Reading.of(
            Quantity(study="knowledge", of=of, measure="logit difference, true less false", unit="logits"),
            units,
            answers.true - answers.false,
            pairs.clusters,
            how,
        ),
    ]
