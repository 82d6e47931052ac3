"""Maps from one model into another at every layer, and the directions they carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from steerlab.alignment import _file
from steerlab.alignment._aligner import Aligner
from steerlab.alignment.cka import cka_of_layers
from steerlab.alignment.controls import ShuffledPairs
from steerlab.alignment.diagnostics import AlignmentReport, examine
from steerlab.alignment.layer_map import LayerMap
from steerlab.alignment.paired import PairedActivations, Part
from steerlab.alignment.registry import ALIGNERS
from steerlab.alignment.ridge import Ridge
from steerlab.directions import Direction, ModelRef, SiteStatistics
from steerlab.errors import AlignmentError
from steerlab.models import Site
from steerlab.progress import track


@dataclass(frozen=True, eq=False)
class Alignment:
    """One aligner for each target site.

    aligners: by target site. sources: by target site, the source site it reads. source, target: the models. data_hash,
    rule, rows: what it was fitted on. stream_norm: by target site, mean norm of the target's states there.
    """

    aligners: Mapping[Site, Aligner]
    sources: Mapping[Site, Site]
    source: ModelRef
    target: ModelRef
    data_hash: str
    rule: str
    rows: int
    stream_norm: Mapping[Site, float]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Target sites, in the order of the forward pass."""
        return tuple(self.aligners)

    def transfer(self, direction: Direction) -> Direction:
        """The direction in the target's space, at every target site whose source site it has.

        Lengths follow the map; class gaps do not carry over, the target's own norms are given. The source model is
        kept in `origin`.

        Raises:
            AlignmentError: a direction of another model, without any site that is read, or that the map sends to zero.
        """
        if direction.fingerprint not in ("", self.source.fingerprint):
            raise AlignmentError(
                f"The direction belongs to {direction.model_name}, but this alignment reads {self.source.name}."
            )
        sites = [site for site in self.sites if self.sources[site] in direction.vectors]
        if not sites:
            raise AlignmentError(
                f"The direction has no site that this alignment reads ({', '.join(map(str, self.sources.values()))})."
            )
        moved = {
            site: torch.from_numpy(
                self.aligners[site].transform_direction(direction.vectors[self.sources[site]])
            ).float()
            for site in sites
        }
        for site, rows in moved.items():
            if not bool(rows.norm(dim=1).min() > 0):
                raise AlignmentError(
                    f"The map into {site} sends the direction to zero, so there is nothing to steer with."
                )
        return Direction(
            vectors=moved,
            model_name=self.target.name,
            fingerprint=self.target.fingerprint,
            estimator=f"{direction.estimator} moved by {type(self.aligners[sites[0]]).__name__}",
            parameters={**direction.parameters, "alignment_data": self.data_hash},
            dataset_hash=direction.dataset_hash,
            position=direction.position,
            statistics={site: SiteStatistics(stream_norm=self.stream_norm[site]) for site in sites},
            origin=(*direction.origin, self.source),
            best=next((site for site in sites if self.sources[site] == direction.best), None),
        )

    def diagnose(
        self,
        pairs: PairedActivations,
        direction: Direction | None = None,
        *,
        native: Direction | None = None,
        contrast: PairedActivations | None = None,
        part: Part = "dev",
        seed: int = 0,
    ) -> AlignmentReport:
        """Every layer pair on the prompts of `part`, which must not be those it was fitted on.

        Args:
            pairs: the rows it was fitted on.
            direction: the source direction that is to be carried; without it no layer is called reliable.
            native: the target's own direction, where it can be had.
            contrast: unlocked-minus-locked differences of both models, where they can be had; read on the same part.
            part: "dev" or "test".
            seed: of halves, shuffles and random directions.

        Raises:
            AlignmentError: other rows than those of the fit, the fit part, or too few rows.
        """
        if pairs.hash != self.data_hash:
            raise AlignmentError(
                "These are not the rows that the alignment was fitted on, so held out means nothing."
            )
        if part == "fit":
            raise AlignmentError("A map is judged on rows it never saw; take part='dev' or 'test'.")
        if len(pairs.rows(part)) < 4:
            raise AlignmentError(
                f"The {part} part holds {len(pairs.rows(part))} rows; give it at least four."
            )
        layers = []
        for site in track(list(self.sites), "examining the alignment", len(self.sites)):
            source = self.sources[site]
            again = _refitted(self.aligners[site], *pairs.layer(source, site, "fit"), seed)
            layers.append(
                examine(
                    self.aligners[site],
                    *pairs.layer(source, site, part),
                    layers=(source.layer or 0, site.layer or 0),
                    shuffled=again[0],
                    halves=again[1:],
                    direction=_vector(direction, source),
                    native=_vector(native, site),
                    contrast=None if contrast is None else contrast.layer(source, site, part),
                    seed=seed,
                )
            )
        return AlignmentReport(
            aligner=repr(next(iter(self.aligners.values()))), part=part, layers=tuple(layers)
        )

    def save(self, path: str | Path) -> None:
        """Write every layer's factors in float32 and the provenance as one safetensors file."""
        header: dict[str, Any] = {
            "aligners": {str(site): _file.described(aligner) for site, aligner in self.aligners.items()},
            "sources": {str(site): str(source) for site, source in self.sources.items()},
            "source": self.source.model_dump(),
            "target": self.target.model_dump(),
            "data_hash": self.data_hash,
            "rule": self.rule,
            "rows": self.rows,
            "stream_norm": {str(site): norm for site, norm in self.stream_norm.items()},
        }
        stored: dict[str, torch.Tensor] = {}
        for site, aligner in self.aligners.items():
            stored |= _file.tensors(aligner, torch.float32, f"{site}/")
        _file.write(Path(path), _file.ALIGNMENT, header, stored)

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read what `save` wrote. Raises `AlignmentError` for any other file."""
        place = Path(path)
        header, stored = _file.read(place, _file.ALIGNMENT)
        with _file.damage_named(place):
            return cls._of(header, stored)

    @classmethod
    def _of(cls, header: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> Alignment:
        aligners = {}
        for name, described in header["aligners"].items():
            own_tensors = {
                key.removeprefix(f"{name}/"): value
                for key, value in stored.items()
                if key.startswith(f"{name}/")
            }
            aligners[Site.parse(name)] = _file.rebuilt(described, own_tensors)
        if strange := [key for key in stored if key.rpartition("/")[0] not in header["aligners"]]:
            raise ValueError(f"{strange[0]} is a factor of no aligner")
        sources = {Site.parse(site): Site.parse(source) for site, source in header["sources"].items()}
        stream_norm = {Site.parse(site): float(norm) for site, norm in header["stream_norm"].items()}
        if not aligners.keys() == sources.keys() == stream_norm.keys():
            raise ValueError("aligners, sources and norms are known at different sites")
        return cls(
            aligners=aligners,
            sources=sources,
            source=ModelRef(**header["source"]),
            target=ModelRef(**header["target"]),
            data_hash=header["data_hash"],
            rule=header["rule"],
            rows=int(header["rows"]),
            stream_norm=stream_norm,
        )


def align(
    pairs: PairedActivations, *, layers: LayerMap | None = None, aligner: Aligner | str | None = None
) -> Alignment:
    """Fit one aligner for every target layer on the fit part of the rows.

    Args:
        pairs: the same prompts through both models.
        layers: which source layer each target layer is fitted from; proportional by default.
        aligner: an unfitted one, or its name in `ALIGNERS`; "ridge" by default.

    Raises:
        AlignmentError: an unknown name, a layer that was not read, or rows that the aligner cannot take.
    """
    if aligner is None:
        aligner = Ridge()
    unfitted = ALIGNERS[aligner]() if isinstance(aligner, str) else aligner
    name = pairs.target.sites[0].name
    target_sites = {site.layer or 0: site for site in pairs.target.sites}
    source_sites = {site.layer or 0: site for site in pairs.source.sites}
    chosen = layers or LayerMap.proportional(1 + max(source_sites), 1 + max(target_sites))
    wanted = (
        [layer for layer in chosen.layers if layer in target_sites] if layers is None else list(chosen.layers)
    )
    for target in wanted:
        if target not in target_sites or chosen[target] not in source_sites:
            raise AlignmentError(
                f"The layer map sends source layer {chosen[target]} to target layer {target}, and one of them was not "
                "read; name it in PairedActivations.read(source_layers=..., target_layers=...)."
            )
    fitted: dict[Site, Aligner] = {}
    sources: dict[Site, Site] = {}
    norms: dict[Site, float] = {}
    for target in track(wanted, f"aligning {name}", len(wanted)):
        site, source = target_sites[target], source_sites[chosen[target]]
        x, y = pairs.layer(source, site, "fit")
        fitted[site] = clone(unfitted).fit(x, y)
        sources[site] = source
        norms[site] = float(np.linalg.norm(y, axis=1).mean())
    return Alignment(
        aligners=fitted,
        sources=sources,
        source=ModelRef(name=pairs.source.model_name, fingerprint=pairs.source.fingerprint),
        target=ModelRef(name=pairs.target.model_name, fingerprint=pairs.target.fingerprint),
        data_hash=pairs.hash,
        rule=pairs.rule,
        rows=len(pairs.rows("fit")),
        stream_norm=norms,
    )


def layer_scores(pairs: PairedActivations, *, part: Part = "dev") -> np.ndarray:
    """Debiased CKA [source layer, target layer] of all layers that were read; what `LayerMap.by_score` takes."""
    chosen = pairs.rows(part)
    source, target = (
        [side[site].numpy()[chosen] for site in side.sites] for side in (pairs.source, pairs.target)
    )
    return cka_of_layers(source, target)


# -- private --


def _refitted(aligner: Aligner, x: Any, y: Any, seed: int) -> tuple[Aligner, ...]:
    """The aligner again: on shuffled pairs, and on two halves of the rows."""
    order = np.random.default_rng(seed).permutation(len(x))
    half = len(x) // 2
    refits: list[Aligner] = [ShuffledPairs(clone(aligner), seed=seed).fit(x, y)]
    for rows in (order[:half], order[half:]):
        again = clone(aligner)
        if (k := again.get_params().get("k")) is not None:
            again.set_params(k=min(k, len(rows)))
        refits.append(again.fit(x[rows], y[rows]))
    return tuple(refits)


def _vector(direction: Direction | None, site: Site) -> np.ndarray | None:
    if direction is None or site not in direction.vectors:
        return None
    vector: np.ndarray = direction[site].double().numpy()
    return vector
