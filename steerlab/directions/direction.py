"""A direction in a model's space: vectors by site, where they came from, and their scale; it is also a file.

``direction[site]`` is the vector v of a site, with v̂ = v/‖v‖. Directions add, scale and negate; the statistics
that are linear in v (class means, bias) follow, and those that are not known any more are dropped. The file is
safetensors with a JSON header and loads without pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from steerlab.directions import _file, _hub, _stored
from steerlab.directions._header import ModelRef, SiteStatistics
from steerlab.directions._means import Means, checked_means, mean_among
from steerlab.directions._numbers import (
    added,
    as_rows,
    by_site,
    is_row,
    one_of,
    require_number,
    require_whole,
    same_width,
    times,
)
from steerlab.directions._shown import direction_html
from steerlab.directions.calibration import ScoreCalibration
from steerlab.errors import DirectionError, SteerlabError, kind_of
from steerlab.models import Site, SiteName, site_of, sites_among
from steerlab.statistics import Estimate

if TYPE_CHECKING:
    from steerlab.models import LanguageModel


@dataclass(frozen=True, eq=False)
class Direction:
    """Vectors by site with their provenance and scale.

    Attributes:
        vectors: for each site, float32 [k, width]; a single [width] vector is taken as k = 1.
        model_name: the model whose space the vectors live in.
        fingerprint: its fingerprint.
        estimator: what made them.
        parameters: the estimator's.
        dataset_hash: the data they were estimated from.
        position: the token positions they were estimated at.
        statistics: for each site, class means along the vector, mean norm of the stream, bias, threshold, sigma.
        origin: models the direction was carried over from, oldest first (see :meth:`moved_to`).
        accuracy: by site, the share of held-out prompts that the direction tells apart, where it was measured.
        best: the site where it works best; interventions act there unless they name others.
        means: mean states [width] by site and class, "" for all of them, where known (see `mean`).
        calibration: of a probe, its scores where what it looks for is absent (`sl.calibrate`); None otherwise. What
            changes the vectors drops it.

    Raises:
        DirectionError: when a vector is empty, zero or not finite, or has another shape.
    """

    vectors: Mapping[Site, Float[Tensor, "k width"]]
    model_name: str
    fingerprint: str
    estimator: str = "given"
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    dataset_hash: str = ""
    position: str = ""
    statistics: Mapping[Site, SiteStatistics] = field(default_factory=dict)
    origin: tuple[ModelRef, ...] = ()
    accuracy: Mapping[Site, Estimate] = field(default_factory=dict)
    best: Site | None = None
    means: Means = field(default_factory=dict)
    calibration: ScoreCalibration | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.vectors, Mapping):
            raise DirectionError(
                f"The vectors of a direction are {{'resid_post.5': vector}}, not {kind_of(self.vectors)}."
            )
        if not self.vectors:
            raise DirectionError("A direction needs the vector of at least one site.")
        given = {site_of(name): rows for name, rows in self.vectors.items()}
        vectors = {site: as_rows(site, given[site]) for site in sorted(given)}
        object.__setattr__(self, "vectors", vectors)
        known = by_site(self.statistics, vectors)
        for site, statistics in known.items():
            require_whole(site, len(vectors[site]), statistics)
        object.__setattr__(self, "statistics", {site: known.get(site, SiteStatistics()) for site in vectors})
        object.__setattr__(self, "accuracy", by_site(self.accuracy, vectors))
        best = None if self.best is None else site_of(self.best)
        if best is not None and best not in vectors:
            raise DirectionError(
                f"The best site {best} is none of the direction's: {', '.join(map(str, vectors))}."
            )
        object.__setattr__(self, "best", best)
        object.__setattr__(self, "means", checked_means(self.means))

    def __repr__(self) -> str:
        sites = f"{len(self.sites)} sites" if len(self.sites) > 3 else ", ".join(map(str, self.sites))
        return f"Direction({self.estimator} at {sites}, {self.model_name})"

    def _repr_html_(self) -> str:
        return direction_html(self)

    # ---------------------------------------------------------------------------------------------------- reading

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites with a vector, in the order of the forward pass."""
        return tuple(self.vectors)

    def __getitem__(self, site: SiteName | int) -> Float[Tensor, " width"]:
        """The only vector of a site, a layer (where there is one family) or "resid_post.5"; see ``vectors[site]``."""
        rows = self.vectors[self._known(site)]
        if len(rows) != 1:
            raise DirectionError(
                f"{site} holds a subspace of {len(rows)} vectors; read vectors[site], or take one with component(0)."
            )
        return rows[0]

    __iter__ = None  # vectors are looked up by site or layer; a direction is no sequence

    def at(self, *sites: SiteName | int) -> Direction:
        """The same direction with only these sites (see `__getitem__`, or a family's name: "resid_post")."""
        chosen = [site for given in sites for site in sites_among(self.sites, given)]
        if set(chosen) == set(self.sites):
            return self
        return self._with({self._known(site): self.vectors[site] for site in chosen}, self.statistics)

    def component(self, number: int) -> Direction:
        """One of several vectors as a direction of its own, counted from 0, at the sites that have so many.

        Raises:
            DirectionError: no site has it.
        """
        having = [site for site, rows in self.vectors.items() if is_row(number, rows)]
        if not having:
            most = max(map(len, self.vectors.values()))
            raise DirectionError(
                f"The direction has {most} vectors at a site, counted from 0, and no {number!r}."
            )
        statistics = {site: one_of(self.statistics[site], number) for site in having}
        return replace(
            self._with({site: self.vectors[site][number] for site in having}, statistics), accuracy={}
        )

    def source(self, site: Site) -> Site:
        """The site whose vectors act at ``site``: itself, or the only one there is.

        Raises:
            DirectionError: when the direction has several sites and ``site`` is none of them.
        """
        return self.sites[0] if len(self.sites) == 1 else self._known(site)

    @property
    def class_gap(self) -> dict[Site, float]:
        """By site, the distance between the class means along the unit vector, positive minus negative.

        Raises:
            DirectionError: when a site's class means are not known.
        """
        return {site: self._gap(site) for site in self.sites}

    @property
    def stream_norm(self) -> dict[Site, float]:
        """By site, the mean norm of the states the direction was read from.

        Raises:
            DirectionError: when it is not known at a site.
        """
        return {site: self._norm(site) for site in self.sites}

    def mean(self, site: SiteName, of: str = "mean") -> Float[Tensor, " width"]:
        """The mean state at a site of "mean" (all prompts), of a class, or of the "positive" or "negative" one.

        Raises:
            DirectionError: it is not known there.
        """
        place = site_of(site)
        ends = self.statistics.get(place, next(iter(self.statistics.values())))
        named = {"positive": ends.positive, "negative": ends.negative}.get(of)
        return mean_among(self.means, place, named or of)

    @property
    def hash(self) -> str:
        """A short hash of sites and vectors: two directions with equal numbers have the same one."""
        digest = hashlib.sha256()
        for site, rows in self.vectors.items():
            digest.update(f"{site} {tuple(rows.shape)} ".encode())
            digest.update(rows.numpy().tobytes())
        return digest.hexdigest()[:16]

    def cosine(self, other: Direction) -> dict[Site, float]:
        """Cosine with another direction's vector at every site both have.

        Raises:
            DirectionError: when no site is shared, widths differ or one holds a subspace.
        """
        shared = [site for site in self.sites if site in other.vectors]
        if not shared:
            raise DirectionError(
                "The two directions share no site; compare directions read at the same sites."
            )
        for site in shared:
            same_width(site, self.vectors[site], other.vectors[site])
        return {
            site: float(torch.cosine_similarity(self[site].double(), other[site].double(), dim=0))
            for site in shared
        }

    # ------------------------------------------------------------------------------------------------- arithmetic

    def __neg__(self) -> Direction:
        return self * -1.0

    def __mul__(self, factor: float) -> Direction:
        """Every vector times ``factor``; statistics along the unit vector keep their value or change sign."""
        require_number(factor)
        if not factor:
            raise DirectionError(
                "A direction times zero points nowhere; use strength=0 to switch steering off."
            )
        sign = 1.0 if factor > 0 else -1.0
        statistics = {
            site: s.model_copy(
                update={
                    "class_means": {label: times(means, sign) for label, means in s.class_means.items()},
                    "positive": s.positive if sign > 0 else s.negative,
                    "negative": s.negative if sign > 0 else s.positive,
                    "bias": s.bias and times(s.bias, factor),
                    "threshold": s.threshold and times(s.threshold, sign),
                }
            )
            for site, s in self.statistics.items()
        }
        return self._with({site: factor * rows for site, rows in self.vectors.items()}, statistics)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Direction:
        return self * (1.0 / divisor)

    def __add__(self, other: Direction) -> Direction:
        """The sum at every site; both need the same sites, and class means stay known on shared data only."""
        if not isinstance(other, Direction):
            raise DirectionError(f"A direction is added to a direction, not to {kind_of(other)}.")
        if set(self.sites) != set(other.sites) or self.fingerprint != other.fingerprint:
            raise DirectionError(
                f"{self!r} and {other!r} live at different sites or in different models and cannot be added; "
                "restrict both with at(...) or move one with moved_to(...)."
            )
        for site in self.sites:
            same_width(site, self.vectors[site], other.vectors[site])
        vectors = {site: rows + other.vectors[site] for site, rows in self.vectors.items()}
        same_data = (self.dataset_hash, self.position) == (other.dataset_hash, other.position)
        statistics = (
            {
                site: added(self.statistics[site], other.statistics[site], rows, other.vectors[site])
                for site, rows in self.vectors.items()
            }
            if same_data
            else {}
        )
        return replace(
            self._with(vectors, statistics),
            accuracy={},
            means=self.means if same_data else {},
            best=self.best if self.best == other.best else None,
            estimator=self.estimator if self.estimator == other.estimator else "sum",
            parameters=self.parameters if self.parameters == other.parameters else {},
            dataset_hash=self.dataset_hash if same_data else "",
        )

    def __sub__(self, other: Direction) -> Direction:
        return self + -other

    def unit(self) -> Direction:
        """Every vector at length one."""
        norms = {site: rows.norm(dim=1, keepdim=True) for site, rows in self.vectors.items()}
        statistics = {
            site: s.model_copy(
                update={
                    "bias": s.bias and tuple(b / float(n) for b, n in zip(s.bias, norms[site], strict=True))
                }
            )
            for site, s in self.statistics.items()
        }
        return self._with({site: rows / norms[site] for site, rows in self.vectors.items()}, statistics)

    # ------------------------------------------------------------------------------------------- fitting to models

    def check(self, model: LanguageModel, *, sites: Iterable[Site] | None = None) -> None:
        """Raise unless the direction belongs to this model and fits the sites it is to be used at.

        Raises:
            DirectionError: when the fingerprint, a layer or a width differs.
        """
        if self.fingerprint != model.fingerprint:
            raise DirectionError(
                f"The direction was made in {self.model_name} ({self.fingerprint}), not in {model.name} "
                f"({model.fingerprint}); fit it there, or carry it over on purpose with direction.moved_to(model)."
            )
        for site in (*self.sites, *(sites or ())):
            try:
                model.require(site)
            except SteerlabError as error:
                raise DirectionError(f"The direction cannot be used at {site}. {error}") from error
            width = self.vectors[self.source(site)].shape[1]
            if width != model.width(site):
                raise DirectionError(
                    f"The direction has width {width} but {site} of {model.name} has width {model.width(site)}; "
                    "fit it on a model of that width, or map it with an alignment."
                )

    def moved_to(self, model: LanguageModel) -> Direction:
        """The same numbers declared to live in another model's space (the identity map between two models).

        The model they came from is kept in ``origin``, and the best site stays; the accuracy is not known there.
        Raises `DirectionError` when sites or widths do not fit.
        """
        moved = replace(
            self,
            model_name=model.name,
            fingerprint=model.fingerprint,
            origin=(*self.origin, ModelRef(name=self.model_name, fingerprint=self.fingerprint)),
            accuracy={},
            calibration=None,
        )
        moved.check(model)
        return moved

    # ------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; an existing one is replaced only when the new one is complete."""
        _file.write(Path(path), _stored.tensors(self), _stored.header(self))

    def push(self, repo: str, file: str = "direction.safetensors", *, private: bool = False) -> str:
        """Put the file on the Hugging Face hub; `load` takes the name it gives ("owner/name:file.safetensors")."""
        return _hub.pushed(self, repo, file, private=private)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read a file that :meth:`save` wrote, here or on the hub ("owner/name:file.safetensors").

        Raises:
            DirectionError: when the file is missing, a pickle, no safetensors, of another format or version, or
                when its header and vectors do not fit together.
        """
        header, tensors = _file.read(_hub.fetched(path))
        with _file.damage_named(path):
            return cls(**_stored.fields(header, tensors))

    # ------------------------------------------------------------------------------------------------------ inside

    def _with(self, vectors: Mapping[Site, Tensor], statistics: Mapping[Site, SiteStatistics]) -> Direction:
        best = self.best if self.best in vectors else None
        return replace(self, vectors=vectors, statistics=statistics, best=best, calibration=None)

    def _known(self, given: SiteName | int) -> Site:
        sites, known = sites_among(self.sites, given), ", ".join(map(str, self.sites))
        if len(sites) > 1:
            raise DirectionError(f"{given} is at {len(sites)} sites of the direction; name one of {known}.")
        if not sites or sites[0] not in self.vectors:
            raise DirectionError(f"The direction has no vector at {given}; it has {known}.")
        return sites[0]

    def _gap(self, site: Site) -> float:
        s = self.statistics[site]
        if s.positive is None or s.negative is None or len(self.vectors[site]) != 1:
            raise DirectionError(
                f"The class means at {site} are not known; fit the direction from labelled states."
            )
        return s.class_means[s.positive][0] - s.class_means[s.negative][0]

    def _norm(self, site: Site) -> float:
        norm = self.statistics[site].stream_norm
        if norm is None:
            raise DirectionError(
                f"The stream norm at {site} is not known; fit the direction from captured states."
            )
        return norm
