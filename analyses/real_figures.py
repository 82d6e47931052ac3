"""Draws the first figures of README and "What we found on real models" from committed tables.

    python analyses/real_figures.py [--figures figures]

`real_models/truth_topics.svg`: accuracy by layer on topics never seen, three models (`truth_topics/by_layer.csv`).
`real_models/refusal.svg`: what ablating the direction leaves of refusal in Gemma-3-270M with the adapter `safe`,
beside random directions and the published way (`gemma_base_safe/refusal_rates.csv`). A figure whose table is not there
is left out; no model is read. Drawing needs a browser (`steerlab.plots.save`).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from plotly.graph_objects import Figure

from steerlab.plots import Series, bars, curves, save
from steerlab.statistics import Estimate

Rows = list[dict[str, str]]
TOPICS = {"statements": "affirmed", "centring": "topics apart", "judged_on": "all"}
ESTIMATOR = "logistic regression, standardised"
#: Label, intervention, direction and prompts of the rows of a refusal study.
SHOWN = (
    ("unsteered", "none", "none"),
    ("own direction ablated", "ablation", "post"),
    ("random directions, same way", "ablation", "random"),
    ("own direction, published way", "ablation", "post, as published"),
)


def read(path: Path) -> Rows:
    """The rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def truth_topics(rows: Rows) -> Figure:
    """A curve a model, and what shuffled labels give, the mean over models."""
    mine = [row for row in rows if row["estimator"] == ESTIMATOR]
    mine = [row for row in mine if all(row[name] == value for name, value in TOPICS.items())]
    lines = []
    for model in dict.fromkeys(row["model"] for row in mine):
        own = sorted((row for row in mine if row["model"] == model), key=lambda row: int(row["layer"]))
        depth = [int(row["layer"]) for row in own]
        name = model.rpartition("/")[2]
        accuracy = [float(row["accuracy"]) for row in own]  # three bands would hide one another
        lines.append(Series(name, y=accuracy, x=depth, role="other"))
    layers = sorted({int(row["layer"]) for row in mine})
    control = [fmean(float(row["control"]) for row in mine if int(row["layer"]) == layer) for layer in layers]
    lines.append(Series("shuffled labels", y=control, x=layers, role="control"))
    return curves(
        lines,
        title="Truth on topics never seen: six topics, each held out in turn",
        x_title="Layer",
        y_title="Accuracy",
        y_range=(0.4, 0.9),
    )


def refusal(rows: Rows) -> Figure:
    """Shares of unseen harmful requests refused and answered with gibberish, by what is ablated."""
    found = {
        (row["intervention"], row["direction"]): row
        for row in rows
        if (row["model"], row["prompts"]) == ("post", "harmful")
    }
    shown = [(label, found[how, what]) for label, how, what in SHOWN if (how, what) in found]
    return bars(
        [label for label, _ in shown],
        [shares(name, column, [row for _, row in shown]) for name, column in COLUMNS],
        title="Gemma-3-270M + safe: unseen harmful requests",
        y_title="Share of answers",
        y_range=(0.0, 1.05),
    )


COLUMNS = (("refused", "refuses"), ("gibberish", "gibberish"))


def shares(name: str, column: str, rows: Sequence[dict[str, str]]) -> Series:
    """One column of a refusal study's rates as bars."""
    values = [estimate(row, column, f"{column} low", f"{column} high") for row in rows]
    return Series.of(name, values, role="post" if column == "refuses" else "control")


def estimate(row: dict[str, str], value: str, low: str, high: str) -> Estimate:
    """A cell with its interval."""
    return Estimate(value=float(row[value]), low=float(row[low]), high=float(row[high]))


FIGURES: dict[str, tuple[str, Callable[[Rows], Figure]]] = {
    "truth_topics": ("truth_topics/by_layer.csv", truth_topics),
    "refusal": ("gemma_base_safe/refusal_rates.csv", refusal),
}


def main() -> None:
    """Draw every figure whose table is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--figures", type=Path, default=Path("figures"), help="where tables are and figures go"
    )
    folder = parser.parse_args().figures
    for name, (table, draw) in FIGURES.items():
        if (folder / table).exists():
            saved = save(draw(read(folder / table)), folder / "real_models" / f"{name}.svg", height=460)
            print(saved.reason or saved.path)


if __name__ == "__main__":
    main()
