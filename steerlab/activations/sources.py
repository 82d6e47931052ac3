"""Where the states of a patch come from: another run, another model's run, noise, zero, a mean, or a control's states.

A sweep first tells a source which prompts and sites it will ask for (`load`), then takes rows (`values`). Prompts are
numbered as in the sweep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.activations._kept import model_key
from steerlab.activations._suffix import WHOLE
from steerlab.activations.patches import Cell, RowPatches
from steerlab.batching import tokens_of_a_batch
from steerlab.errors import PromptError, SteeringError
from steerlab.models import LanguageModel, Prompt, Site
from steerlab.models.batches import batches_by_length

TOKEN_BUDGET = 8192
_PROBES = 4  # rows whose images tell one map from another
_Rows = Float[Tensor, "position width"]


class Source(Protocol):
    """States to patch in.

    Attributes:
        adds: whether the values are added to the run's own states instead of taking their place.
    """

    adds: ClassVar[bool]

    def require(self, prompt: int, length: int) -> None:
        """Raise `PromptError` unless it has states for all `length` tokens of a prompt."""

    def load(self, prompts: Sequence[int], sites: Sequence[Site], first: int) -> None:
        """Have ready what `values` will be asked for: these prompts' tokens from `first` on."""

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """One row a position."""

    def identity(self) -> str:
        """Names everything the states depend on: a sweep resumes with equal sources only."""


class Given:
    """A source that needs no run."""

    adds: ClassVar[bool] = False

    def require(self, prompt: int, length: int) -> None:
        """Accept every prompt."""

    def load(self, prompts: Sequence[int], sites: Sequence[Site], first: int) -> None:
        """Do nothing: no run is needed."""


class Zero(Given):
    """Zeros: what a site carries is taken away."""

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """Zeros [position, width]."""
        return torch.zeros(len(positions), width)

    def identity(self) -> str:
        """The source's name."""
        return "zero"


class Mean(Given):
    """One vector a site, as a rule the mean of captured states (a `Direction` of `mean_state` will do).

    Raises:
        SteeringError: while running, a site without a vector.
    """

    def __init__(self, vectors: Mapping[Site, Float[Tensor, " width"]]) -> None:
        self._vectors = {site: vector.detach() for site, vector in vectors.items()}

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """The site's vector, once a position."""
        if site not in self._vectors:
            known = ", ".join(map(str, sorted(self._vectors)))
            raise SteeringError(f"There is no mean for {site}, only for {known}; capture it there as well.")
        return self._vectors[site].expand(len(positions), -1)

    def identity(self) -> str:
        """A hash of its vectors."""
        return "mean " + _hash_of(self._vectors)


class Shift(Mean):
    """A vector a site that is added to the run's own states: steering, as a patch.

    Raises:
        SteeringError: while running, a site without a vector.
    """

    adds: ClassVar[bool] = True

    def identity(self) -> str:
        """A hash of its vectors."""
        return "shift " + _hash_of(self._vectors)


class Noise(Given):
    """Gaussian noise added to the run's own states; the same for one prompt and token in every run of a sweep.

    Args:
        scale: standard deviation of each element, in the site's own units.
        seed: of the noise.
    """

    adds: ClassVar[bool] = True

    def __init__(self, scale: float, seed: int = 0) -> None:
        self.scale, self.seed = float(scale), seed

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """Gaussian noise [position, width] of standard deviation `scale`."""
        rows = [
            torch.randn(width, generator=_generator(self.seed, prompt, at, str(site))) for at in positions
        ]
        return torch.stack(rows) * self.scale

    def identity(self) -> str:
        """Scale and seed."""
        return f"noise {self.scale} seed {self.seed}"


