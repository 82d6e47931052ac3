"""Ablate a direction: x ← x − Q Qᵀ (x − m), with Q an orthonormal basis of the direction's vectors.

    toward 0            m = 0: the component is removed                                    (Arditi et al. 2024)
    toward "mean"       m = the mean state of the site                 (affine concept editing, Marshall et al. 2024)
    toward "harmless"   m = the mean state of a class the direction knows ("positive" and "negative" name either end)
    toward a value      the component along v̂ becomes that number, everywhere or by site

Toward zero the default is every write to the residual stream: the input of each block, what attention (or another
mixer) and MLP add (after a post-norm, where there is one), and the input of the final norm. The whole stream then
stays orthogonal to the direction in every family (projecting the modules' raw outputs, as the published code does,
leaks where a post-norm follows). Toward one number the stream keeps that component all along, and what blocks add has
none.

Where every token shares a large mean (97 % of the norm in Gemma-3-270M), any direction has a part of it, and taking
that part out breaks the model whatever the direction means. About the mean of a class only what differs from it is
changed. The mean differs from site to site, so the default is then the output of every block; a window of layers costs
less.

With directions to keep, Q spans only what v has at right angles to all of them, v − P v with P the projection on their
span. So the component along each of them is left as it is, and of v that part stays which v shares with them.

With preserve="norm" it is the change of weights that current tools publish as norm-preserving abliteration (Lai 2025):

    W ← (W − Q Qᵀ W) diag(s),   s_j = ‖w_j‖ / ‖w_j − Q Qᵀ w_j‖

for the output projections of attention and the down projections of MLPs alone: the column w_j, what input j writes,
keeps its length. As hooks it is h ← s ⊙ h in front of W and y ← y − Q Qᵀ y behind it, and `bake` writes the same. The
token embedding keeps what it has of Q, so that part stays in the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.directions import Direction
from steerlab.errors import SteeringError
from steerlab.models import LanguageModel, Site, site_of
from steerlab.models.operators import Operator
from steerlab.models.sites import CONTRIBUTIONS
from steerlab.steering._amounts import (
    LayersGiven,
    Strength,
    at_layers,
    basis_outside,
    layers_given,
    outside,
    require_finite,
    strength_at,
    unit_rows,
    where_it_works,
)
from steerlab.steering._intervention import RAW, Intervention
from steerlab.steering._lengths import INPUTS, factors, input_of, stream_outputs
from steerlab.steering._sentence import amount
from steerlab.steering._text import find_direction
from steerlab.steering.registry import register_intervention

STREAM_WRITES = ("resid_pre", *CONTRIBUTIONS, "ln_final_in")
#: A component (k of them for k vectors) or a state [width].
Value: TypeAlias = "float | Sequence[float] | Tensor"
Toward: TypeAlias = "float | str | Mapping[Any, Value]"


@register_intervention
@dataclass(frozen=True, eq=False, repr=False)
class Ablate(Intervention):
    """Remove a direction (or the span of several vectors) from the states at some sites and positions.

    Args:
        direction: k vectors a site. With one site they act everywhere; with several each site uses its own.
            Without ``sites`` its only vector, or that of its best site, is removed everywhere in the residual stream;
            which sites those are, `check` learns from the model.
        toward: what the component becomes, see the module: 0, a number (k = 1), "mean", the name of a class (their
            means by site are in the direction's file), or by site ``{"resid_post.8": 1.5}`` a number, k numbers or a
            state [width]. The first token, whose state is often of another size, is left out with
            ``positions=All() - Index(0)``.
        preserve: "norm": what each input of a writing map writes keeps its length, see the module. Then the sites are
            "attn_out" and "mlp_out", by default of every layer, and `check` adds the places in front of the maps (z,
            mlp_post), where inputs are scaled. It goes toward 0, at full strength. None: lengths are not put back.
        keep: directions (or one) along which the states stay as they are, see the module. Where only the direction's
            best vector acts, they are taken at that site. What toward gives is then the component along what is left.
        strength: the share of the change at each site, or by layer ``{8: 0.5, 9: 1.0}``, which then says the layers
            too; 2 mirrors the states. Where a state passes several sites, what is left of it is multiplied.

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction, or one to keep, has no vector for a site, or does not know the mean there.
        SteeringError: when it has several sites, no best one, and no site is named; or the value is none; or lengths
            are to be kept of something that is no single map writing to the stream; or it lies in what is kept.
    """

    kind: ClassVar[str] = "ablate"

    direction: Direction
    toward: Toward = 0.0
    preserve: Literal["norm"] | None = None
    #: One or several; read as a tuple.
    keep: Any = ()
    strength: Strength = 1.0
    everywhere: bool = field(init=False, repr=False, default=False)
    _factors: dict[Site, Tensor] = field(init=False, repr=False, default_factory=dict)

    def check(self, model: LanguageModel) -> None:
        """Raise `DirectionError` unless the direction belongs to this model and fits the sites."""
        if self.everywhere:
            writes = stream_outputs(model) if self.preserve else stream_writes(model)
            object.__setattr__(self, "sites", writes)
        elif self.preserve:
            object.__setattr__(self, "sites", tuple(self.outputs))  # without what a check before has added
        super().check(model)
        if self.preserve:
            self._learn_lengths(model)

    @property
    def outputs(self) -> Sequence[Site]:
        """The sites at which the direction is removed; those where inputs are scaled are left out."""
        return [site for site in self.sites if site not in self._factors]

    def factors(self, site: Site) -> Float[Tensor, " width"] | None:
        """What the state in front of a map is multiplied with, once `check` has read the weights; else None."""
        return self._factors.get(site)

    def basis(self, site: Site) -> Float[Tensor, "width k"]:
        """An orthonormal basis of what is removed at a site, float64."""
        return basis_outside(self.direction, self.keep, site)

    def share(self, site: Site) -> float:
        """The share of it that is removed there."""
        return strength_at(self.strength, site)

    @property
    def constant(self) -> float | None:
        """The one number the component becomes; None where that differs by site."""
        return float(self.toward) if isinstance(self.toward, int | float) else None

    def _said(self) -> str:
        share = "" if self.strength == 1 else f"{amount(self.strength)} of "
        kept = ", with the lengths of weights kept," if self.preserve else ""
        if self.keep:
            kept = f", keeping the component along {' and '.join(one.estimator for one in self.keep)},"
        return f"removes {share}{self.direction.estimator}{toward_text(self.toward)}{kept}"

    def _take_tensors(self) -> None:
        super()._take_tensors()
        given = self.keep if isinstance(self.keep, list | tuple) else [self.keep]
        object.__setattr__(self, "keep", tuple(map(self._kept_direction, given)))

    def _kept_direction(self, given: Any) -> Direction:
        if isinstance(given, Direction):
            return given
        if not isinstance(given, Tensor | np.ndarray):
            raise SteeringError(
                f"What an ablation keeps are directions, keep=[truth], and not {given!r:.80}; load or fit one."
            )
        vectors = {self.direction.sites[0]: torch.as_tensor(given, dtype=torch.float32)}
        return Direction(vectors, "", "", estimator=RAW)

    def _given_directions(self) -> Iterator[Direction]:
        yield from super()._given_directions()
        yield from self.keep

    def _narrow(self) -> None:
        """Take the vectors of the only, or best, site, and what is kept at the same one."""
        direction = self.direction.at(*where_it_works(self.direction))
        (site,) = direction.sites
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "keep", tuple(one.at(one.source(site)) for one in self.keep))
        self.basis(site)  # refused now where nothing is left

    def _validate(self) -> None:
        for site in self.sites:
            require_finite("strength", self.share(site))
        if self.preserve is not None:
            self._validate_kept()
        if isinstance(self.toward, bool) or not isinstance(self.toward, int | float | str | Mapping):
            raise SteeringError(
                f"An ablation goes toward 0, a number, 'mean', the name of a class or values by site, not toward "
                f"{self.toward!r:.80}."
            )
        if isinstance(self.toward, Mapping):
            by_site = {site_of(name): _plain(value) for name, value in self.toward.items()}
            object.__setattr__(self, "toward", by_site)

    def _validate_kept(self) -> None:
        if self.preserve != "norm":
            raise SteeringError(f"An ablation keeps 'norm' or nothing (None), not {self.preserve!r:.80}.")
        if self.constant != 0:
            raise SteeringError(
                f"With preserve='norm' weights lose a direction and keep their length, which goes toward 0 alone and "
                f"not toward {self.toward!r:.80}; leave one of the two out."
            )
        if self.keep:
            raise SteeringError(
                "With preserve='norm' what each input writes is made longer, along the directions to keep as well; "
                "leave one of the two out."
            )
        if self.schedule is not None or self.strength != 1:
            raise SteeringError(
                "With preserve='norm' a share of the change keeps no length, so schedules and strengths mean nothing; "
                "leave one of the two out."
            )

    def _require_sound(self) -> None:
        if self.preserve:
            self._validate()  # factors are learnt from the model
        else:
            super()._require_sound()

    def _learn_lengths(self, model: LanguageModel) -> None:
        """Read the weights' lengths, and act in front of them, too."""
        removed = tuple(self.outputs)
        found: dict[Site, Tensor] = dict(factors(model, site, self.basis(site)) for site in removed)
        object.__setattr__(self, "_factors", found)
        object.__setattr__(self, "sites", tuple(sorted((*removed, *found))))
        self._operators.clear()

    def _operator(self, site: Site) -> Operator:
        if site in self._factors:
            return Operator(keep=self._factors[site])
        if self.preserve and site.name not in INPUTS:
            raise SteeringError(
                f"How long weights are, the model says; enter model.steering(...) before anything is done at {site}."
            )
        basis, share = self.basis(site), self.share(site)
        point = self._point(site, basis)
        return Operator(reads=-share * basis, writes=basis.T, shift=None if point is None else share * point)

    def _point(self, site: Site, basis: Float[Tensor, "width k"]) -> Float[Tensor, " width"] | None:
        """What the states have in the span afterwards; None for nothing."""
        if isinstance(self.toward, str):
            return _within(basis, self.direction.mean(site, self.toward).double())
        value: Any = self.toward if not isinstance(self.toward, Mapping) else self._value_at(site)
        if not torch.as_tensor(value).any() or (self.everywhere and site.name in CONTRIBUTIONS):
            return None
        numbers = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        require_finite("value to ablate toward", *numbers.tolist())
        rows = unit_rows(self.direction, site)
        if numbers.numel() == len(rows):
            rows = torch.nn.functional.normalize(outside(rows.T, self.keep, site).T) if self.keep else rows
            inverse: Tensor = torch.linalg.pinv(rows)
            return inverse @ numbers
        if numbers.numel() == basis.shape[0]:
            return _within(basis, numbers)
        raise SteeringError(
            f"{numbers.numel()} numbers came for the {len(rows)} vectors at {site}; give one a vector, or a state of "
            f"{basis.shape[0]}."
        )

    def _value_at(self, site: Site) -> Value:
        assert isinstance(self.toward, Mapping)
        if site not in self.toward:
            known = ", ".join(map(str, self.toward))
            raise SteeringError(f"There is no value to ablate toward at {site}; the mapping has {known}.")
        value: Value = self.toward[site]
        return value

    def _like(self, site: Site) -> Site:
        alike = self.constant == 0 and not self.preserve and not isinstance(self.strength, Mapping)
        one_vector = all(len(direction.sites) == 1 for direction in self._given_directions())
        return self.direction.source(site) if alike and one_vector else site

    def _named_sites(self) -> list[Site | str]:
        """The sites as they were named; of a copy of a checked edit without those in front of maps."""
        named = super()._named_sites()
        if not self.preserve:
            return named
        added = {input_of(site) for site in named if isinstance(site, Site)}
        named = [site for site in named if site not in added]
        for site in named:
            if str(site).partition(".")[0] not in INPUTS:
                raise SteeringError(
                    "With preserve='norm' an ablation acts on what attention and MLPs write (attn_out, mlp_out), not "
                    f"at {site}; name other sites, or leave preserve out."
                )
        return named

    def _layers_sites(self, layers: LayersGiven) -> Sequence[Site]:
        if not self.preserve:
            return super()._layers_sites(layers)
        self._narrow()
        if layers is None or layers == "all":
            object.__setattr__(self, "everywhere", True)
            return ()
        return tuple(Site(name, layer) for layer in layers_given(layers) for name in INPUTS)

    def _default_sites(self, layers: Sequence[int] | None) -> Sequence[Site]:
        if layers is None and isinstance(self.strength, Mapping):
            layers = layers_given(list(self.strength))
        if layers is not None:
            return at_layers(self.direction, layers)
        self._narrow()
        if isinstance(self.toward, str | Mapping):
            return self._by_site()
        object.__setattr__(self, "everywhere", True)
        return ()

    def _by_site(self) -> Sequence[Site]:
        """The sites that are named with their values, or the output of every block."""
        if isinstance(self.toward, Mapping):
            return tuple(site_of(name) for name in self.toward)
        family: Any = ("resid_post",)  # the name stays until the model says how many layers there are
        return tuple(family)

    def _plain_value(self, name: str, value: Any) -> Any:
        if name == "toward" and isinstance(value, Mapping):
            return {str(site): _plain(numbers) for site, numbers in value.items()}
        if name == "keep":
            return [direction.hash for direction in value]
        return super()._plain_value(name, value)

    @classmethod
    def _read(cls, name: str, value: Any, *known: Any) -> Any:
        if name == "keep":
            return tuple(find_direction(kept, known[0]) for kept in value)
        return value if name == "toward" else super()._read(name, value, *known)

    def _sites_as_data(self) -> list[str] | None:
        if self.everywhere:
            return None
        return [str(site) for site in self._families or self.outputs]

    def to_dict(self) -> dict[str, Any]:
        """The intervention as JSON data; without `preserve`, `keep` and `strength` where they say nothing."""
        data = super().to_dict()
        for name, silent in (("preserve", None), ("keep", []), ("strength", 1.0)):
            if data[name] == silent:
                del data[name]
        return data


def stream_writes(model: LanguageModel) -> tuple[Site, ...]:
    """Every site of a model at which something enters the residual stream, and where the stream is last read."""
    names = model.site_names()
    sites = [site for name in STREAM_WRITES if name in names for site in model.sites(name)]
    if "ln_final_in" not in names:  # a family without a final norm
        sites.append(Site("resid_post", model.n_layers - 1))
    return tuple(sorted(sites))


def toward_text(toward: Toward) -> str:
    """ " toward the harmless mean"; nothing for zero."""
    if isinstance(toward, str):
        return " toward the mean" if toward == "mean" else f" toward the {toward} mean"
    if isinstance(toward, Mapping):
        return " toward values by site"
    return f" toward {toward:g}" if toward else ""


def _within(basis: Float[Tensor, "width k"], state: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    """The part of a state in the span."""
    part: Tensor = basis @ (basis.T @ state)
    return part


def _plain(value: Any) -> float | list[float]:
    """A number or a list of them."""
    try:
        plain: float | list[float] = torch.as_tensor(value, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SteeringError(f"A value to ablate toward is {value!r:.60}; give numbers.") from error
    return plain
