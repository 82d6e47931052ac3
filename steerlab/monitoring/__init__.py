"""Probes while the model writes: scores of every token, and alarms with a promised rate.

`model.watch(probe)` is the door; `calibrate` makes a probe of a direction, `Alarm` a threshold of a probe, and `assess`
measures whether the alarm keeps its promise, on chats like those it was calibrated on and on others.
"""

from __future__ import annotations

from steerlab.monitoring.alarm import Alarm
from steerlab.monitoring.assessment import Assessment, assess
from steerlab.monitoring.calibrating import calibrate
from steerlab.monitoring.chats import read_chats
from steerlab.monitoring.registry import MONITORS
from steerlab.monitoring.seen import Alarmed, Scores, Seen

__all__ = [
    "MONITORS",
    "Alarm",
    "Alarmed",
    "Assessment",
    "Scores",
    "Seen",
    "assess",
    "calibrate",
    "read_chats",
]
