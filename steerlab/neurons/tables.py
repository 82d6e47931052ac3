"""Published tables of neurons, and the filters with which entropy neurons were picked from them.

Columns of the universal-neurons tables (Gurnee et al., 2024) by our definitions: `w_out_norm` is our |w_out|;
`vocab_var` the *population* variance over the vocabulary of cos(w_out, u_v) (ours is unbiased: × V / (V − 1)),
with u_v the unembedding with folded gain, centred over the width, *not* over the vocabulary; `l2_penalty` is
‖w_in‖² + ‖w_out‖²; `vocab_kurt` the plain kurtosis (3 for a normal) of those cosines; `kurt` that of the
activations over data, which weights do not give.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from steerlab.errors import DatasetError

_NEEDED = ("layer", "neuron", "w_out_norm", "l2_penalty", "vocab_var", "vocab_kurt")


@dataclass(frozen=True)
class NeuronTable:
    """One row a neuron: its place and the columns of numbers by name."""

    layer: Int[np.ndarray, " row"]
    neuron: Int[np.ndarray, " row"]
    columns: dict[str, Float[np.ndarray, " row"]]

    def __len__(self) -> int:
        return len(self.layer)

    def entropy_neurons(
        self,
        *,
        first_layer: int,
        least_l2: float,
        most_kurtosis: float,
        most_variance: float = np.inf,
        most_activation_kurtosis: float = np.inf,
    ) -> list[tuple[int, int]]:
        """(layer, neuron) by rising vocab_var under the published filters of a model."""
        kept = (
            (self.layer >= first_layer)
            & (self.columns["l2_penalty"] >= least_l2)
            & (self.columns["vocab_kurt"] <= most_kurtosis)
            & (self.columns["vocab_var"] <= most_variance)
        )
        if np.isfinite(most_activation_kurtosis):
            kept &= self.columns["kurt"] <= most_activation_kurtosis
        rows = np.flatnonzero(kept)
        order = rows[np.argsort(self.columns["vocab_var"][rows], kind="stable")]
        return [(int(self.layer[row]), int(self.neuron[row])) for row in order]


def read_neuron_table(path: str | Path) -> NeuronTable:
    """A CSV of neurons. Raises `DatasetError` for another kind of file."""
    place = Path(path)
    try:
        with place.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{place} cannot be read: {error}.") from error
    if not rows or any(name not in rows[0] for name in _NEEDED):
        raise DatasetError(f"{place} is no table of neurons: it needs the columns {', '.join(_NEEDED)}.")
    try:
        columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0] if name}
    except ValueError as error:
        raise DatasetError(f"{place} holds something that is no number: {error}.") from error
    return NeuronTable(columns["layer"].astype(np.int64), columns["neuron"].astype(np.int64), columns)
