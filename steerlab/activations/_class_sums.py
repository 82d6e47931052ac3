"""The sums behind one class of :class:`~steerlab.activations.moments.Moments`, and how they grow and merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steerlab.models import Site

Pair: TypeAlias = tuple[Site, Site]


@dataclass
class ClassSums:
    """Count, means, mean norms and centred second moments of one class; every tensor float64."""

    count: int = 0
    mean: dict[Site, Tensor] = field(default_factory=dict)
    norm: dict[Site, Tensor] = field(default_factory=dict)
    scatter: dict[Site, Tensor] = field(default_factory=dict)
    cross: dict[Pair, Tensor] = field(default_factory=dict)

    def add(
        self, rows: dict[Site, Tensor], n: int, scatter_sites: Iterable[Site], pairs: Iterable[Pair]
    ) -> None:
        """Take n float64 rows of each site.

        One extra row √(count·n / (count + n)) · δ carries the shift of the mean, so each second moment is updated
        in place by a single product and is never held twice.
        """
        share, shift = n / (self.count + n), (self.count * n / (self.count + n)) ** 0.5
        centred: dict[Site, Tensor] = {}
        for site, x in rows.items():
            block_mean, block_norm = x.mean(0), torch.linalg.vector_norm(x, dim=-1).mean()
            delta = block_mean - self.mean.get(site, block_mean)
            centred[site] = torch.cat([x - block_mean, shift * delta[None]])
            self.mean[site] = self.mean.get(site, block_mean) + share * delta
            old_norm = self.norm.get(site, block_norm)
            self.norm[site] = old_norm + share * (block_norm - old_norm)
        for site in scatter_sites:
            _add_product(self.scatter, site, centred[site], centred[site])
        for pair in pairs:
            _add_product(self.cross, pair, centred[pair[0]], centred[pair[1]])
        self.count += n

    def merge(self, other: ClassSums) -> None:
        """Add another class's sums in place; the other one stays as it is."""
        if not self.count:
            self.count = other.count
            for mine, theirs in zip(self._stores(), other._stores(), strict=True):
                mine.update({key: value.clone() for key, value in theirs.items()})
            return
        share = other.count / (self.count + other.count)
        weight = self.count * share
        delta = {site: other.mean[site].to(mean.device) - mean for site, mean in self.mean.items()}
        for site, scatter in self.scatter.items():
            scatter.add_(other.scatter[site].to(scatter.device))
            scatter.addr_(delta[site], delta[site], alpha=weight)
        for (a, b), cross in self.cross.items():
            cross.add_(other.cross[a, b].to(cross.device)).addr_(delta[a], delta[b], alpha=weight)
        for site in self.mean:
            self.mean[site] = self.mean[site] + share * delta[site]
            norm = self.norm[site]
            self.norm[site] = norm + share * (other.norm[site].to(norm.device) - norm)
        self.count += other.count

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under the name it has in a file."""
        return {
            **{f"mean/{site}": value for site, value in self.mean.items()},
            **{f"norm/{site}": value for site, value in self.norm.items()},
            **{f"scatter/{site}": value for site, value in self.scatter.items()},
            **{f"cross/{a}/{b}": value for (a, b), value in self.cross.items()},
        }

    def put(self, name: str, value: Tensor) -> None:
        """Store one tensor under its name in a file, the reverse of :meth:`tensors`."""
        kind, *sites = name.split("/")
        if kind == "cross":
            self.cross[Site.parse(sites[0]), Site.parse(sites[1])] = value
        else:
            getattr(self, kind)[Site.parse(sites[0])] = value

    def _stores(self) -> tuple[dict[Any, Tensor], ...]:
        return self.mean, self.norm, self.scatter, self.cross


def _add_product(store: dict[Any, Tensor], key: Site | Pair, a: Tensor, b: Tensor) -> None:
    if key in store:
        store[key].addmm_(a.T, b)
    else:
        store[key] = a.T @ b
