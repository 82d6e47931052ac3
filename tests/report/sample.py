"""Results with every figure primitive and every kind of cell, and texts that try to break out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from steerlab import plots, statistics
from steerlab.plots import Series
from steerlab.results import Headline, SkippedResult, StudyResult, Table
from steerlab.statistics import Estimate

NASTY = "</script><script>window.broken = 1</script><img src=https://example.org/x onerror=alert(1)> & <b>bold</b> $x$"

MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "status": "done",
    "created": "2026-01-02T03:04:05+00:00",
    "models": {
        "base": {
            "name": "zoo/large-base",
            "fingerprint": "abc123",
            "layers": 6,
            "chat template": False,
            "dtype": "float32",
        },
        "post": {
            "name": f"runs/{NASTY}",
            "fingerprint": "def456",
            "layers": 6,
            "chat template": True,
            "dtype": "float32",
        },
    },
    "data": {
        "statements": {"n": 300, "hash": "aa11", "source": "packaged"},
        "requests": {"n": 120, "hash": "bb22", "source": NASTY},
    },
    "configuration": {"studies": ["truthfulness", "refusal"], "size": "quick", "seed": 0},
    "versions": {"steerlab": "0.1.0", "torch": "2.13"},
    "hardware": {"device": "cpu", "threads": 2},
    "timings": {"truthfulness": 12.5, "refusal": 20.25},
}


def estimate(value: float, half: float = 0.05) -> Estimate:
    return Estimate(
        value=value, low=value - half, high=value + half, n=60, method="cluster bootstrap, seed 0"
    )


class Truth(StudyResult):
    """Curves, heat maps, scatter."""

    study: Literal["truthfulness"] = "truthfulness"
    cosine: list[Estimate]

    def figures(self) -> dict[str, go.Figure]:
        rng = np.random.default_rng(0)
        layers = np.arange(6)
        rise = 0.9 - 0.8 * np.exp(-layers)
        cells = np.array([[0.95, 0.91], [0.93, 0.97]])
        grid = rng.uniform(-0.4, 0.9, size=(6, 6))
        return {
            "cosine": plots.curves(
                [
                    Series("BASE · POST", rise, rise - 0.06, rise + 0.04, role="other"),
                    Series("split-half ceiling", np.full(6, 0.97), np.full(6, 0.95), np.full(6, 0.985)),
                    Series("random directions", np.zeros(6), np.full(6, -0.12), np.full(6, 0.12)),
                ],
                title="Cosine between the truth directions of BASE and POST",
                x_title="Layer", y_title="Cosine", zero_line=True,
            ),
            "probes": plots.heatmap(
                cells, ["BASE", "POST"], ["BASE", "POST"], title="Probe transfer on a held-out topic",
                low=cells - 0.04, high=cells + 0.02, x_title="read in", y_title="fitted on",
                colour_title="accuracy", limits=(0.5, 1),
            ),
            "layers": plots.heatmap(
                grid, [f"layer {i}" for i in range(6)], [f"layer {i}" for i in range(6)],
                title=f"Cosine between layers of {NASTY}", diverging=True, x_title="POST", y_title="BASE",
            ),
            "separation": plots.scatter(
                [
                    Series("BASE", rng.normal(1, 1, 40), x=rng.normal(1, 1, 40), labels=[NASTY] * 40),
                    Series("POST", rng.normal(-1, 1, 40), x=rng.normal(-1, 1, 40), labels=["a plain statement"] * 40),
                ],
                title="Statements on the two truth directions", x_title="BASE direction", y_title="POST direction",
                diagonal=True,
            ),
        }  # fmt: skip

    def tables(self) -> list[Table]:
        rows: list[list[Any]] = [
            [layer, one, Estimate(value=0.0, low=-0.12, high=0.12)] for layer, one in enumerate(self.cosine)
        ]
        return [
            Table(
                key="cosine", title="Cosine by layer", columns=["Layer", "Cosine", "Random"], rows=rows,
                note="Test split.",
            ),
            Table(
                key="examples", title="Examples", columns=["Statement", "Label", "Score", "Rows"],
                rows=[[NASTY, True, 0.12345, 1234], ["=1+1", False, None, 2]],
            ),
        ]  # fmt: skip


class Confidence(StudyResult):
    """Reliability, bars, histogram, a long table and a figure without numbers."""

    study: Literal["confidence"] = "confidence"

    def figures(self) -> dict[str, go.Figure]:
        rng = np.random.default_rng(1)
        series = []
        for name, lean in (("BASE", 0.0), ("POST", 0.2)):
            sure = rng.uniform(0.4, 1, 300)
            curve = statistics.reliability_curve(sure, rng.random(300) < sure - lean)
            series.append(
                Series(
                    name, [b.accuracy.value for b in curve], [b.accuracy.low for b in curve],
                    [b.accuracy.high for b in curve], x=[b.confidence for b in curve], n=[b.n for b in curve],
                )
            )  # fmt: skip
        groups = ["cities", "elements", NASTY, "a topic with a rather long name"]
        heights = rng.uniform(0.3, 0.9, size=(3, 4))
        return {
            "reliability": plots.reliability(series, title="Confidence against share right"),
            "topics": plots.bars(
                groups,
                [
                    Series(name, row, row - 0.08, row + 0.08)
                    for name, row in zip(("BASE", "POST", "shuffled labels"), heights, strict=True)
                ],
                title="Accuracy by topic", y_title="Accuracy", y_range=(0, 1),
            ),
            "null": plots.histogram(
                [Series("shuffled labels", rng.normal(0.03, 0.01, 500))],
                title="Calibration error against its null", x_title="Calibration error", marks=[("POST", 0.11)],
            ),
            "nothing": plots.curves([Series("BASE", [np.nan])], title="A curve without a number"),
        }  # fmt: skip

    def tables(self) -> list[Table]:
        rows: list[list[Any]] = [[f"neuron {i}", i, estimate(0.5 + i / 100)] for i in range(40)]
        return [Table(key="neurons", title="Candidates", columns=["Neuron", "Index", "Weight"], rows=rows)]


def results() -> list[StudyResult]:
    return [
        Truth(
            summary=[
                "BASE and POST hold nearly the same truth direction from layer 1 on.",
                "A probe fitted on one model reads the other almost as well as itself.",
            ],
            headline=Headline(
                what="cosine at layer 3",
                value=estimate(0.93),
                control=estimate(0.0, 0.12),
                control_name="random directions",
            ),
            cosine=[estimate(0.1 * layer) for layer in range(6)],
        ),
        StudyResult(
            study="refusal",
            status="not identified",
            summary=[f"Not identified: neither model refuses {NASTY} more often than chance."],
            headline=Headline(what="refusal rate", value=Estimate(value=0.02, low=0.0, high=0.07)),
        ),
        Confidence(summary=["POST is surer than it is right."]),
        SkippedResult(study="branching", reason="The two models have different vocabularies."),
    ]
