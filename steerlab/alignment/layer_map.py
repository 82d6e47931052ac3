"""Which layer of the source a layer of the target is fitted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from steerlab.errors import AlignmentError


@dataclass(frozen=True)
class LayerMap:
    """Source layer by target layer; `how` says where it comes from."""

    layers: Mapping[int, int]
    how: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(sorted(self.layers.items()))))

    def __getitem__(self, target: int) -> int:
        """The source layer of a target layer. Raises `AlignmentError` where there is none."""
        if target not in self.layers:
            raise AlignmentError(f"The layer map has no target layer {target}; it has {list(self.layers)}.")
        return self.layers[target]

    @classmethod
    def proportional(cls, n_source: int, n_target: int) -> LayerMap:
        """⌊(L_s − 1) l_t / (L_t − 1)⌋, at most L_s − 1: both ends meet (published)."""
        _require(n_source, n_target)
        last = max(n_target - 1, 1)
        layers = {at: min((n_source - 1) * at // last, n_source - 1) for at in range(n_target)}
        if n_target == 1:
            layers = {0: n_source - 1}
        return cls(layers, "proportional")

    @classmethod
    def by_score(cls, scores: Float[np.ndarray, "source target"], *, monotone: bool = True) -> LayerMap:
        """The best source layer for every target layer; `monotone`: the best path that never goes back, by dynamic
        programming over the sum of the scores.

        Raises:
            AlignmentError: scores that are not a matrix of finite numbers.
        """
        table = np.asarray(scores, dtype=np.float64)
        if table.ndim != 2 or not np.isfinite(table).all():
            raise AlignmentError("A layer map needs finite scores [source layer, target layer].")
        _require(*table.shape)
        if not monotone:
            return cls({at: int(best) for at, best in enumerate(table.argmax(axis=0))}, "by score")
        best, came = table[:, 0].copy(), np.zeros(table.shape, dtype=int)
        for at in range(1, table.shape[1]):
            # the best place up to each source layer, the deepest of equals last
            upto = np.array([int(np.argmax(best[: layer + 1])) for layer in range(len(best))])
            came[:, at] = upto
            best = best[upto] + table[:, at]
        path = [int(np.argmax(best))]
        for at in range(table.shape[1] - 1, 0, -1):
            path.append(int(came[path[-1], at]))
        return cls(dict(enumerate(reversed(path))), "by score, monotone")

    @classmethod
    def explicit(cls, layers: Mapping[int, int]) -> LayerMap:
        """Source layer by target layer, as given.

        Raises:
            AlignmentError: no target layer.
        """
        if not layers:
            raise AlignmentError("A layer map needs at least one target layer.")
        return cls(layers, "explicit")

    def require(self, n_source: int, n_target: int) -> None:
        """Raise `AlignmentError` for a layer that one of the models has not."""
        for target, source in self.layers.items():
            if not (0 <= target < n_target and 0 <= source < n_source):
                raise AlignmentError(
                    f"The layer map sends source layer {source} to target layer {target}, but the models have "
                    f"{n_source} and {n_target} layers."
                )


def _require(n_source: int, n_target: int) -> None:
    if n_source < 1 or n_target < 1:
        raise AlignmentError(f"A layer map needs layers on both sides; there are {n_source} and {n_target}.")