class Run:
    """The states of another run: of other prompts, of another model, or of both.

    Args:
        model: whose states; it need not be the swept one, but their widths must agree (else see `Mapped`).
        prompts: one for each prompt of the sweep.
        base: for each prompt patches that the run is under.

    Memory: sites x tokens x width of the prompts that are swept together, on the model's device.
    """

    adds: ClassVar[bool] = False

    def __init__(
        self, model: LanguageModel, prompts: Sequence[str | Prompt], base: Sequence[Cell] | None = None
    ) -> None:
        self.model, self.prompts = model, list(prompts)
        self.lengths = model.lengths(self.prompts)
        self._base = list(base or [()] * len(self.prompts))
        self._states: dict[tuple[int, Site], tuple[int, Tensor]] = {}

    def require(self, prompt: int, length: int) -> None:
        """Raise `PromptError` for a prompt that it has not, or whose tokens are not as many."""
        if prompt >= len(self.prompts):
            raise PromptError(
                f"The source has {len(self.prompts)} prompts and none for prompt {prompt}; give one for each."
            )
        if self.lengths[prompt] != length:
            raise PromptError(
                f"Prompt {prompt} has {length} tokens, but the source's has {self.lengths[prompt]}, so equal positions "
                "are not equal words; pair prompts of equal length, or say which tokens are taken (source_positions)."
            )

    def load(self, prompts: Sequence[int], sites: Sequence[Site], first: int) -> None:
        """Run what is not kept yet, and forget other prompts."""
        self._states = {
            key: held for key, held in self._states.items() if key[0] in prompts and held[0] <= first
        }
        missing = [prompt for prompt in prompts if any((prompt, site) not in self._states for site in sites)]
        lengths = [self.lengths[prompt] for prompt in missing]
        for chunk in batches_by_length(lengths, tokens_of_a_batch(TOKEN_BUDGET), stretch=1):
            self._run([missing[number] for number in chunk], sites, first)

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """The run's states at some tokens."""
        first, rows = self._states[prompt, site]
        return rows[[position - first for position in positions]]

    def of(self, order: Sequence[int]) -> Run:
        """A control: prompt i gets the states that belong to prompt `order[i]`."""
        return Run(
            self.model, [self.prompts[number] for number in order], [self._base[number] for number in order]
        )

    def identity(self) -> str:
        """Model, tokens and base."""
        tokens = hashlib.sha256(repr(self.model.token_ids(self.prompts)).encode()).hexdigest()[:16]
        return f"run {model_key(self.model)} {tokens} {identity_of(self._base)}"

    def _run(self, prompts: Sequence[int], sites: Sequence[Site], first: int) -> None:
        def keep(site: Site) -> Callable[[Tensor], None]:
            def visit(state: Tensor) -> None:
                for row, prompt in enumerate(prompts):
                    self._states[prompt, site] = (first, state[row, first:].clone())

            return visit

        tokens = self.model.tokenize([self.prompts[prompt] for prompt in prompts])
        read = {site: keep(site) for site in sites}
        edit = RowPatches(self.model, [(prompt, self._base[prompt], ()) for prompt in prompts], WHOLE, 0)
        if not edit.sites:
            self.model.run(tokens, read=read)
            return
        for patch in {patch for prompt in prompts for patch in self._base[prompt]}:
            patch.source.load(prompts, [patch.site], 0)
        with self.model.steering(edit):
            self.model.run(tokens, read=read)


class RandomShift:
    """A control: the run's own state is moved as far as by the patch, in a random direction.

    Args:
        towards: the states of the patch.
        own: the run that is patched, unpatched.
    """

    adds: ClassVar[bool] = True

    def __init__(self, towards: Source, own: Run, seed: int = 0) -> None:
        self._towards, self._own, self._seed = towards, own, seed

    def require(self, prompt: int, length: int) -> None:
        """Raise `PromptError` unless both have the prompt."""
        self._towards.require(prompt, length)
        self._own.require(prompt, length)

    def load(self, prompts: Sequence[int], sites: Sequence[Site], first: int) -> None:
        """Run what is missing of both runs."""
        self._towards.load(prompts, sites, first)
        self._own.load(prompts, sites, first)

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """Random vectors as long as the distance between the two runs."""
        own = self._own.values(site, prompt, positions, width).float()
        towards = self._towards.values(site, prompt, positions, width).to(own.device).float()
        draws = [
            torch.randn(width, generator=_generator(self._seed, prompt, at, str(site))) for at in positions
        ]
        random = torch.stack(draws).to(own.device)
        unit = torch.nn.functional.normalize(random, dim=-1)
        shift: Tensor = unit * torch.linalg.vector_norm(towards - own, dim=-1, keepdim=True)
        return shift

    def identity(self) -> str:
        """The identities of both runs, and the seed."""
        return f"random shift {self._seed} {self._towards.identity()} {self._own.identity()}"


