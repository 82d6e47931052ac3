"""From labelled states to directions: estimators, and the `Direction` they make, which is also a file."""

from __future__ import annotations

from steerlab.directions._header import ModelRef, SiteStatistics
from steerlab.directions.caa import caa_direction, choice_prompts, equal_norms, swap_choices
from steerlab.directions.calibration import ScoreCalibration
from steerlab.directions.ccs import Ccs
from steerlab.directions.cluster_directions import ClusterDirections
from steerlab.directions.concept_cone import ConceptCone
from steerlab.directions.coordinates import InCoordinates, dominance
from steerlab.directions.difference_in_means import DifferenceInMeans
from steerlab.directions.direction import Direction
from steerlab.directions.fitting import fit_direction
from steerlab.directions.foreign import read_caa, read_gguf, read_refusal_direction, read_steering_vectors
from steerlab.directions.iti import HeadScores, head_direction, score_heads
from steerlab.directions.lda import Lda
from steerlab.directions.leace import Leace, erasing
from steerlab.directions.linear import LinearDirection
from steerlab.directions.logistic_probe import LogisticProbe
from steerlab.directions.mass_mean import MassMean
from steerlab.directions.outside import outside
from steerlab.directions.pca_reader import PcaReader
from steerlab.directions.registry import ESTIMATORS
from steerlab.directions.several import SeveralDirections
from steerlab.directions.sign_agreement import agreement
from steerlab.directions.sparse_autoencoders import read_sae
from steerlab.directions.ttpd import Ttpd

__all__ = [
    "ESTIMATORS",
    "Ccs",
    "ClusterDirections",
    "ConceptCone",
    "DifferenceInMeans",
    "Direction",
    "HeadScores",
    "InCoordinates",
    "Lda",
    "Leace",
    "LinearDirection",
    "LogisticProbe",
    "MassMean",
    "ModelRef",
    "PcaReader",
    "ScoreCalibration",
    "SeveralDirections",
    "SiteStatistics",
    "Ttpd",
    "agreement",
    "caa_direction",
    "choice_prompts",
    "dominance",
    "equal_norms",
    "erasing",
    "fit_direction",
    "head_direction",
    "outside",
    "read_caa",
    "read_gguf",
    "read_refusal_direction",
    "read_sae",
    "read_steering_vectors",
    "score_heads",
    "swap_choices",
]
