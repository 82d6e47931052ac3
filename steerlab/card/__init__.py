"""The steering card: what a person must know before using a vector."""

from __future__ import annotations

from steerlab.card.making import steering_card
from steerlab.card.predictor import Predictor, predictor
from steerlab.card.result import SteeringCard

__all__ = ["Predictor", "SteeringCard", "predictor", "steering_card"]