class Mapped:
    """Another model's states carried into this one's space.

    Args:
        source: the other model's run.
        maps: for each site of this model the map `[row, width there] -> [row, width here]` (as `Aligner.map` is).
        sites: for each site of this model the other model's; by default the same.
        name: what the maps depend on beside their numbers, for resuming.
    """

    adds: ClassVar[bool] = False

    def __init__(
        self,
        source: Run,
        maps: Mapping[Site, Callable[[Tensor], Tensor]],
        sites: Mapping[Site, Site] | None = None,
        *,
        name: str = "",
    ) -> None:
        self._source, self._maps, self._sites, self._name = source, dict(maps), dict(sites or {}), name

    def require(self, prompt: int, length: int) -> None:
        """Raise `PromptError` where the other model's run has no states for the prompt."""
        self._source.require(prompt, length)

    def load(self, prompts: Sequence[int], sites: Sequence[Site], first: int) -> None:
        """Run the other model at its own sites."""
        for site in sites:
            if site not in self._maps:
                raise SteeringError(f"There is no map for {site}; fit an aligner there as well.")
        self._source.load(prompts, sorted({self._sites.get(site, site) for site in sites}), first)

    def values(self, site: Site, prompt: int, positions: Sequence[int], width: int) -> _Rows:
        """The mapped states [position, width]."""
        there = self._sites.get(site, site)
        rows = self._source.values(there, prompt, positions, self._source.model.width(there))
        mapped: Tensor = self._maps[site](rows)
        return mapped

    def identity(self) -> str:
        """The run's identity, the name of the maps, the sites, and what the maps make of some fixed rows."""
        images = _hash_of({site: self._image(site) for site in self._maps})
        return (
            f"mapped {self._name} {sorted(map(str, self._sites.items()))} {images} {self._source.identity()}"
        )

    def _image(self, site: Site) -> Tensor:
        model, there = self._source.model, self._sites.get(site, site)
        rows = torch.randn(_PROBES, model.width(there), generator=_generator("probe", str(there)))
        return self._maps[site](rows.to(model.device))


def load_sources(cells: Sequence[Cell], prompts: Sequence[int]) -> None:
    """Tell every source in some cells which of its states will be asked for."""
    wanted: dict[int, tuple[Source, set[Site], int]] = {}
    for patch in (patch for cell in cells for patch in cell):
        low = min(patch.source_positions or patch.positions)
        source, sites, least = wanted.get(id(patch.source), (patch.source, set(), low))
        wanted[id(source)] = (source, sites | {patch.site}, min(least, low))
    for source, sites, least in wanted.values():
        source.load(prompts, sorted(sites), least)


def identity_of(cells: Sequence[Cell]) -> str:
    """A hash of some cells and of the sources in them."""
    digest = hashlib.sha256()
    names: dict[int, str] = {}
    for cell in cells:
        for patch in cell:
            if id(patch.source) not in names:
                names[id(patch.source)] = patch.source.identity()
            place = (str(patch.site), patch.positions, patch.source_positions, patch.heads)
            digest.update(names[id(patch.source)].encode())
            digest.update(repr(place).encode())
        digest.update(b";")
    return digest.hexdigest()


# -- private --


def _generator(*key: object) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def _hash_of(tensors: Mapping[Any, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items(), key=lambda item: str(item[0])):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().double().numpy().tobytes())
    return digest.hexdigest()[:16]
