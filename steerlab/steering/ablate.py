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

With preserve="norm" it is the change of weights that current tools publish as norm-preserving abliteration (Lai 2025):

    W ← (W − Q Qᵀ W) diag(s),   s_j = ‖w_j‖ / ‖w_j − Q Qᵀ w_j‖

for the output projections of attention and the down projections of MLPs alone: the column w_j, what input j writes,
keeps its length. As hooks it is h ← s ⊙ h in front of W and y ← y − Q Qᵀ y behind it, and `bake` writes the same. The
token embedding keeps what it has of Q, so that part stays in the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

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
    at_layers,
    layers_given,
    orthonormal,
    require_finite,
    unit_rows,
    where_it_works,
)
from steerlab.steering._intervention import Intervention
from steerlab.steering._lengths import INPUTS, factors, input_of, stream_outputs
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

    Where, on which tokens and when: see `Intervention`.

    Raises:
        DirectionError: when the direction has no vector for a site, or does not know the mean there.
        SteeringError: when it has several sites, no best one, and no site is named; or the value is none; or lengths
            are to be kept of something that is no single map writing to the stream.
    """

    kind: ClassVar[str] = "ablate"

    direction: Direction
    toward: Toward = 0.0
    preserve: Literal["norm"] | None = None
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

    @property
    def constant(self) -> float | None:
        """The one number the component becomes; None where that differs by site."""
        return float(self.toward) if isinstance(self.toward, int | float) else None

    def _said(self) -> str:
        kept = ", with the lengths of weights kept," if self.preserve else ""
        return f"removes {self.direction.estimator}{toward_text(self.toward)}{kept}"

    def _validate(self) -> None:
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
        if self.schedule is not None:
            raise SteeringError(
                "With preserve='norm' a share of the change keeps no length, so a schedule means nothing; leave one of "
                "the two out."
            )

    def _require_sound(self) -> None:
        if self.preserve:
            self._validate()  # factors are learnt from the model
        else:
            super()._require_sound()

    def _learn_lengths(self, model: LanguageModel) -> None:
        """Read the weights' lengths, and act in front of them, too."""
        removed = tuple(self.outputs)
        found: dict[Site, Tensor] = dict(
            factors(model, site, orthonormal(self.direction, site)) for site in removed
        )
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
        basis = orthonormal(self.direction, site)
        return Operator(reads=-basis, writes=basis.T, shift=self._kept(site, basis))

    def _kept(self, site: Site, basis: Float[Tensor, "width k"]) -> Float[Tensor, " width"] | None:
        """What the states keep in the span; None for nothing."""
        if isinstance(self.toward, str):
            return _within(basis, self.direction.mean(site, self.toward).double())
        value: Any = self.toward if not isinstance(self.toward, Mapping) else self._value_at(site)
        if not torch.as_tensor(value).any() or (self.everywhere and site.name in CONTRIBUTIONS):
            return None
        numbers = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        require_finite("value to ablate toward", *numbers.tolist())
        rows = unit_rows(self.direction, site)
        if numbers.numel() == len(rows):
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
        return self.direction.source(site) if self.constant == 0 and not self.preserve else site

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
        object.__setattr__(self, "direction", self.direction.at(*where_it_works(self.direction)))
        if layers is None or layers == "all":
            object.__setattr__(self, "everywhere", True)
            return ()
        return tuple(Site(name, layer) for layer in layers_given(layers) for name in INPUTS)

    def _default_sites(self, layers: Sequence[int] | None) -> Sequence[Site]:
        if layers is not None:
            return at_layers(self.direction, layers)
        object.__setattr__(self, "direction", self.direction.at(*where_it_works(self.direction)))
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
        return super()._plain_value(name, value)

    @classmethod
    def _read(cls, name: str, value: Any, *known: Any) -> Any:
        return value if name == "toward" else super()._read(name, value, *known)

    def _sites_as_data(self) -> list[str] | None:
        if self.everywhere:
            return None
        return [str(site) for site in self._families or self.outputs]

    def to_dict(self) -> dict[str, Any]:
        """The intervention as JSON data; without `preserve` where nothing is, as it always was."""
        data = super().to_dict()
        if self.preserve is None:
            del data["preserve"]
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
