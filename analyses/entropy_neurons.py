"""Which neurons set a model's confidence, and do they explain what post-training did to it? On any pair, as a TOML
file says.

    python analyses/entropy_neurons.py analyses/zoo_small.toml

The confidence study with its neurons taken apart: candidates, overlap with its nulls, mean ablation, the entropy
gap by exchange of activations and weights, frequency neurons, temperature. With `per_layer = true` every layer's
neurons of both models are ablated one by one on a few texts as well (`figures/<name>/confidence_layers.csv`:
largest KL and change of entropy by layer). `questions` names a file of multiple choice in place of questions made from
the statements.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from _one_study import main

from steerlab import studies
from steerlab.datasets import StudyData
from steerlab.errors import SteerlabError
from steerlab.models import LanguageModel
from steerlab.neurons.layers import layer_effects
from steerlab.results import StudyResult
from steerlab.studies import Pair


def study(pair: Pair, data: StudyData, options: dict[str, Any]) -> StudyResult:
    """The confidence study, and the layers where they are asked for."""
    per_layer = options.pop("per_layer", False)
    result = studies.confidence(pair, data, **options)
    if per_layer:
        by_layer({"base": pair.base, "post": pair.post}, list(data.plain_text[:6]))
    return result


def by_layer(models: dict[str, LanguageModel], texts: list[str], folder: Path = Path("figures")) -> None:
    """The strongest neurons of every layer."""
    rows = []
    for role, model in models.items():
        for layer in range(model.n_layers):
            try:
                found = layer_effects(model, layer, texts)
            except SteerlabError as error:
                print(f"{role}, layer {layer}: {error}")
                continue
            kl, change = found.kl.mean(axis=0), found.entropy.mean(axis=0)
            for neuron in np.argsort(-kl)[:5].tolist():
                rows.append(
                    [role, layer, found.neurons[neuron], round(kl[neuron], 6), round(change[neuron], 6)]
                )
    path = folder / "confidence_layers.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "layer", "neuron", "kl", "entropy change"])
        writer.writerows(rows)
    print(path)


if __name__ == "__main__":
    main(__doc__ or "", "confidence", study, also=["per_layer"])
