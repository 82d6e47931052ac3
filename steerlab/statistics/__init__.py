"""The intervals and tests that studies share: bootstrap over prompts, shares, nulls, calibration errors.

Imports nothing of steerlab's but `record`. Everything random takes a seed; every interval says how it was made
(`Estimate.method`). What only one room needs (cosines without bias, say) stands there and makes an `Estimate`, too.
"""

from __future__ import annotations

from steerlab.statistics.calibration import (
    ReliabilityBin,
    auroc,
    brier_score,
    calibration_null,
    expected_calibration_error,
    reliability_curve,
)
from steerlab.statistics.conformal import conformal_threshold, units_needed
from steerlab.statistics.estimate import Estimate, Number, mean_and_extremes, percent
from steerlab.statistics.nulls import (
    CosineNull,
    benjamini_hochberg,
    cosine_null,
    holm,
    permutation_null,
    permutation_p_value,
    spearman_brown,
    split_half,
)
from steerlab.statistics.proportions import PairedTest, mcnemar, paired_share, proportion
from steerlab.statistics.resampling import (
    bootstrap,
    bootstrap_curve,
    bootstrap_mean,
    but_for_rounding,
    mean_test,
    paired_difference,
    paired_log_ratio,
)

__all__ = [
    "CosineNull",
    "Estimate",
    "Number",
    "PairedTest",
    "ReliabilityBin",
    "auroc",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_curve",
    "bootstrap_mean",
    "brier_score",
    "but_for_rounding",
    "calibration_null",
    "conformal_threshold",
    "cosine_null",
    "expected_calibration_error",
    "holm",
    "mcnemar",
    "mean_and_extremes",
    "mean_test",
    "paired_difference",
    "paired_log_ratio",
    "paired_share",
    "percent",
    "permutation_null",
    "permutation_p_value",
    "proportion",
    "reliability_curve",
    "spearman_brown",
    "split_half",
    "units_needed",
]
