"""From a direction to a probe: its scores on chats without the thing, kept in its file for alarms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from steerlab.directions import Direction, ScoreCalibration
from steerlab.errors import SteeringError, kind_of
from steerlab.models import LanguageModel
from steerlab.monitoring.chats import Chat, answers_of, score_chats
from steerlab.monitoring.watching import one_vector, unit_vectors


def calibrate(direction: Direction, model: LanguageModel, *, without: Iterable[Chat]) -> Direction:
    """The direction with its scores on chats where what it looks for is absent: a probe that alarms can use.

    Use chats that the direction was not fitted on, and that are like those it will watch: an alarm's promise holds for
    such chats only. Their answers may be written by this model or by others; every token of an answer is read, as a
    watch reads what is written.

    Args:
        direction: one vector at one site; of several sites its best one is taken.
        without: pairs (question, answer), conversations that an assistant ends, or rows with "prompt" and "answer".
            Every answer of a conversation counts.

    Example:
        >>> probe = sl.calibrate(direction, model, without=chats)  # doctest: +SKIP
        >>> probe.save("probe.safetensors")  # doctest: +SKIP

    Raises:
        SteeringError: no chats, one without an answer, or several sites or vectors.
        DirectionError: the direction belongs to another model.
    """
    given: object = direction
    if isinstance(given, LanguageModel):
        raise SteeringError(
            "sl.calibrate makes a probe of a direction, which comes first; the strength of an intervention is found by "
            "sl.calibrate_strength(model, ...)."
        )
    probe = one_vector(direction)
    if not isinstance(model, LanguageModel):
        raise SteeringError(f"A probe is calibrated in a model of sl.load, not in {kind_of(model)}.")
    probe.check(model)
    (site,) = probe.sites
    read = score_chats(model, answers_of(model, without), site, unit_vectors([probe], site))
    known = ScoreCalibration(
        scores=read.values[:, 0],
        answers=read.answer,
        conversations=read.conversation,
        dataset_hash=read.dataset_hash,
    )
    return replace(probe, calibration=known)
