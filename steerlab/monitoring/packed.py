"""Probes in packed passes: x·v̂ of every token of the requests that are watched.

Hooks stand at the probes' sites, behind those that steer when they are placed later. Scores stay on the device until a
request is over. A text's last written token is never read, so it has no score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.models import LanguageModel, Site
from steerlab.models.operators import precise
from steerlab.monitoring.watching import unit_vectors
from steerlab.steering.packed import Pass
from steerlab.steering.taps import placed


@dataclass(eq=False)
class _Read:
    """One watched request: its probes, and of each the scores by the place at which they begin."""

    probes: tuple[str, ...]
    parts: dict[str, list[tuple[int, Float[Tensor, " token"]]]] = field(default_factory=dict)


class PackedProbes:
    """Scores of requests in packed passes.

    Args:
        model: a transformers model.
        probes: by name a direction of one vector at one site.
        now: the pass in progress.
    """

    def __init__(self, model: LanguageModel, probes: Mapping[str, Direction], now: Pass) -> None:
        self._now = now
        self._reads: dict[str, _Read] = {}
        self._handles: list[Any] = []
        for site in dict.fromkeys(probe.sites[0] for probe in probes.values()):
            names = [name for name, probe in probes.items() if probe.sites[0] == site]
            vectors = unit_vectors([probes[name] for name in names], site).to(model.device)
            self._handles.append(placed(model.anatomy.tap(site), self._reader(names, vectors)))
        self.sites: dict[str, Site] = {name: probe.sites[0] for name, probe in probes.items()}

    def watch(self, request: str, probes: tuple[str, ...]) -> None:
        """Keep a request's scores by some probes, from before it is added."""
        self._reads[request] = _Read(probes)

    def take(self, request: str) -> dict[str, list[float]]:
        """By probe the scores of a request's tokens in the order of its text; they are forgotten here."""
        read = self._reads.pop(request, None)
        return {} if read is None else {name: _joined(read.parts.get(name, [])) for name in read.probes}

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _reader(self, names: list[str], vectors: Float[Tensor, "width probe"]) -> Callable[[Tensor], Tensor]:
        def read(state: Tensor) -> Tensor:
            watched = [
                (columns, wanted)
                for columns in self._now.here(state)
                if (wanted := self._reads.get(columns.request)) is not None and {*names} & {*wanted.probes}
            ]
            if watched:
                flat = precise(state.reshape(-1, state.shape[-1]))
                scores = (flat @ vectors.to(flat.dtype)).float()
                for columns, wanted in watched:
                    own = scores[columns.start : columns.start + columns.length]
                    for number, name in enumerate(names):
                        if name in wanted.probes:
                            wanted.parts.setdefault(name, []).append((columns.first, own[:, number].clone()))
            return state

        return read


def _joined(parts: list[tuple[int, Float[Tensor, " token"]]]) -> list[float]:
    """Scores in the order of the text; what was read again takes the place of the first reading."""
    if not parts:
        return []
    length = max(first + len(part) for first, part in parts)
    scores = torch.full((length,), torch.nan)
    for first, part in parts:
        scores[first : first + len(part)] = part.cpu()
    found: list[float] = scores.tolist()
    return found
