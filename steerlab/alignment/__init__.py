"""Maps between two models' spaces: matched rows in, an aligner with its diagnostics out, directions carried across.

pairs = PairedActivations.read(small, large, prompts)
alignment = align(pairs)
moved = alignment.transfer(direction)
print(alignment.diagnose(pairs, direction).sentence)
"""

from __future__ import annotations

from steerlab.alignment._aligner import Aligner
from steerlab.alignment.affine import AffineMap
from steerlab.alignment.alignment import Alignment, align, layer_scores
from steerlab.alignment.anchor import Anchor
from steerlab.alignment.cca import Cca
from steerlab.alignment.cka import cka_null, debiased_cka
from steerlab.alignment.controls import MeanOnly, RandomOrthogonal, ShuffledPairs, ZeroPad
from steerlab.alignment.cross_moments import CrossMoments
from steerlab.alignment.diagnostics import AlignmentReport, LayerReport, examine, r2_diff, r2_point
from steerlab.alignment.layer_map import LayerMap
from steerlab.alignment.paired import PairedActivations
from steerlab.alignment.procrustes import Procrustes
from steerlab.alignment.reduced_rank import ReducedRank
from steerlab.alignment.registry import ALIGNERS
from steerlab.alignment.ridge import Ridge
from steerlab.alignment.svd_regression import SvdRegression
from steerlab.old_names import old_names

__all__ = [
    "ALIGNERS",
    "AffineMap",
    "Aligner",
    "Alignment",
    "AlignmentReport",
    "Anchor",
    "Cca",
    "CrossMoments",
    "LayerMap",
    "LayerReport",
    "MeanOnly",
    "PairedActivations",
    "Procrustes",
    "RandomOrthogonal",
    "ReducedRank",
    "Ridge",
    "ShuffledPairs",
    "SvdRegression",
    "ZeroPad",
    "align",
    "cka_null",
    "debiased_cka",
    "examine",
    "layer_scores",
    "r2_diff",
    "r2_point",
]

__getattr__ = old_names(__name__, {"Affine": "steerlab.alignment.AffineMap"})
